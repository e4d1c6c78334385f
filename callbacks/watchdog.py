"""Ends a run that hangs, and says which process stands where."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mm_lightning.ranges import Range, checked
from mm_lightning.side_files import read_object
from mm_lightning.terminal import display

EXIT_STATUS = 70
"""Of the processes of a run that hung: EX_SOFTWARE of sysexits.h."""

Limit = Annotated[float, Range(0, 525_600, above=True)]  # a year
_DUMP = getattr(signal, "SIGRTMAX", signal.SIGPROF)  # nobody else's; at it, a process prints its stacks

HERE = ("_over", "_thread", "_hook", "_outside", "_launcher")
"""Attributes of a Watchdog that belong to this process alone: a copy or a pickle leaves them out."""


class Watchdog(Callback):
    """When a process makes no progress for `minutes`, every process prints the step and phase that it is in and its
    Python stack, one line names the process that is behind, and the run ends with status 70.

    Progress is a batch that is loaded, goes forward or backward, or is stepped on or validated, and any forward pass of
    the network, as in evaluations. Each process keeps a small file in `heartbeats/` of the run folder, so that a look
    there says where a run stands. A process that is stuck outside Python is ended half as late again, by a small
    process that watches it from outside (exit status 137).

    Only time in which the process was awake counts: one that was stopped as a whole (SIGSTOP, ctrl-Z, a suspended or
    paused machine) goes on. To the other processes of a run, one that stays stopped alone hangs.

    It is always there; name it in a config only to change its time.

    Args:
        minutes: longer than the slowest checkpoint takes to write, and shorter than communication_timeout.
    """

    @checked()
    def __init__(self, minutes: Limit = 20.0) -> None:
        self.limit = minutes * 60  # seconds
        self.interval = min(15.0, self.limit / 4)
        self._beats = 0  # changes of phase since the start, by which processes are compared
        self._phase, self._step = "starting", 0
        self._outside: subprocess.Popen | None = None
        self._launcher: Any = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches nothing."""
        return {name: value for name, value in vars(self).items() if name not in HERE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._over, self._thread, self._outside, self._launcher = threading.Event(), None, None, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to watch."""
        self._rank, self._ranks = trainer.global_rank, trainer.world_size
        self._launcher = getattr(trainer.strategy, "launcher", None)
        self._run = pl_module.run_folder
        self._folder = self._run.path / "heartbeats"
        self._beat(trainer, "waiting for data")
        self._hook = pl_module.network.register_forward_pre_hook(ForwardHook(lambda: self._beat(trainer, self._phase)))
        self._over.clear()
        self._watch_from_outside()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _beat(self, trainer: Trainer, phase: str) -> None:
        self._phase, self._step = phase, trainer.global_step
        self._beats += 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch came."""
        self._beat(trainer, "in the forward pass")

    def on_before_backward(self, trainer: Trainer, *args: Any) -> None:
        """The forward pass is done."""
        self._beat(trainer, "in the backward pass")

    def on_after_backward(self, trainer: Trainer, *args: Any) -> None:
        """The backward pass is done."""
        self._beat(trainer, "in the optimisation step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The batch is done; callbacks and the next batch are waited for."""
        self._beat(trainer, "at the end of a batch or waiting for data")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is going to be written."""
        self._beat(trainer, "writing a checkpoint")

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """A validation batch came."""
        self._beat(trainer, "in validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is done."""
        self._beat(trainer, "at the end of validation or waiting for data")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops watching, also after a fit that was only planned."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops watching."""
        self._stop()

    def _stop(self) -> None:
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        self._hook.remove()
        faulthandler.unregister(_DUMP)
        if self._outside is not None and self._outside.stdin is not None:
            with contextlib.suppress(OSError):
                self._outside.stdin.close()
            self._outside.wait()
        self._file(self._rank).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the last process finds it empty
            self._folder.rmdir()

    def _watch_from_outside(self) -> None:
        faulthandler.register(_DUMP, file=sys.__stderr__, all_threads=True, chain=False)
        script = Path(__file__).with_name("stuck_process.py")
        numbers = (os.getpid(), self.limit * 1.5 + 10, self.interval, _DUMP)
        # in a session of its own, so that a ctrl-Z for this process does not stop it, nor ctrl-C end it
        self._outside = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        assert self._outside.stdin is not None
        os.set_blocking(self._outside.stdin.fileno(), False)

    def _sign_of_life(self) -> None:
        if self._outside is not None and self._outside.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it may be gone; then nobody watches from outside
                self._outside.stdin.write(b".")

    def _watch(self) -> None:
        still, beats, before = 0.0, self._beats, time.monotonic()
        while True:
            self._sign_of_life()
            try:
                self._write(still)
            except Exception as error:  # nobody else would hear of it, and the watch would be over
                self._print(f"Watchdog: {type(error).__name__}: {error}")
            if still > self.limit:
                self._give_up(still)
            if self._over.wait(self.interval):
                return
            now = time.monotonic()
            passed, before = now - before, now
            # A wait that took far longer is one that this process slept through: what it does not see does not count.
            still = still + min(passed, 2 * self.interval) if self._beats == beats else 0.0
            beats = self._beats

    def _file(self, rank: int) -> Path:
        return self._folder / f"{rank}.json"

    def _write(self, still: float) -> None:
        def write() -> None:
            self._folder.mkdir(exist_ok=True)
            beside = self._folder / f"{self._rank}.tmp"
            try:
                beside.write_text(json.dumps({**self._place(), "seconds": round(still, 1)}) + "\n", encoding="utf-8")
                os.replace(beside, self._file(self._rank))
            except OSError:
                beside.unlink(missing_ok=True)
                raise

        self._run.write(self._file(self._rank), write, "the watch goes on")

    def _place(self) -> dict[str, Any]:
        place = {"host": platform.node(), "beats": self._beats, "step": self._step, "phase": self._phase}
        return {**place, "waits": waits_for_others()}

    def _print(self, line: str) -> None:
        """Print a line of any rank, past whatever has replaced the error stream."""
        display(f"mm: {line}", file=sys.__stderr__, flush=True)

    def _give_up(self, still: float) -> None:
        """Says where this process stands, waits for the others to do so, and ends this one."""
        self._print(f"rank {self._rank} stands after step {self._step}, {self._phase}, for {still:.0f} s:")
        faulthandler.dump_traceback(file=sys.__stderr__)
        self._over.wait(2 * self.interval)
        found = {**self._others(), self._rank: self._place()}
        behind = min(found, key=lambda rank: (found[rank]["beats"], found[rank]["waits"]))
        place = found[behind]
        missing = sorted(set(range(self._ranks)) - set(found))
        self._print(
            f"no progress for {self.limit / 60:g} minutes (Watchdog): rank {behind} on {place['host']} is behind: "
            f"after step {place['step']}, {place['phase']}"
            + (f"; nothing is known of ranks {missing}" if missing else "")
            + ". The stacks above say what each process waits for; --resume goes on from the newest checkpoint"
        )
        if hasattr(self._launcher, "kill"):  # the processes that this one started: one that is stopped would stay
            self._over.wait(self.interval)
            self._launcher.kill(signal.SIGKILL)
        os._exit(EXIT_STATUS)

    def _others(self) -> dict[int, dict[str, Any]]:
        """Return what the other processes have last written of themselves."""
        places = {rank: read_object(self._file(rank)) for rank in range(self._ranks)}
        return {rank: place for rank, place in places.items() if place}


class ForwardHook:
    """A hook that calls a function before each forward pass; a copy of its module, or a pickled one, calls nothing."""

    def __init__(self, call: Callable[[], None] | None = None) -> None:
        self.call = call

    def __call__(self, *args: Any) -> None:
        """Call the function."""
        if self.call is not None:
            self.call()

    def __reduce__(self) -> Any:
        return ForwardHook, ()


def waits_for_others() -> bool:
    """Whether the main thread is in an operation among processes."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame is not None:
        if f"{os.sep}torch{os.sep}distributed{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False

"""End a run that hangs, and report where each process is."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import Callback, Trainer

from mm_lightning.outputs import write_json
from mm_lightning.ranges import Range, checked
from mm_lightning.side_files import read_object
from mm_lightning.terminal import display
from mm_lightning.training.lightning_internals import kill_launched
from mm_lightning.training.module import LanguageModule

EXIT_STATUS = 70
"""The exit status of the processes of a run that hung: EX_SOFTWARE of sysexits.h."""

Limit = Annotated[float, Range(0, 525_600, above=True)]  # a year
_DUMP = getattr(signal, "SIGRTMAX", signal.SIGPROF)  # a process prints its stacks at it; used for nothing else


def _begins(phase: str) -> Any:
    """Return a hook that counts a sign of life and tells which phase begins."""

    def hook(self: Watchdog, trainer: Trainer, *_: Any) -> None:
        self._beat(trainer, phase)

    return hook


class Watchdog(Callback):
    """End the run when a process makes no progress for `minutes`: every process prints its step, its phase and its
    Python stack, one line names the process that is behind, and the exit status is 70.

    Progress is a batch that is loaded, goes forward or backward, is stepped on or validated, and any forward pass of
    the network, as in evaluations. Each process writes its step and phase to a file in `heartbeats/` of the run folder.
    A process that is stuck outside Python is ended after 1.5 times as long, by a monitor process (exit status 137).

    Only time in which the process was awake counts: one that was stopped as a whole (SIGSTOP, ctrl-Z, a suspended or
    paused machine) goes on. A single stopped process of several hangs for the others.

    Part of every `mm fit`; name it in a config only to change `minutes`.

    Args:
        minutes: longer than the slowest checkpoint takes to write, and shorter than communication_timeout.
    """

    _beats = 0  # phases since the start, by which processes are compared
    _phase, _step = "starting", 0
    _monitor: Any = None
    _launcher: Any = None
    _thread: threading.Thread | None = None

    @checked()
    def __init__(self, minutes: Limit = 20.0) -> None:
        self.limit = minutes * 60  # seconds
        self.interval = min(15.0, self.limit / 4)

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings: a copy watches nothing."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Start to watch."""
        self._rank, self._ranks = trainer.global_rank, trainer.world_size
        self._launcher = getattr(trainer.strategy, "launcher", None)
        self._run = pl_module.run_folder
        self._folder = self._run.path / "heartbeats"
        self._beat(trainer, "waiting for data")
        self._hook = pl_module.network.register_forward_pre_hook(self._count_beat)
        self._stopped = threading.Event()
        self._start_monitor()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _beat(self, trainer: Trainer, phase: str) -> None:
        self._phase, self._step = phase, trainer.global_step
        self._count_beat()

    def _count_beat(self, *_: Any) -> None:
        """Count a sign of life; as a hook of a network that is copied, this becomes a copy's, which watches nothing."""
        self._beats += 1

    on_train_batch_start = _begins("in the forward pass")
    on_before_backward = _begins("in the backward pass")
    on_after_backward = _begins("in the optimization step")
    on_train_batch_end = _begins("at the end of a batch or waiting for data")
    on_save_checkpoint = _begins("writing a checkpoint")
    on_validation_batch_start = _begins("in validation")
    on_validation_end = _begins("at the end of validation or waiting for data")

    def teardown(self, trainer: Trainer, pl_module: LanguageModule, stage: Any) -> None:
        """Stop watching, also after `mm fit --plan`."""
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        self._hook.remove()
        faulthandler.unregister(_DUMP)
        with contextlib.suppress(OSError):
            self._monitor.stdin.close()
        self._monitor.wait()
        self._file(self._rank).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # only the last process finds it empty
            self._folder.rmdir()

    on_exception = teardown  # type: ignore[assignment]

    def _start_monitor(self) -> None:
        assert sys.__stderr__ is not None
        faulthandler.register(_DUMP, file=sys.__stderr__, all_threads=True, chain=False)
        script = Path(__file__).with_name("stuck_process.py")
        arguments = (os.getpid(), self.limit * 1.5 + 10, self.interval, _DUMP)
        # in a session of its own: ctrl-Z and ctrl-C do not reach it
        self._monitor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        os.set_blocking(self._monitor.stdin.fileno(), False)

    def _watch(self) -> None:
        idle, beats, before = 0.0, self._beats, time.monotonic()
        while True:
            with contextlib.suppress(OSError, ValueError):  # the monitor may be gone
                self._monitor.stdin.write(b".")
            try:
                self._write(idle)
            except Exception as error:  # it would end this thread silently
                self._print(f"Watchdog: {type(error).__name__}: {error}")
            if idle > self.limit:
                self._end_run(idle)
            if self._stopped.wait(self.interval):
                return
            now = time.monotonic()
            passed, before = now - before, now
            # a wait that took far longer was spent asleep, which does not count
            idle = idle + min(passed, 2 * self.interval) if self._beats == beats else 0.0
            beats = self._beats

    def _file(self, rank: int) -> Path:
        return self._folder / f"{rank}.json"

    def _write(self, idle: float) -> None:
        file, status = self._file(self._rank), {**self._status(), "seconds": round(idle, 1)}
        self._run.write(file, lambda: write_json(file, status), "the Watchdog goes on")

    def _status(self) -> dict[str, Any]:
        status = {"host": platform.node(), "beats": self._beats, "step": self._step, "phase": self._phase}
        return {**status, "waits": in_collective()}

    def _print(self, line: str) -> None:
        """Print a line on any rank, to the original error stream."""
        display(f"mm: {line}", file=sys.__stderr__, flush=True)

    def _end_run(self, idle: float) -> None:
        """Report where this process is, wait for the others to do so, and end this one."""
        self._print(f"rank {self._rank} made no progress for {idle:.0f} s after step {self._step}, {self._phase}:")
        assert sys.__stderr__ is not None
        faulthandler.dump_traceback(file=sys.__stderr__)
        self._stopped.wait(2 * self.interval)
        files = {rank: read_object(self._file(rank)) for rank in range(self._ranks)}
        statuses = {rank: status for rank, status in files.items() if status} | {self._rank: self._status()}
        behind = min(statuses, key=lambda rank: (statuses[rank]["beats"], statuses[rank]["waits"]))
        status = statuses[behind]
        missing = sorted(set(range(self._ranks)) - set(statuses))
        self._print(
            f"no progress for {self.limit / 60:g} minutes (Watchdog): rank {behind} on {status['host']} is behind: "
            f"after step {status['step']}, {status['phase']}"
            + (f"; no heartbeat of ranks {missing}" if missing else "")
            + ". The stacks above show what each process waits for; --resume goes on from the newest checkpoint"
        )
        if self._launcher is not None:  # a launched process that is stopped would stay
            self._stopped.wait(self.interval)
            kill_launched(self._launcher)
        os._exit(EXIT_STATUS)


def in_collective() -> bool:
    """Return whether the main thread is inside torch.distributed."""
    innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    folder = f"{os.sep}torch{os.sep}distributed{os.sep}"
    return any(folder in frame.f_code.co_filename for frame, _ in traceback.walk_stack(innermost))

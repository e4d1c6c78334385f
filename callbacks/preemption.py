"""Save a checkpoint and end the run at a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from mm_lightning import signals
from mm_lightning.callbacks.checkpoints import Checkpoints
from mm_lightning.checkpoint import checkpoint_path
from mm_lightning.console import is_first_process, say
from mm_lightning.ranges import Name, checked
from mm_lightning.training import lightning_internals as internals
from mm_lightning.training.accumulation import is_last_step
from mm_lightning.training.module import LanguageModule


class Preemption(Callback):
    """Save a checkpoint and end the run at SIGTERM, SIGUSR1, SIGUSR2, SIGHUP (its terminal is closed) or ctrl-C.

    Part of every `mm fit`. Under nohup, which ignores SIGHUP, the run goes on.

    The signal handler only sets a flag. Once an optimization step the processes all-reduce it on their CPUs,
    asynchronously while the devices compute, and save together after the first whole step whose last batch began after
    the signal. A running validation or evaluation is finished first; another one is not started.

    The exit status is 85, or 130 after ctrl-C (of one process of each node; 0 of the others; torchrun makes it 1).
    `preempted.json` in the run folder holds signal, step, checkpoint and time; the next start of the run removes it.
    Under Slurm the job is queued again, except after ctrl-C. A second signal, a second or more after the first, ends
    the process at once.

    Args:
        slurm_job: the Slurm job to queue again, if there is one.
    """

    @checked()
    def __init__(self, slurm_job: Name | None = None) -> None:
        self.slurm_job = slurm_job
        self._signal = 0  # received by this process
        self._saved_signal = 0  # received by any process, once its checkpoint is written
        self._previous_handlers: dict[int, Any] = {}
        self._group: Any = None
        self._reduction: Any = None
        self._reduced = torch.zeros(1, dtype=torch.int64)

    def setup(self, trainer: Trainer, pl_module: LanguageModule, stage: str) -> None:
        """Install signal handlers in place of Lightning's, which wait for other processes inside a handler."""
        internals.leave_signals_alone(trainer)
        self._launcher = trainer.strategy.launcher
        self._folder = pl_module.run_folder.path
        if trainer.is_global_zero:
            for folder in (self._folder, pl_module.run_folder.root):  # the root has that of a run without a folder
                (folder / signals.MARK).unlink(missing_ok=True)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # remains ignored
        numbers = [n for n in signals.NOTICES if not (nohup and n == signal.SIGHUP)]
        self._previous_handlers = signals.listen(numbers, self._notice)
        if number := signals.noticed():
            self._notice(number, None)

    def _notice(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self._signal:
            self._signal, self._received_at = number, now
            if is_first_process():  # not by print, which is not reentrant
                line = f"mm: {signals.name(number)}: saving after this step; once more to exit at once\n"
                with contextlib.suppress(OSError):  # the terminal may be closed
                    os.write(2, line.encode())
        elif now - self._received_at > signals.SAME_NOTICE:
            internals.kill_launched(self._launcher)
            os._exit(128 + number)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Create the process group of the CPUs."""
        if trainer.world_size > 1 and dist.get_backend() != "fake":  # of `mm fit --plan`
            self._group = dist.new_group(backend="gloo", timeout=internals.process_timeout(trainer.strategy))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModule, batch: Any, batch_idx: int) -> None:
        """End the run if a checkpoint was saved; else start the reduction before the last batch of a step."""
        if self._saved_signal:
            self._exit(trainer)
        if self._group is not None and not internals.accumulating(trainer):
            self._reduced.fill_(self._signal)
            self._reduction = dist.all_reduce(self._reduced, dist.ReduceOp.MAX, self._group, async_op=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        """Save after a whole step if any process received a signal; the last step ends the run by itself."""
        if internals.accumulating(trainer):
            return
        number = self._signal
        if self._reduction is not None:
            self._reduction.wait()
            number, self._reduction = int(self._reduced), None
        if number and not is_last_step(trainer):
            self._save(trainer, pl_module, number)

    def _save(self, trainer: Trainer, pl_module: LanguageModule, number: int) -> None:
        step = trainer.global_step
        path = checkpoint_path(pl_module.run_folder.path, step)
        saver = next(iter(internals.callbacks_of(trainer, Checkpoints)), Checkpoints(keep=0))
        saver.save_now(trainer, pl_module)
        self._saved_signal = number
        if trainer.is_global_zero:
            mark = partial(signals.write_mark, self._folder, number, step, path.name)
            pl_module.run_folder.write(self._folder / signals.MARK, mark, "the checkpoint is written")
        say(f"{signals.name(number)}: saved after step {step}; --resume goes on from {path}")

    def on_validation_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """End the run instead, if a checkpoint was saved."""
        if self._saved_signal:
            self._exit(trainer)

    def _exit(self, trainer: Trainer) -> None:
        status = signals.INTERRUPTED if self._saved_signal == signal.SIGINT else signals.PREEMPTED
        if self.slurm_job and trainer.is_global_zero and status == signals.PREEMPTED:
            say(signals.requeue(self.slurm_job))
        # Lightning kills all processes that it started on a node when one of them ends with an error.
        raise SystemExit(status if trainer.local_rank == 0 else 0)

    def teardown(self, trainer: Trainer, pl_module: LanguageModule, stage: Any) -> None:
        """Restore the previous signal handlers."""
        signals.restore(self._previous_handlers)
        self._previous_handlers = {}

    on_exception = teardown  # type: ignore[assignment]

"""A run that is told to end saves first."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from mm_lightning.callbacks.checkpoints import Checkpoints
from mm_lightning.checkpoint import checkpoint_path
from mm_lightning.console import say
from mm_lightning.ranges import Name, checked
from mm_lightning.signals import (
    INTERRUPTED,
    MARK,
    NOTICES,
    PREEMPTED,
    SAME_NOTICE,
    listen,
    name,
    noticed,
    requeue,
    restore,
    write_mark,
)
from mm_lightning.training.accumulation import is_last_step
from mm_lightning.training.lightning_internals import accumulating, leave_signals_alone, process_timeout


class Preempted(SystemExit):
    """Ends a run whose checkpoint is written, with its exit status."""


class Preemption(Callback):
    """Saves a checkpoint and ends the run when it gets SIGTERM, SIGUSR1, SIGUSR2, SIGHUP (its terminal is closed) or
    ctrl-C. Always there in `mm fit`. Under nohup, which ignores SIGHUP, the run goes on.

    A signal only leaves a note. The processes agree on it once an optimisation step, by a reduction of one number
    between their CPUs that goes on while the devices compute, and save together after the first whole step that began
    its last batch after the signal. A validation or evaluation that is going on is finished first; one that has not
    begun is not begun.

    The exit status is 85, or 130 after ctrl-C (one process of each node has it and the others 0; torchrun makes it 1).
    `preempted.json` in the run folder tells the same: signal, step, checkpoint and time; the next start of the run
    removes it. Under Slurm the job is queued again, except after ctrl-C. A second signal, a second or more after the
    first, ends the process at once.

    Args:
        slurm_job: the Slurm job to queue again; None for none.
    """

    @checked()
    def __init__(self, slurm_job: Name | None = None) -> None:
        self.slurm_job = slurm_job
        self._noticed = 0  # the signal that this process got
        self._noticed_at = 0.0
        self._agreed = 0  # the signal that all processes know of, when its checkpoint is written
        self._kept: dict[signal.Signals, Any] = {}  # what signals did before
        self._group: Any = None
        self._reduction: Any = None
        self._number = torch.zeros(1, dtype=torch.int64)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begins to listen, in the place of Lightning, whose handler waits for other processes wherever it is."""
        leave_signals_alone(trainer)
        self._launcher = trainer.strategy.launcher
        self._folder = pl_module.run_folder.path
        if trainer.is_global_zero:
            for folder in (self._folder, pl_module.run_folder.root):  # where a run that had none yet has left it
                (folder / MARK).unlink(missing_ok=True)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # it stays ignored
        self._kept = listen([n for n in NOTICES if not (nohup and n == signal.SIGHUP)], self._notice)
        if number := noticed():
            self._notice(number, None)

    def _notice(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self._noticed:
            self._noticed, self._noticed_at = number, now
            if rank_zero_only.rank == 0:  # not by print, which a handler must not enter twice
                with contextlib.suppress(OSError):  # which reaches a closed terminal no more
                    os.write(2, f"mm: {name(number)}: saving after this step; once more to exit at once\n".encode())
        elif now - self._noticed_at > SAME_NOTICE:
            if hasattr(self._launcher, "kill"):
                self._launcher.kill(signal.SIGKILL)
            os._exit(128 + number)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins the processes' CPUs."""
        if trainer.world_size > 1 and dist.get_backend() != "fake":  # of `mm fit --plan`: nobody is there
            self._group = dist.new_group(backend="gloo", timeout=process_timeout(trainer.strategy))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leaves, if all is saved; or begins to ask the others, before the last batch of a step."""
        if self._agreed:
            self._leave(trainer)
        if self._group is not None and not accumulating(trainer):
            self._number.fill_(self._noticed)
            self._reduction = dist.all_reduce(self._number, dist.ReduceOp.MAX, self._group, async_op=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after a whole step, if a process was told to end; the last step ends the run by itself."""
        if accumulating(trainer):
            return
        told = self._noticed
        if self._reduction is not None:
            self._reduction.wait()
            told, self._reduction = int(self._number), None
        if told and not is_last_step(trainer):
            self._save(trainer, pl_module, told)

    def _save(self, trainer: Trainer, pl_module: LightningModule, told: int) -> None:
        step = trainer.global_step
        path = checkpoint_path(pl_module.run_folder.path, step)
        saver = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), Checkpoints(keep=0))
        saver.save_now(trainer, pl_module)
        self._agreed = told
        if trainer.is_global_zero:
            mark = partial(write_mark, self._folder, told, step, path.name)
            pl_module.run_folder.write(self._folder / MARK, mark, "the checkpoint is written all the same")
        say(f"{name(told)}: saved after step {step}; --resume goes on from {path}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves instead, if all is saved."""
        if self._agreed:
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        status = INTERRUPTED if self._agreed == signal.SIGINT else PREEMPTED
        if self.slurm_job and trainer.is_global_zero and status == PREEMPTED:
            say(requeue(self.slurm_job))
        # Lightning, which starts the other processes of a node, would kill all of them for one that ends with an error.
        raise Preempted(status if trainer.local_rank == 0 else 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Signals do again what they did before."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Signals do again what they did before."""
        restore(self._kept)
        self._kept = {}

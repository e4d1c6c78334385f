"""Save checkpoints every N optimization steps or minutes, the best ones, and at the end."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from mm_lightning.checkpoint.discovery import checkpoint_path, is_run_checkpoint, list_checkpoints, step_of
from mm_lightning.checkpoint.integrity import is_complete, remove_checkpoint
from mm_lightning.checkpoint.plain_values import UnloadableState
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json
from mm_lightning.ranges import Name, Natural, Range, checked
from mm_lightning.side_files import read_object
from mm_lightning.terminal import display
from mm_lightning.training.accumulation import agreed, is_last_step
from mm_lightning.training.lightning_internals import accumulating
from mm_lightning.training.module import LanguageModule

BEST = "best.json"

Minutes = Annotated[float, Range(0, 525_600)]  # a year


class Checkpoints(Checkpoint):
    """Save `checkpoints/step=N.ckpt` in the run folder, always after a whole optimization step.

    An old checkpoint is deleted only when a newer one is complete.

    Args:
        every_n_steps: optimization steps between checkpoints; 0 saves at the end only.
        keep: how many of the newest to keep; 0 keeps all.
        keep_every_n_steps: checkpoints at multiples of this many steps are never deleted; 0 for none.
        every_n_minutes: save also when this much time has passed since the last checkpoint (with several processes the
            clock is read every trainer.log_every_n_steps steps); 0 for never.
        best: a metric of validation, as in validation/loss: whenever it is better than ever, that step is saved and
            kept until another is better. checkpoints/best.json names it.
        best_mode: whether the smallest or the largest value is the best.
        asynchronous: copy the state to CPU memory and write it while training goes on. At most one checkpoint is
            written at a time, and the copy takes its size in memory. DeepSpeed's shards are always saved
            synchronously, and the log says so.
        on_failure: what to do when a checkpoint cannot be written, as on a full disk. The one before is left
            as it is. `stop` ends training; `continue` logs it once, tries again when the next one is due, and ends
            with an error only if the last step could not be saved.
    """

    @checked()
    def __init__(
        self,
        every_n_steps: Natural = 1000,
        keep: Natural = 2,
        keep_every_n_steps: Natural = 0,
        every_n_minutes: Minutes = 0.0,
        best: Name | None = None,
        best_mode: Literal["min", "max"] = "min",
        asynchronous: bool = False,
        on_failure: Literal["stop", "continue"] = "stop",
    ) -> None:
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.keep_every_n_steps = keep_every_n_steps
        self.every_n_minutes = every_n_minutes
        self.best = best
        self.best_mode = best_mode
        self.asynchronous = asynchronous
        self.on_failure = on_failure
        self._saved_step = -1
        self._best: dict[str, Any] | None = None
        self._failure_logged = False

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Set up the writer, and read which checkpoint is the best so far."""
        self._saved_step = trainer.global_step
        self._saved_at = time.monotonic()
        writer = self._writer(trainer)
        writer.asynchronous, writer.defer_errors = self.asynchronous, True
        if self.asynchronous and writer is trainer.strategy:
            say("Checkpoints: asynchronous applies to plain files, DeepSpeed's shards are saved synchronously")
        best = self._read_best(pl_module.run_folder.path) if self.best and trainer.is_global_zero else None
        self._best = trainer.strategy.broadcast(best)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        """Save if a checkpoint is due."""
        if accumulating(trainer):
            return
        due = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        seconds = time.monotonic() - self._saved_at
        by_the_clock = self.every_n_minutes > 0 and agreed(trainer, seconds >= 60 * self.every_n_minutes)
        # The last step is saved here, not when training has ended: its loop state can go on with more steps.
        if by_the_clock or due or is_last_step(trainer):
            self._save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Save the step if the metric `best` has improved."""
        if self.best is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        if self.best not in metrics:
            raise UserError(f"Checkpoints: best is {self.best!r}, metrics are {', '.join(sorted(map(str, metrics)))}")
        value = float(metrics[self.best])
        sign = 1 if self.best_mode == "min" else -1
        if not math.isfinite(value) or (self._best and sign * value >= sign * self._best["value"]):
            return
        self._best = {"step": trainer.global_step, "metric": self.best, "value": value}
        self._save(trainer, pl_module)
        if trainer.is_global_zero:
            self._record_best(pl_module.run_folder)

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Save the last step if it is not saved yet, and wait until all is written."""
        self.save_now(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LanguageModule, exception: BaseException) -> None:
        """Wait for the checkpoint that is being written."""
        if error := self._writer(trainer).finish():
            display(str(error), flush=True)

    def save_now(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Save the finished step unless it is saved, and return when it is written; every process calls it.

        Raises:
            UserError: it cannot be written, whatever `on_failure` says.
        """
        writer = self._writer(trainer)
        writer.defer_errors = True
        try:
            self._check(trainer, writer.finish(), final=False)
            if trainer.global_step != self._saved_step:
                writer.asynchronous = False
                self._save(trainer, pl_module, final=True)
        finally:
            writer.asynchronous = self.asynchronous
        self._prune(trainer, pl_module)

    @staticmethod
    def _writer(trainer: Trainer) -> Any:
        """Return the writer, which has `asynchronous`, `defer_errors` and `finish`: the strategy under DeepSpeed."""
        return trainer.strategy if hasattr(trainer.strategy, "finish") else trainer.strategy.checkpoint_io

    def _save(self, trainer: Trainer, pl_module: LanguageModule, final: bool = False) -> None:
        if trainer.global_step == self._saved_step:
            return
        writer = self._writer(trainer)
        if self.asynchronous and self._saved_step >= 0 and self._check(trainer, writer.finish(), final):
            self._prune(trainer, pl_module)
        run = pl_module.run_folder.path
        target = checkpoint_path(run, trainer.global_step)
        try:
            if trainer.strategy.broadcast(not run.is_dir()):
                raise UserError(f"cannot write the checkpoint {target}: the run folder no longer exists")
            trainer.save_checkpoint(target)
            error = writer.finish(wait=not writer.asynchronous)
        except UserError as failed:
            error = failed
        self._saved_at = time.monotonic()
        if self._check(trainer, error, final, written=not writer.asynchronous):
            self._saved_step = trainer.global_step
            self._prune(trainer, pl_module)

    def _check(self, trainer: Trainer, error: Exception | None, final: bool, written: bool = True) -> bool:
        """Return whether the first process has written, or begun to; if not, stop or go on by `on_failure`."""
        failure = None if error is None else (str(error), isinstance(error, UnloadableState))
        failure = trainer.strategy.broadcast(failure)
        if failure is None:
            self._failure_logged = self._failure_logged and not written
            return True
        message, unloadable = failure
        self._saved_step = -1
        if final or unloadable or self.on_failure == "stop":
            raise UserError(message)
        if not self._failure_logged:
            say(f"training goes on without a new checkpoint: {message}")
        self._failure_logged = True
        return False

    def _prune(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Delete checkpoints of the run beyond `keep`; never one newer than the current step."""
        if not trainer.is_global_zero:
            return
        run = pl_module.run_folder.path
        self._record_best(pl_module.run_folder)
        if not self.keep:
            return
        saved = [p for p in list_checkpoints(run) if is_run_checkpoint(p) and step_of(p) <= trainer.global_step]
        complete = [p for p in saved if is_complete(p)]
        best = self._read_best(run) if self.best else None
        for path in reversed(complete[self.keep :]):
            milestone = self.keep_every_n_steps and step_of(path) % self.keep_every_n_steps == 0
            if not milestone and step_of(path) != (best and best["step"]):
                pl_module.run_folder.write(path, partial(remove_checkpoint, path), "it is kept until it can be deleted")

    def _record_best(self, folder: RunFolder) -> None:
        """Write best.json once the best checkpoint is complete; until then it names the one before."""
        best, run = self._best, folder.path
        if best and is_complete(checkpoint_path(run, best["step"])) and best != self._read_best(run):
            file = run / "checkpoints" / BEST
            folder.write(file, lambda: write_json(file, best))

    def _read_best(self, run: Path) -> dict[str, Any] | None:
        """Return step, metric and value of best.json, if it is of the same metric and its checkpoint is there."""
        best = read_object(run / "checkpoints" / BEST)
        same = best.get("metric") == self.best and isinstance(best.get("value"), float)
        return best if same and is_complete(checkpoint_path(run, best["step"])) else None

"""Saves checkpoints: every so many optimisation steps and at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mm_lightning.errors import UserError


class Checkpoints(Checkpoint):
    """Saves `checkpoints/step=N.ckpt` in the run folder, always after a whole optimisation step.

    The old checkpoint is deleted after the new one is complete.

    Args:
        every_n_steps: optimisation steps between checkpoints; 0 saves at the end only.
        keep: how many of the newest stay; 0 keeps all.
    """

    def __init__(self, every_n_steps: int = 1000, keep: int = 2) -> None:
        if every_n_steps < 0 or keep < 0:
            raise UserError(f"Checkpoints: every_n_steps {every_n_steps} and keep {keep} must not be negative")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step that a resumed run begins with is saved already."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where it is time."""
        step = trainer.global_step
        due = self.every_n_steps > 0 and step % self.every_n_steps == 0
        # The last step is saved here, not when training has ended: its loop state can go on with more steps.
        if step != self._saved_step and (due or step == trainer.max_steps):
            self._save(trainer, pl_module)

    def save_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves now, unless this step is saved; when it returns, the checkpoint is whole (all processes call it)."""
        if trainer.global_step != self._saved_step:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what an early stop left unsaved."""
        self.save_now(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from mm_lightning.training.checkpoint import is_whole, step_of

        self._saved_step = trainer.global_step
        folder = Path(pl_module.run_folder.path) / "checkpoints"
        newest = folder / f"step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(newest)
        whole = sorted((p for p in folder.glob("*.ckpt") if is_whole(p)), key=step_of) if self.keep else []
        old = [p for p in whole[: -self.keep] if p != newest] if self.keep else []
        for path in trainer.strategy.broadcast(old):
            trainer.strategy.remove_checkpoint(path)

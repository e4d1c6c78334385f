"""What the memories learn about themselves: bandwidths and value scalars, per memory level."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mm_lightning.errors import UserError


class MemoryStatistics(Callback):
    """Writes TensorBoard histograms `memory/LEVEL/NAME` over all blocks and heads (alpha, beta_0, beta_1, gamma and
    alpha_psi of each level); a transformer has none.

    Args:
        every_n_steps: optimisation steps between histograms.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise UserError(f"MemoryStatistics: every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._written = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the values that training begins with."""
        self._write(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes them on schedule."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._written:
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = trainer.global_step
        with pl_module.whole_parameters(lambda parameter: len(getattr(parameter, "ds_shape", parameter.shape)) < 2):
            if not trainer.is_global_zero:
                return
            scalars = pl_module.network.memory_scalars()
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    for name, values in scalars.items():
                        logger.experiment.add_histogram(f"memory/{name}", values.float().cpu(), trainer.global_step)

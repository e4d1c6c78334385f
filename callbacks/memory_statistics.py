"""What the memories learn about themselves, and what they do with a text."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from mm_lightning.callbacks.after_validation import ValidationRows
from mm_lightning.networks import Network
from mm_lightning.ranges import Count, Natural, checked
from mm_lightning.training.loggers import tensorboard_tag
from mm_lightning.training.sharding import gathered


class MemoryStatistics(ValidationRows):
    """Writes TensorBoard histograms `watch_memory/LEVEL/NAME`, over all blocks and heads:

    - alpha, beta_0, beta_1, gamma and alpha_psi: the learned scalars, on a schedule; a transformer has none,
    - bandwidth, gate and decay: at every position of some validation sequences, after each validation,
    - effective_pairs: the exponential of the entropy of a query's retrieval weights, that is, how many pairs it really
      reads. A transformer's attention has this alone.

    Args:
        every_n_steps: optimisation steps between histograms of scalars.
        sequences: validation sequences for the others; 0 leaves them out. They cost a forward pass and T x T weights a
            head, in pieces.
    """

    @checked()
    def __init__(self, every_n_steps: Count = 100, sequences: Natural = 1) -> None:
        super().__init__(sequences)
        self.every_n_steps = every_n_steps
        self._written = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the values that training begins with; a resumed run has written those of its step before."""
        self._written = trainer.global_step
        if trainer.global_step == 0:
            self._write_scalars(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes them on schedule."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._written:
            self._write_scalars(trainer, pl_module)

    def _write_scalars(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._written = trainer.global_step
        with gathered(p for p in pl_module.network.parameters() if len(getattr(p, "ds_shape", p.shape)) < 2):
            if trainer.is_global_zero:
                write(trainer, pl_module.network.memory_scalars())

    def look(self, trainer: Trainer, network: Network) -> None:
        """Writes the histograms of what the memories do with some sequences."""
        from mm_lightning.inspection.statistics import memory_distributions

        write(trainer, memory_distributions(network, self.batch.tokens, self.batch.documents))


def write(trainer: Trainer, values: dict[str, Tensor]) -> None:
    """A histogram of the finite numbers of each, where there are any: nothing is read, or a run diverges."""
    finite = {name: numbers[numbers.isfinite()].float().cpu() for name, numbers in values.items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, numbers in finite.items():
                if len(numbers):
                    logger.experiment.add_histogram(tensorboard_tag(f"memory/{name}"), numbers, trainer.global_step)

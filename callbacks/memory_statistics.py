"""Histograms of the learned scalars of the memories, and of what they compute on a text."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from mm_lightning.callbacks.after_validation import OnValidationBatch
from mm_lightning.networks import Network
from mm_lightning.ranges import Count, Natural, checked
from mm_lightning.training.lightning_internals import accumulating
from mm_lightning.training.loggers import tensorboard_tag, tensorboards
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.sharding import gathered


class MemoryStatistics(OnValidationBatch):
    """Write TensorBoard histograms `watch_memory/LEVEL/NAME`, over all blocks and heads:

    - alpha, beta_0, beta_1, gamma and alpha_psi: the learned scalars, every `every_n_steps`; a transformer has none,
    - bandwidth, gate and decay: at every position of some validation sequences, after each validation,
    - effective_pairs: the exponential of the entropy of a query's retrieval weights: the effective number of pairs that
      it reads. A transformer has this one alone.

    Args:
        every_n_steps: optimization steps between histograms of scalars.
        sequences: validation sequences for the other histograms; 0 for none of them. They cost a forward pass and T x T
            weights a head, in chunks.
    """

    @checked()
    def __init__(self, every_n_steps: Count = 100, sequences: Natural = 1) -> None:
        super().__init__(sequences)
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Write the initial scalars; a resumed run has those of its first step already."""
        if trainer.global_step == 0:
            self._write_scalars(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        """Write the scalars every `every_n_steps`."""
        if trainer.global_step % self.every_n_steps == 0 and not accumulating(trainer):
            self._write_scalars(trainer, pl_module)

    def _write_scalars(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        with gathered(pl_module.network.weight_decay_groups()[1]):  # norms and scalars
            if trainer.is_global_zero:
                write_histograms(trainer, pl_module.network.memory_scalars())

    def inspect(self, trainer: Trainer, network: Network) -> None:
        """Write the histograms of what the memories compute on validation sequences."""
        from mm_lightning.inspection.distributions import memory_distributions

        assert self.batch is not None
        write_histograms(trainer, memory_distributions(network, self.batch.tokens, self.batch.documents))


def write_histograms(trainer: Trainer, values: dict[str, Tensor]) -> None:
    """Write a TensorBoard histogram of the finite values of each tensor, if it has any."""
    finite = {name: x[x.isfinite()].float().cpu() for name, x in values.items()}
    for board in tensorboards(trainer):
        for name, x in finite.items():
            if len(x):
                board.add_histogram(tensorboard_tag(f"memory/{name}"), x, trainer.global_step)

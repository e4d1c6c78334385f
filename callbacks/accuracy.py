"""Measure how often the most probable token is the one that follows."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torchmetrics import MeanMetric

from mm_lightning.data import Batch
from mm_lightning.memory.documents import IGNORE_INDEX
from mm_lightning.training.module import LanguageModule


class Accuracy(Callback):
    """Log `validation/accuracy` at each validation and in `mm test`: the share of predicted tokens that are the most
    probable ones.

    Where only some tokens are predicted, such as the answers of associative recall (`mm data mqar`), it is their share.
    Lightning's EarlyStopping may end a run by it: {monitor: validation/accuracy, mode: max, stopping_threshold: 0.99}.
    """

    validation_metrics = ("validation/accuracy",)

    def __init__(self) -> None:
        self.mean = MeanMetric().set_dtype(torch.float64)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self.mean.to(pl_module.device).reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LanguageModule, _: Any, batch: Batch, *indices: int
    ) -> None:
        """Add the predicted tokens of a batch; logits exist for them alone."""
        predicted = batch.targets != IGNORE_INDEX
        with trainer.precision_plugin.forward_context():
            x, _ = pl_module.network.hidden_states(batch.tokens, batch.documents)
            best = pl_module.network.classifier(x[predicted]).argmax(-1)
        self.mean.update((best == batch.targets[predicted]).double())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Log the mean over all devices."""
        split = "test" if trainer.testing else "validation"
        pl_module.log(f"{split}/accuracy", self.mean.compute().float(), sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start  # type: ignore[assignment]
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]
    on_test_epoch_end = on_validation_epoch_end  # type: ignore[assignment]

"""Measure how often the most probable token is the one that follows."""

from __future__ import annotations

import torch
from torchmetrics import MeanMetric, MetricCollection

from mm_lightning.callbacks.validation_metrics import ValidationMetrics
from mm_lightning.data import Batch
from mm_lightning.memory.documents import IGNORE_INDEX
from mm_lightning.training.module import LanguageModule


class Accuracy(ValidationMetrics):
    """Log `validation/accuracy` at each validation and in `mm test`: the share of predicted tokens that are the most
    probable ones.

    Where only some tokens are predicted, such as the answers of associative recall (`mm data mqar`), it is their share.
    Lightning's EarlyStopping may end a run by it: {monitor: validation/accuracy, mode: max, stopping_threshold: 0.99}.
    """

    def __init__(self) -> None:
        # float64, because float32 loses count after 2^24
        super().__init__(MetricCollection({"accuracy": MeanMetric().set_dtype(torch.float64)}))

    def add(self, module: LanguageModule, batch: Batch) -> None:
        """Add the predicted tokens of a batch; logits exist for them alone."""
        predicted = batch.targets != IGNORE_INDEX
        x, _ = module.network.hidden_states(batch.tokens, batch.documents)
        best = module.network.classifier(x[predicted]).argmax(-1)
        self.metrics.update((best == batch.targets[predicted]).double())

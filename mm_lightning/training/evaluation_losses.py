"""The losses of validation and test: their means over tokens, and the metrics that are made of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from mm_lightning.data import TextDataModule
from mm_lightning.data.mixture import bits_per_byte, mean


class EvaluationLosses(torch.nn.ModuleList):
    """The mean loss over predicted tokens of each data set, in float64: float32 loses count after 2^24 tokens.

    Args:
        data_sets: number of data sets.
    """

    def __init__(self, data_sets: int = 1) -> None:
        self.means = [MeanMetric().set_dtype(torch.float64) for _ in range(data_sets)]
        super().__init__(self.means)

    def add(self, data_set: int, loss: Tensor, predicted: Tensor) -> None:
        """Add a batch: its mean loss, and the number of its predicted tokens."""
        self.means[data_set].update(loss.double(), weight=predicted)

    def compute(self, data: TextDataModule | None) -> dict[str, float]:
        """Return the metrics over all ranks by name (:func:`metric_names`), and start anew."""
        losses = [metric.compute().item() for metric in self.means]
        for metric in self.means:
            metric.reset()
        loss = losses[0] if data is None else mean(data.validated, losses)
        # `mm test` reads the validation documents too, all of them
        per_byte = [] if data is None else [bits_per_byte(data.validated, loss)]
        return dict(zip(metric_names(data), [loss, math.exp(min(loss, 700)), *per_byte, *losses], strict=False))


def metric_names(data: TextDataModule | None) -> list[str]:
    """Return the names of the metrics: weighted means over data sets and, of several data sets, the loss of each."""
    if data is None:
        return ["loss", "perplexity"]
    names = ["loss", "perplexity", "bits_per_byte"] if data.validated else []
    return names + ([f"loss/{s.name}" for s in data.validated] if len(data.validated) > 1 else [])

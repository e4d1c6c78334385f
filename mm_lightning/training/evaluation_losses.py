"""The losses of evaluation: means over tokens for validation and test, those of each document for `mm predict`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from mm_lightning.data import Batch, TextDataModule, Tokenizer
from mm_lightning.data.mixture import bits_per_byte, mean
from mm_lightning.memory.documents import IGNORE_INDEX


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


TEXT_TOKENS = 24
"""Tokens of a document's beginning that are shown as text."""


def document_losses(batch: Batch, logits: Tensor, tokenizer: Tokenizer, first: int) -> list[dict[str, Any]]:
    """Return the loss of every document of a batch; the part of a document in a sequence counts as one.

    Args:
        batch: a batch of B sequences.
        logits: (B, T, vocabulary).
        tokenizer: decodes the beginnings of documents.
        first: number of the batch's first sequence.

    Returns:
        For each document in stream order: its sequence, its number of tokens, how many of them were predicted, the mean
        loss in nats per predicted token, and how its text begins. Documents without a predicted token, such as the
        single tokens that fill up a row, are left out.
    """
    targets, lengths = batch.targets.flatten(), batch.documents.lengths
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets, ignore_index=IGNORE_INDEX, reduction="none")
    documents, begin = [], 0
    for loss, mask in zip(losses.split(lengths), (targets != IGNORE_INDEX).split(lengths), strict=True):
        if predicted := int(mask.sum()):
            head = batch.tokens.flatten()[begin : begin + min(len(loss), TEXT_TOKENS)]
            documents.append(
                {
                    "sequence": first + begin // batch.tokens.shape[1],
                    "tokens": len(loss),
                    "predicted": predicted,
                    "loss": float(loss.sum()) / predicted,
                    "text": tokenizer.decode(head.tolist()),
                }
            )
        begin += len(loss)
    return documents

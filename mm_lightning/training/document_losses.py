"""The loss of each document, as `mm predict` writes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mm_lightning.data import Batch, Tokenizer
from mm_lightning.memory.documents import IGNORE_INDEX

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

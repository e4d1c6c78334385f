"""The first sequences of each validation, for what looks inside a network in training."""

from __future__ import annotations

from mm_lightning.data import Batch
from mm_lightning.memory.documents import Documents


class ValidationRows:
    """Keeps the first sequences of the first validation batch: nothing is read that validation does not read.

    Args:
        sequences: how many at most; 0 keeps none.

    Attributes:
        batch: what was kept last.
    """

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences
        self.batch: Batch | None = None

    def take(self, batch: Batch, index: int) -> None:
        """Called with every batch of a validation and its number."""
        if index == 0 and self.sequences:
            part = slice(min(self.sequences, len(batch)))
            documents = Documents.from_starts(batch.documents.position[part] == 0)
            self.batch = Batch(batch.tokens[part], batch.targets[part], documents)

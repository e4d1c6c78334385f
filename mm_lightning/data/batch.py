"""A batch of packed documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mm_lightning.data.shards import unmarked
from mm_lightning.memory.documents import IGNORE_INDEX, Documents


@dataclass(eq=False)
class Batch:
    """B sequences of T tokens cut from a stream of documents.

    Attributes:
        tokens: (B, T) int64.
        targets: (B, T) int64, the token after each; -100 where that begins another document, or is never predicted.
        documents: where documents begin and end in `tokens`.
    """

    tokens: Tensor
    targets: Tensor
    documents: Documents

    @classmethod
    def from_sequences(cls, sequences: np.ndarray, bos: int, eos: int) -> Batch:
        """Return the batch made of (B, T + 1) consecutive tokens of the stream, of any integer type.

        A token that is read but never predicted is stored as ~token.
        """
        marked = sequences < 0
        sequences = unmarked(sequences)
        begins = sequences == bos
        if bos == eos:  # documents are not empty, so of two in a row the first is an end and the second a beginning
            begins[:, 1:] &= begins[:, :-1].copy()
        tokens, targets = sequences[:, :-1].astype(np.int64), sequences[:, 1:].astype(np.int64)
        targets[begins[:, 1:] | marked[:, 1:]] = IGNORE_INDEX
        # As Documents.from_starts, with numpy, which takes a fraction of the time for so few numbers.
        begins[:, 0] = True
        offsets = np.append(begins[:, :-1], True).nonzero()[0]
        lengths = offsets[1:] - offsets[:-1]
        position = np.arange(tokens.size)
        position -= np.repeat(offsets[:-1], lengths)
        documents = Documents(
            tuple(lengths.tolist()),
            torch.from_numpy(position.reshape(tokens.shape)),
            torch.from_numpy(offsets.astype(np.int32)),
        )
        return cls(torch.from_numpy(tokens), torch.from_numpy(targets), documents)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on another device."""
        tokens, targets = (x.to(device, non_blocking=non_blocking) for x in (self.tokens, self.targets))
        return Batch(tokens, targets, self.documents.to(device, non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, for asynchronous copies to a GPU."""
        return Batch(self.tokens.pin_memory(), self.targets.pin_memory(), self.documents.pin_memory())


@dataclass(frozen=True, eq=False)
class Packed:
    """The sequences of a batch, which unpickle as a :class:`Batch`: a tenth of the bytes for a worker to send."""

    sequences: np.ndarray
    bos: int
    eos: int

    def __reduce__(self) -> tuple:
        return Batch.from_sequences, (self.sequences, self.bos, self.eos)

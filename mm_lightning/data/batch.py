"""A batch of packed documents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents

IGNORED = -100


@dataclass(eq=False)
class Batch:
    """B sequences of T tokens cut from a stream of documents.

    Attributes:
        tokens: (B, T) int64.
        targets: (B, T) int64, the token after each; -100 where that begins another document.
        documents: where documents begin and end in `tokens`.
    """

    tokens: Tensor
    targets: Tensor
    documents: Documents

    @classmethod
    def from_sequences(cls, sequences: Tensor, bos: int, eos: int) -> Batch:
        """The batch that (B, T + 1) int64 consecutive tokens of the stream make."""
        begins = sequences == bos
        if bos == eos:  # documents are not empty, so of two in a row the first is an end and the second a beginning
            begins[:, 1:] &= begins[:, :-1].clone()
        tokens, targets = sequences[:, :-1].contiguous(), sequences[:, 1:].clone()
        targets[begins[:, 1:]] = IGNORED
        return cls(tokens, targets, Documents.from_starts(begins[:, :-1]))

    @classmethod
    def collate(cls, sequences: list[Tensor], bos: int, eos: int) -> Batch:
        """The batch of a list of (T + 1,) int64 sequences."""
        return cls.from_sequences(torch.stack(sequences), bos, eos)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        move = {"device": device, "non_blocking": non_blocking}
        return Batch(self.tokens.to(**move), self.targets.to(**move), self.documents.to(**move))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return Batch(self.tokens.pin_memory(), self.targets.pin_memory(), self.documents.pin_memory())

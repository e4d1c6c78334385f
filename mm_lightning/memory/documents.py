"""Where documents begin and end inside a batch of packed sequences.

Documents are the unit of a memory mosaic: the key recurrence, the look-ahead of values, every read, the count of
stored pairs and the positions of a transformer all restart at a document's first token. The boundaries are found
once a batch and travel as one :class:`Documents` object.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(eq=False)
class Documents:
    """Document boundaries of a batch of B packed sequences of T tokens.

    The batch is seen as one stream of B*T tokens, row after row. A row's first token always begins a document: one
    that goes on from the row before is cut there, so no document spans two rows.

    Attributes:
        lengths: the number of tokens of each document in stream order; they sum to B*T.
        position: (B, T) int64, each token's position in its document, counted from 0.
        offsets: (N + 1,) int32, where each of the N documents begins in the stream, and B*T at the end.
    """

    lengths: tuple[int, ...]
    position: Tensor
    offsets: Tensor

    @classmethod
    def from_starts(cls, starts: Tensor) -> Documents:
        """Boundaries from a (B, T) bool tensor that is true at each document's first token."""
        if starts.dim() != 2 or starts.dtype != torch.bool:
            raise ValueError(f"starts must be a (B, T) bool tensor, got {tuple(starts.shape)} {starts.dtype}")
        batch, time = starts.shape
        starts = starts.clone()
        starts[:, 0] = True
        index = torch.arange(batch * time, device=starts.device)
        begin = torch.where(starts.flatten(), index, 0).cummax(0).values
        first = starts.flatten().nonzero().flatten()
        offsets = torch.cat([first, first.new_tensor([batch * time])])
        return cls(tuple(offsets.diff().tolist()), (index - begin).view(batch, time), offsets.int())

    @classmethod
    def from_tokens(cls, tokens: Tensor, bos: int) -> Documents:
        """Boundaries of (B, T) tokens in which every document begins with the token `bos`."""
        return cls.from_starts(tokens == bos)

    @classmethod
    def whole(cls, batch: int, time: int, device: torch.device | str | None = None) -> Documents:
        """Every row is one document."""
        position = torch.arange(time, device=device).expand(batch, time)
        offsets = torch.arange(0, (batch + 1) * time, time, dtype=torch.int32, device=device)
        return cls((time,) * batch, position, offsets)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)"""
        return self.position.shape[0], self.position.shape[1]

    @cached_property
    def single(self) -> bool:
        """Whether every row is one document, which needs no splitting."""
        return len(self.lengths) == self.position.shape[0]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """(B, T) bool, whether a document begins there."""
        return self.position == 0

    def without_last(self, count: int) -> tuple[Tensor, Tensor]:
        """The stream without the last `count` tokens of each document.

        Returns:
            the positions in the stream that remain, (M,) int64, and where each document then begins, (N + 1,) int32.
            Kept for the next caller: all blocks of a network ask for the same few.
        """
        if count not in self._without_last:
            length = self.offsets.diff()
            total = sum(max(n - count, 0) for n in self.lengths)
            own = torch.repeat_interleave(length, length, output_size=self.position.numel())
            remains = self.position.flatten() < own - count
            # The static form, because the number is known here and asking the device would wait for it.
            index = torch.nonzero_static(remains, size=total).flatten()
            ends = (length - count).clamp(min=0).cumsum(0, dtype=torch.int32)
            self._without_last[count] = index, torch.cat([ends.new_zeros(1), ends])
        return self._without_last[count]

    @cached_property
    def _without_last(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Documents:
        """The same boundaries with their tensors on another device."""
        position = self.position.to(device, non_blocking=non_blocking)
        return replace(self, position=position, offsets=self.offsets.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Documents:
        """The same boundaries in page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, position=self.position.pin_memory(), offsets=self.offsets.pin_memory())

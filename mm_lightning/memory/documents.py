"""Document boundaries inside a batch of packed sequences, and the span of pairs that a memory reads.

The key recurrence, the look-ahead of values, every read, the count of stored pairs and the positions of a transformer
all restart at a document's first token. The boundaries are computed once a batch and passed on as :class:`Documents`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
"""The target of a token that predicts nothing: the last one of a document, and padding."""


@dataclass(frozen=True)
class Span:
    """The pairs t - delay - size + 1 .. t - delay that a query at t reads, within its document: equation (10).

    Attributes:
        delay: the age in tokens at which a pair becomes readable; 0 only for a transformer's attention.
        size: the largest number of pairs read, h - 1 for a short-term memory; None for all.
    """

    delay: int
    size: int | None = None

    def count(self, position: Tensor) -> Tensor:
        """Return n of equation (6), the number of pairs that a query at each position of its document reads."""
        return (position + 1 - self.delay).clamp(min=0, max=self.size)

    @property
    def keep(self) -> int | None:
        """The number of newest pairs that later queries can read, h for a short-term memory; None for all."""
        return None if self.size is None else self.delay + self.size


@dataclass(eq=False)
class Documents:
    """Document boundaries of B rows of T tokens: a packed batch, or the next chunk of B streams.

    In training and evaluation a row's first token always begins a document: one continued from the row before is cut
    there. A chunk that continues a state (`begin` > 0) may begin within a document, at `position`; `lengths` and
    `offsets` then count the parts of documents in the chunk.

    Attributes:
        lengths: the tokens of each document, row after row; they sum to B*T.
        position: (B, T) int64, each token's position in its document, counted from 0.
        offsets: (N + 1,) int32, where each of the N documents begins among the B*T tokens, and B*T at the end.
        begin: number of tokens of each row's stream before these.
        latest: with begin > 0, the largest place in any row's stream where its present document begins.
    """

    lengths: tuple[int, ...]
    position: Tensor
    offsets: Tensor
    begin: int = 0
    latest: int = 0
    _counts: dict[Span, Tensor] = field(default_factory=dict, init=False, repr=False)
    _without_last: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_starts(cls, starts: Tensor) -> Documents:
        """Return the boundaries of a (B, T) bool tensor that is true at each document's first token."""
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
        """Return the boundaries of (B, T) tokens in which every document begins with the token `bos`."""
        return cls.from_starts(tokens == bos)

    @classmethod
    def whole(cls, batch: int, time: int, device: torch.device | str | None = None) -> Documents:
        """Return the boundaries of rows that are one document each."""
        position = torch.arange(time, device=device).expand(batch, time)
        offsets = torch.arange(0, (batch + 1) * time, time, dtype=torch.int32, device=device)
        return cls((time,) * batch, position, offsets)

    @classmethod
    def following(cls, begin: int, first: Tensor, latest: int, time: int, starts: Tensor | None) -> Documents:
        """Return the boundaries of the next T tokens of B streams.

        Args:
            begin: number of tokens before these.
            first: (B,) int64, where in the stream each row's document begins.
            latest: the largest of `first`, known without asking the device.
            time: T.
            starts: (B, T) bool, where documents begin; None if nowhere.
        """
        index = torch.arange(begin, begin + time, device=first.device)
        if starts is None:
            chunk = cls.whole(len(first), time, first.device)
            return cls(chunk.lengths, index - first[:, None], chunk.offsets, begin, latest)
        chunk = cls.from_starts(starts)
        firsts = torch.where(starts, index, -1).cummax(1).values.maximum(first[:, None])
        return cls(chunk.lengths, index - firsts, chunk.offsets, begin, int(firsts.max()))

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (B, T) of the tokens."""
        return self.position.shape[0], self.position.shape[1]

    @cached_property
    def single(self) -> bool:
        """Whether every row is one document."""
        return len(self.lengths) == self.position.shape[0]

    @cached_property
    def longest(self) -> int:
        """The number of tokens of the longest document."""
        return max(self.lengths)

    @cached_property
    def starts(self) -> Tensor:
        """A (B, T) bool tensor, true at the first token of each document."""
        return self.position == 0

    @property
    def begins_here(self) -> bool:
        """Whether a document may begin in these tokens."""
        return self.latest >= self.begin

    @property
    def step(self) -> bool:
        """Whether this is a decoding step: a single token of each row that continues a state."""
        return self.begin > 0 and self.position.shape[1] == 1

    def count(self, span: Span) -> Tensor:
        """Return n of equation (6) for each token, (B, T); computed once for all blocks of a network."""
        if span not in self._counts:
            self._counts[span] = span.count(self.position)
        return self._counts[span]

    @cached_property
    def carried(self) -> Documents:
        """The boundaries of the chunk and one more token before it in each row, which stands for all earlier ones."""
        batch, time = self.shape
        if not self.begins_here:
            return Documents.whole(batch, time + 1, self.position.device)
        return Documents.from_starts(F.pad(self.starts, (1, 0), value=True))

    def without_last(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the B*T tokens without the last `count` of each document; computed once for all blocks of a network.

        Returns:
            (M,) int64, the indices that remain, and (N + 1,) int32, the offsets of the documents among them.
        """
        if count not in self._without_last:
            length = self.offsets.diff()
            total = sum(max(n - count, 0) for n in self.lengths)
            lengths = torch.repeat_interleave(length, length, output_size=self.position.numel())
            remains = self.position.flatten() < lengths - count
            # The static form: the number is known on the host, and `nonzero` would be a host sync.
            index = torch.nonzero_static(remains, size=total).flatten()
            ends = (length - count).clamp(min=0).cumsum(0, dtype=torch.int32)
            self._without_last[count] = index, torch.cat([ends.new_zeros(1), ends])
        return self._without_last[count]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Documents:
        """Return the boundaries with their tensors on another device."""
        position = self.position.to(device, non_blocking=non_blocking)
        return replace(self, position=position, offsets=self.offsets.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Documents:
        """Return the boundaries in page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, position=self.position.pin_memory(), offsets=self.offsets.pin_memory())

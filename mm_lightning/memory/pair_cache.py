"""The pairs of a memory that later queries may read, kept from one chunk of a stream to the next."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents, Span

BLOCK = 128
"""Queries that are answered together."""


class Reader(Protocol):
    """What answers queries from pairs: a :class:`mm_lightning.memory.retrieval.Retrieval`."""

    softmax: bool
    """Whether its answers are those of equation (4), which parts of the pairs can be read for by themselves."""

    def answer_scaled(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
        """Return (B, H, T, D) answers to queries of this shape.

        Args:
            q: queries with their bandwidth.
            k, v: (B, G, N, D) keys and values.
            seen: (1 or B, 1, T, N) bool, which pairs each query reads; None: all.
            scale: a further factor on q.k.
        """


class PairCache:
    """The pairs of a memory that later queries may read, in buffers that are allocated ahead.

    The newest pair's value may still be missing: it waits for the next token.

    Args:
        keep: how many of the newest pairs can ever be read again; None for all.
        capacity: pairs to make room for at first.

    Attributes:
        keys: (B, G, capacity, D), of which those from the stream's token `offset` to `end` hold something.
        values: the same.
    """

    multiple = 1
    """What the capacity is a multiple of."""

    def __init__(self, keep: int | None = None, capacity: int = 0) -> None:
        self.keep, self.capacity = keep, capacity
        self.offset = self.end = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def buffers(self) -> tuple[Tensor, Tensor]:
        """Keys and values, of which something was written."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def write_first(self, keys: Tensor, values: Tensor) -> None:
        """Take in the first chunk's pairs, (B, T, G, D): those that can be read again."""
        unread = 0 if self.keep is None else max(0, keys.shape[1] - self.keep)
        self.offset = self.end = unread
        self.write(keys[:, unread:], values[:, unread:])

    def write(self, keys: Tensor, values: Tensor, late: int = 0) -> None:
        """Append a chunk's pairs.

        Args:
            keys: (B, T, G, D).
            values: (B, T', G, D), of which the first belongs to the pair `late` before the chunk's first one.
            late: 0 or 1.
        """
        time = keys.shape[1]
        at = self.place(time, keys)
        stored_keys, stored_values = self.buffers
        stored_keys.narrow(2, at, time).copy_(keys.transpose(1, 2))
        stored_values.narrow(2, at - late, values.shape[1]).copy_(values.transpose(1, 2))

    def place(self, time: int, like: Tensor) -> int:
        """Return where in the buffers the next `time` pairs, (B, ..., G, D) as `like`, go; make room for them."""
        self._make_room(time, like)
        self.end += time
        return self.end - time - self.offset

    def read(self, q: Tensor, span: Span, documents: Documents, reader: Reader, scale: float = 1.0) -> Tensor:
        """Return answers (B, T, H, D) to the queries of the chunk that was last written."""
        return self._read(q, *self.buffers, span, documents, reader, scale)

    def _read(
        self, q: Tensor, keys: Tensor, values: Tensor, span: Span, documents: Documents, reader: Reader, scale: float
    ) -> Tensor:
        outputs = []
        for at in range(0, q.shape[1], BLOCK):
            block = q[:, at : at + BLOCK].transpose(1, 2)
            size, here = block.shape[2], documents.begin + at
            low = 0 if span.size is None else max(0, here - span.delay - span.size + 1)
            high = here + size - span.delay
            if high <= low:
                outputs.append(torch.zeros_like(block))
                continue
            within = documents.latest > low  # a document begins among these pairs
            seen = visible(low, high, at, size, span, documents, within) if size > 1 or within else None
            part = slice(low - self.offset, high - self.offset)
            outputs.append(reader.answer_scaled(block, keys[:, :, part], values[:, :, part], seen, scale))
        found = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return found.transpose(1, 2)

    def tensors(self) -> dict[str, Tensor]:
        """Return what it holds, rows first; the last axis but one of keys and values ends with the newest pair."""
        if self.keys is None or self.values is None:
            return {}
        end = self.end - self.offset
        used = slice(0 if self.keep is None else max(0, end - self.keep), end)
        keys, values = self._in_time()
        return {"keys": keys[:, :, used], "values": values[:, :, used]}

    def _in_time(self) -> tuple[Tensor, Tensor]:
        """The buffers with their pairs in the order of their tokens."""
        return self.buffers

    def load(self, tensors: dict[str, Tensor], length: int) -> None:
        """Take what :meth:`tensors` gave after `length` tokens."""
        if "keys" in tensors:
            self.offset = self.end = length - tensors["keys"].shape[2]
            self.write(tensors["keys"].transpose(1, 2), tensors["values"].transpose(1, 2))

    def mark(self) -> Any:
        """Return what :meth:`rewind` needs. Only a window's pairs are copied: what only grows loses nothing."""
        window = None if self.keep is None or self.keys is None else tuple(x.clone() for x in self.buffers)
        return self.offset, self.end, window

    def rewind(self, mark: Any) -> None:
        """Forget what was written since a mark."""
        self.offset, self.end, window = mark
        if window is not None:
            self.keys, self.values = window

    def _make_room(self, time: int, like: Tensor) -> None:
        used = self.end - self.offset
        if self.keys is None or self.values is None:
            wanted = max(time, self.capacity) if self.keep is None else max(time, self.keep) + self.keep
            shape = like.shape[0], like.shape[-2], self._whole(wanted), like.shape[-1]
            self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
            return
        room = self.keys.shape[2]
        if used + time <= room:
            return
        kept = used if self.keep is None else min(used, self.keep)
        grown = self.keys, self.values
        if kept + time > room:
            size = (*self.keys.shape[:2], self._whole(max(2 * room, kept + time)), self.keys.shape[3])
            grown = self.keys.new_zeros(size), self.values.new_zeros(size)
        for new, old in zip(grown, (self.keys, self.values), strict=True):
            part = old[:, :, used - kept : used]
            new[:, :, :kept] = part.clone() if new is old else part
        self.keys, self.values = grown
        self.offset = self.end - kept

    def _whole(self, count: int) -> int:
        return -(-count // self.multiple) * self.multiple


def visible(low: int, high: int, at: int, size: int, span: Span, documents: Documents, within: bool) -> Tensor:
    """Return which of the pairs low to high - 1 of a stream are read by `size` queries from the chunk's token `at` on.

    Args:
        low, high, at, size: as said.
        span: what a query reads.
        documents: where documents begin.
        within: whether documents must be told apart.

    Returns:
        (1 or B, 1, size, high - low) bool.
    """
    position = documents.position[:, at : at + size]
    index = torch.arange(low, high, device=position.device)
    time = documents.begin + torch.arange(at, at + size, device=index.device)
    age = time[:, None] - index
    seen = age >= span.delay
    if span.size is not None:
        seen &= age < span.delay + span.size
    if within:
        return (seen & (age <= position[..., None]))[:, None]
    return seen[None, None]

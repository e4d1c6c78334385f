"""The KV cache of one memory: the pairs that later queries may read, kept from one chunk of a stream to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents, Span

TILE = 128
"""Queries that are answered together."""

Answer = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""Answers to queries: :meth:`Reader.answer_scaled`."""


class Reader(Protocol):
    """An object that answers queries from pairs: a :class:`mm_lightning.memory.retrieval.Retrieval`."""

    softmax: bool
    """Whether its answers are those of equation (4), so that parts of the pairs can be read separately."""

    def answer_scaled(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
        """Return (B, H, T, D) answers to queries of this shape.

        Args:
            q: queries with their bandwidth.
            k, v: (B, G, N, D) keys and values.
            seen: (1 or B, 1, T, N) bool, which pairs each query reads; None: all.
            scale: a further factor on q.k.
        """


class PairCache:
    """The pairs of a memory that later queries may read, in preallocated buffers that grow by doubling.

    The newest pair's value may still be missing: it waits for the next token (9).

    Args:
        keep: how many of the newest pairs can ever be read again; None for all.
        capacity: pairs to preallocate.

    Attributes:
        buffers: keys and values, (B, G, capacity, D) each, none before the first write; the pair of the stream's token
            t, offset <= t < end, lies at t - offset.
    """

    multiple = 1
    """The number of pairs that the capacity is a multiple of."""

    def __init__(self, keep: int | None = None, capacity: int = 0) -> None:
        self.keep, self.capacity = keep, capacity
        self.offset = self.end = 0
        self.buffers: tuple[Tensor, ...] = ()

    def write_first(self, keys: Tensor, values: Tensor) -> None:
        """Store the first chunk's pairs, (B, T, G, D), as far as they can be read again."""
        unread = 0 if self.keep is None else max(0, keys.shape[1] - self.keep)
        self.offset = self.end = unread
        self.write(keys[:, unread:], values[:, unread:])

    def write(self, keys: Tensor, values: Tensor, late: int = 0) -> None:
        """Append a chunk's pairs.

        Args:
            keys: (B, T, G, D).
            values: (B, T', G, D), beginning with that of the pair `late` before the chunk's first one.
            late: 0, or 1 if a value is complete one token later than its key.
        """
        time = keys.shape[1]
        at = self.place(time, keys)
        stored_keys, stored_values = self.buffers
        stored_keys.narrow(2, at, time).copy_(keys.transpose(1, 2))
        stored_values.narrow(2, at - late, values.shape[1]).copy_(values.transpose(1, 2))

    def place(self, time: int, like: Tensor) -> int:
        """Make room for the next `time` pairs, (B, ..., G, D) as `like`, and return their place in the buffers."""
        self._make_room(time, like)
        self.end += time
        return self.end - time - self.offset

    def read(self, q: Tensor, span: Span, documents: Documents, reader: Reader, scale: float = 1.0) -> Tensor:
        """Return answers (B, T, H, D) to the queries (B, T, H, D) of the chunk that was last written."""
        return read_in_tiles(reader.answer_scaled, q, self.buffers, self.offset, span, documents, scale)

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored pairs, (B, G, N, D) each, in the order of their tokens; empty before the first write."""
        if not self.buffers:
            return {}
        end = self.end - self.offset
        readable = slice(0 if self.keep is None else max(0, end - self.keep), end)
        keys, values = self._in_time()
        return {"keys": keys[:, :, readable], "values": values[:, :, readable]}

    def _in_time(self) -> tuple[Tensor, ...]:
        """Return the buffers with their pairs in the order of their tokens."""
        return self.buffers

    def load(self, tensors: dict[str, Tensor], length: int) -> None:
        """Restore what :meth:`tensors` returned after `length` tokens."""
        if "keys" in tensors:
            self.offset = self.end = length - tensors["keys"].shape[2]
            self.write(tensors["keys"].transpose(1, 2), tensors["values"].transpose(1, 2))

    def mark(self) -> Any:
        """Return a mark for :meth:`rewind`. Only a window's pairs are copied: a cache that only grows loses none."""
        window = None if self.keep is None else tuple(x.clone() for x in self.buffers)
        return self.offset, self.end, window

    def rewind(self, mark: Any) -> None:
        """Remove the pairs that were written since a mark."""
        self.offset, self.end, window = mark
        if window is not None:
            self.buffers = window

    def _make_room(self, time: int, like: Tensor) -> None:
        used = self.end - self.offset
        if not self.buffers:
            capacity = max(time, self.capacity) if self.keep is None else max(time, self.keep) + self.keep
            shape = like.shape[0], like.shape[-2], self._round_up(capacity), like.shape[-1]
            self.buffers = like.new_zeros(shape), like.new_zeros(shape)
            return
        batch, heads, room, dim = self.buffers[0].shape
        if used + time <= room:
            return
        retained = used if self.keep is None else min(used, self.keep)  # the newest pairs
        grown = self.buffers
        if retained + time > room:
            size = batch, heads, self._round_up(max(2 * room, retained + time)), dim
            grown = tuple(x.new_zeros(size) for x in self.buffers)
        for new, old in zip(grown, self.buffers, strict=True):
            part = old[:, :, used - retained : used]
            new[:, :, :retained] = part.clone() if new is old else part
        self.buffers = grown
        self.offset = self.end - retained

    def _round_up(self, count: int) -> int:
        return -(-count // self.multiple) * self.multiple


def read_in_tiles(
    answer: Answer, q: Tensor, pairs: tuple[Tensor, ...], offset: int, span: Span, documents: Documents, scale: float
) -> Tensor:
    """Return answers (B, T, H, D) to the queries of a chunk, one tile after the other, each from the pairs it can see.

    Args:
        answer: computes those of a tile.
        q: (B, T, H, D) queries with their bandwidth.
        pairs: keys and values, (B, G, N, D) each, of the stream's tokens from `offset` on.
        offset: the token that the first key belongs to.
        span: the pairs a query reads.
        documents: the chunk's; its first token is the stream's token `documents.begin`.
        scale: a further factor on q.k.
    """
    outputs = []
    for at in range(0, q.shape[1], TILE):
        tile = q[:, at : at + TILE].transpose(1, 2)
        size, now = tile.shape[2], documents.begin + at
        low = 0 if span.size is None else max(0, now - span.delay - span.size + 1)
        high = now + size - span.delay
        if high <= low:
            outputs.append(torch.zeros_like(tile))
            continue
        # Whether a document begins among these pairs
        within = documents.latest > low if documents.begin else not documents.single
        seen = visible(low, high, at, size, span, documents, within) if size > 1 or within else None
        part = slice(low - offset, high - offset)
        k, v = (x[:, :, part] for x in pairs)
        outputs.append(answer(tile, k, v, seen, scale))
    return torch.cat(outputs, 2).transpose(1, 2) if len(outputs) > 1 else outputs[0].transpose(1, 2)


def visible(low: int, high: int, at: int, size: int, span: Span, documents: Documents, within: bool) -> Tensor:
    """Return which of the stream's pairs low to high - 1 the chunk's queries at to at + size - 1 read.

    Args:
        low, high: tokens of the stream.
        at, size: queries, counted from the chunk's first token.
        span: the pairs a query reads.
        documents: where documents begin.
        within: whether a document may begin after `low`, so that pairs of earlier ones are left out.

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

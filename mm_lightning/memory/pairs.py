"""Where a chunk of a stream stands, and the pairs that it adds to a memory, kept for the queries to come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.blocks import Blocks, BlockStore
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.retrieval import BLOCK, Span, fused_attention, read


@dataclass(eq=False)
class Chunk:
    """The next T tokens of each of B rows, and where they stand in their stream.

    Attributes:
        begin: tokens of the stream before these.
        first: (B, T) int64, where in the stream each token's document begins.
        latest: the largest of `first`, known without asking the device.
        starts: (B, T) bool, where documents begin; None if nowhere.
    """

    begin: int
    first: Tensor
    latest: int
    starts: Tensor | None

    @property
    def time(self) -> int:
        """T"""
        return self.first.shape[1]

    @cached_property
    def position(self) -> Tensor:
        """(B, T) int64, each token's position in its document."""
        return torch.arange(self.begin, self.begin + self.time, device=self.first.device) - self.first

    def count(self, span: Span) -> Tensor:
        """:meth:`Span.count` of the positions, once for all blocks."""
        if span not in self._counts:
            self._counts[span] = span.count(self.position)
        return self._counts[span]

    def counts(self, spans: tuple[Span, ...], heads: int) -> Tensor:
        """(B, n H) counts of a single token for the H heads that read each of n spans, once for all blocks."""
        if spans not in self._counts:
            self._counts[spans] = torch.cat([self.count(span).expand(-1, heads) for span in spans], 1)
        return self._counts[spans]

    @cached_property
    def _counts(self) -> dict[Any, Tensor]:
        return {}

    @cached_property
    def documents(self) -> Documents:
        """Of the chunk alone: a document that goes on from before it is cut."""
        if self.starts is None:
            return Documents.whole(self.first.shape[0], self.time, self.first.device)
        return Documents.from_starts(self.starts)

    @cached_property
    def carried(self) -> Documents:
        """Of the chunk behind one more token, which stands for all that came before."""
        if self.starts is None:
            return Documents.whole(self.first.shape[0], self.time + 1, self.first.device)
        return Documents.from_starts(F.pad(self.starts, (1, 0), value=True))


class Pairs:
    """The pairs of a memory that later queries may read, in buffers that are allocated ahead.

    The newest pair's value may still be missing: it waits for the next token.

    Args:
        keep: how many of the newest pairs can ever be read again; None for all.
        capacity: pairs to make room for at first.
        store: how single queries read many pairs by blocks; the keys must have a norm of 1, but for rounding. None:
            every pair.
        kernels: what reads those blocks.

    Attributes:
        blocks: the part that is sorted for it, None without a store.
        keys: (B, G, capacity, D), of which those from the stream's token `offset` to `end` hold something.
        values: the same.
        raw: (B, G, D), the raw value that waits for its look-ahead.
    """

    def __init__(
        self, keep: int | None, capacity: int, store: BlockStore | None = None, kernels: Kernels = "auto"
    ) -> None:
        self.keep, self.capacity = keep, capacity
        self.blocks = None if store is None else Blocks(store, kernels)
        self.offset = self.end = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.raw: Tensor | None = None

    def write(self, keys: Tensor, values: Tensor, late: int = 0) -> None:
        """Appends a chunk's pairs.

        Args:
            keys: (B, T, G, D).
            values: (B, T', G, D), of which the first belongs to the pair `late` before the chunk's first one.
            late: 0 or 1.
        """
        time = keys.shape[1]
        at = self.place(time, keys)
        assert self.keys is not None
        assert self.values is not None
        self.keys.narrow(2, at, time).copy_(keys.transpose(1, 2))
        self.values.narrow(2, at - late, values.shape[1]).copy_(values.transpose(1, 2))

    def place(self, time: int, like: Tensor) -> int:
        """Where in the buffers the next `time` pairs, (B, ..., G, D) as `like`, go; makes room for them."""
        self._make_room(time, like)
        self.end += time
        return self.end - time - self.offset

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, rows first; the last axis but one of keys and values ends with the newest pair."""
        if self.keys is None or self.values is None:
            return {}
        end = self.end - self.offset
        used = slice(0 if self.keep is None else max(0, end - self.keep), end)
        raw = {} if self.raw is None else {"raw": self.raw}
        both = self.keys, self.values
        keys, values = both if self.blocks is None else (self.blocks.in_time(x) for x in both)
        return {"keys": keys[:, :, used], "values": values[:, :, used], **raw}

    def load(self, tensors: dict[str, Tensor], length: int) -> None:
        """Takes what :meth:`tensors` gave after `length` tokens."""
        if "keys" in tensors:
            self.offset = self.end = length - tensors["keys"].shape[2]
            self.write(tensors["keys"].transpose(1, 2), tensors["values"].transpose(1, 2))
            self.raw = tensors.get("raw")

    def mark(self) -> Any:
        """For :meth:`rewind`. Only a window's pairs are copied: a store that grows loses nothing by what is added."""
        window = None if self.keep is None or self.keys is None or self.values is None else (self.keys, self.values)
        in_blocks = 0 if self.blocks is None else self.blocks.end
        raw = None if self.raw is None else self.raw.clone()
        return self.offset, self.end, raw, window and tuple(x.clone() for x in window), in_blocks

    def rewind(self, mark: Any) -> None:
        """See :meth:`State.rewind`."""
        self.offset, self.end, self.raw, window, in_blocks = mark
        if self.blocks is not None and self.blocks.end > in_blocks and self.keys is not None:
            assert self.values is not None
            self.blocks.give_up(self.keys, self.values)
        if window is not None:
            self.keys, self.values = window

    def _make_room(self, time: int, like: Tensor) -> None:
        used = self.end - self.offset
        whole = 1 if self.blocks is None else self.blocks.settings.block
        if self.keys is None or self.values is None:
            wanted = time if self.keep is None else max(time, self.keep) + self.keep
            shape = (
                like.shape[0],
                like.shape[-2],
                -(-max(wanted, self.capacity if self.keep is None else 0) // whole) * whole,
                like.shape[-1],
            )
            self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
            return
        room = self.keys.shape[2]
        if used + time <= room:
            return
        kept = used if self.keep is None else min(used, self.keep)
        if kept + time > room:
            size = (*self.keys.shape[:2], -(-max(2 * room, kept + time) // whole) * whole, self.keys.shape[3])
            grown = self.keys.new_zeros(size), self.values.new_zeros(size)
        else:
            grown = self.keys, self.values
        for new, old in zip(grown, (self.keys, self.values), strict=True):
            part = old[:, :, used - kept : used]
            new[:, :, :kept] = part.clone() if new is old else part
        self.keys, self.values = grown
        self.offset = self.end - kept

    def ask(self, q: Tensor, k: Tensor, v: Tensor, span: Span, chunk: Chunk, scale: float = 1.0) -> Tensor:
        """Stores a chunk's pairs, keys and values (B, T, G, D), and answers its queries (B, T, H, D)."""
        if self.end == 0:
            self.write_first(k, v)
            return read(q, k, v, span, chunk.documents, scale)
        self.write(k, v)
        return self.read(q, span, chunk, scale)

    def write_first(self, keys: Tensor, values: Tensor, raw: Tensor | None = None) -> None:
        """Of the first chunk, what can be read again, and the last of its raw values."""
        self.raw = None if raw is None else raw[:, -1]
        unread = 0 if self.keep is None else max(0, keys.shape[1] - self.keep)
        self.offset = self.end = unread
        self.write(keys[:, unread:], values[:, unread:])

    def read(self, q: Tensor, span: Span, chunk: Chunk, scale: float = 1.0) -> Tensor:
        """Equation (4) for the queries of the chunk that was last written, (B, T, H, D)."""
        assert self.keys is not None
        assert self.values is not None
        if self.blocks is not None:
            readable = chunk.begin + 1 - span.delay
            self.blocks.follow(self.keys, self.values, chunk.latest, chunk.first)
            if chunk.time == 1 and self.blocks.worthwhile(readable):
                self.blocks.extend(self.keys, self.values, readable)
                return self.blocks.read(q[:, 0], self.keys, self.values, readable, chunk.first[:, 0])[:, None]
        outputs = []
        for at in range(0, chunk.time, BLOCK):
            block = q[:, at : at + BLOCK].transpose(1, 2)
            size = block.shape[2]
            here = chunk.begin + at
            low = 0 if span.size is None else max(0, here - span.delay - span.size + 1)
            high = here + size - span.delay
            if high <= low:
                outputs.append(torch.zeros_like(block))
                continue
            seen = None
            if size > 1 or chunk.latest > low:
                seen = self._seen(low, high, at, size, span, chunk)
            part = slice(low - self.offset, high - self.offset)
            found = fused_attention(block, self.keys[:, :, part], self.values[:, :, part], seen, scale=scale)
            if seen is not None:
                found = found.masked_fill(~seen.any(-1, keepdim=True), 0)
            outputs.append(found)
        found = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return found.transpose(1, 2)

    @staticmethod
    def _seen(low: int, high: int, at: int, size: int, span: Span, chunk: Chunk) -> Tensor:
        """(1 or B, 1, size, high - low) bool: which pairs the queries from `at` on read."""
        index = torch.arange(low, high, device=chunk.first.device)
        age = chunk.begin + torch.arange(at, at + size, device=index.device)[:, None] - index
        seen = age >= span.delay
        if span.size is not None:
            seen &= age < span.delay + span.size
        if chunk.latest > low:
            seen = seen & (index >= chunk.first[:, at : at + size, None])
            return seen[:, None]
        return seen[None, None]

"""What a memory must remember between one token and the next: the state of inference.

A stream of tokens is fed to a network in chunks of any length, a single token being the smallest. What lies between two
chunks is exactly what the equations need: the key average with its log scale (8), the raw value that waits for its
look-ahead (9), and the pairs that later queries may read (4): all of them for a memory without a window, the newest few
for one with. Rows of a batch go on side by side. Where a row's document begins is a number of the row, so that rows of
unequal lengths (padded on the left) and documents that end and begin anywhere need no mechanism of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.blocks import Blocks, BlockStore
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.features import FrozenValues
from mm_lightning.memory.recurrence import EPS, gated_average_from, gated_step
from mm_lightning.memory.retrieval import BLOCK, Span, read


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

    @cached_property
    def _counts(self) -> dict[Span, Tensor]:
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


class Average:
    """The key average (8) of a memory: kbar_t = exp(scale) total, with total (B, H, D) and scale (B, H) in float64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.scale: Tensor | None = None

    def extend(self, ktilde: Tensor, gate: Tensor, decay: Tensor, chunk: Chunk) -> Tensor:
        """The keys of a chunk, (B, T, H, D); arguments as for :func:`gated_average`."""
        if self.total is None or self.scale is None:
            keys, self.total, self.scale = gated_average_from(ktilde, gate, decay, chunk.documents)
            return keys
        if chunk.time == 1:
            if chunk.starts is not None:
                self.scale = self.scale.masked_fill(chunk.starts, -torch.inf)
            self.total, self.scale = gated_step(
                ktilde[:, 0], gate[:, 0].double(), decay[:, 0].double(), self.total, self.scale
            )
            return F.normalize(self.total, dim=-1, eps=EPS).to(ktilde.dtype)[:, None]
        raw = torch.cat([self.total[:, None], ktilde.to(self.total.dtype)], 1)
        gate = torch.cat([self.scale[:, None], gate.double()], 1)
        keys, self.total, self.scale = gated_average_from(raw, gate, F.pad(decay, (0, 0, 1, 0)), chunk.carried)
        return keys[:, 1:].to(ktilde.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, rows first."""
        return {} if self.total is None or self.scale is None else {"total": self.total, "scale": self.scale}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes what :meth:`tensors` gave."""
        self.total, self.scale = tensors.get("total"), tensors.get("scale")

    def mark(self) -> Any:
        """For :meth:`rewind`."""
        return self.total, self.scale  # never changed in place

    def rewind(self, mark: Any) -> None:
        """See :meth:`State.rewind`."""
        self.total, self.scale = mark


class Pairs:
    """The pairs of a memory that later queries may read, in buffers that are allocated ahead.

    The newest pair's value may still be missing: it waits for the next token.

    Args:
        keep: how many of the newest pairs can ever be read again; None for all.
        capacity: pairs to make room for at first.
        store: how single queries read many pairs by blocks; the keys must have a norm of 1. None: every pair.

    Attributes:
        blocks: the part that is sorted for it, None without a store.
        keys: (B, G, capacity, D), of which those from the stream's token `offset` to `end` hold something.
        values: the same.
        raw: (B, G, D), the raw value that waits for its look-ahead.
    """

    def __init__(self, keep: int | None, capacity: int, store: BlockStore | None = None) -> None:
        self.keep, self.capacity = keep, capacity
        self.blocks = None if store is None else Blocks(store)
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
        self._make_room(time, keys)
        assert self.keys is not None
        assert self.values is not None
        at = self.end - self.offset
        self.keys[:, :, at : at + time] = keys.transpose(1, 2)
        self.values[:, :, at - late : at - late + values.shape[1]] = values.transpose(1, 2)
        self.end += time

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
        return self.offset, self.end, self.raw, window and tuple(x.clone() for x in window), in_blocks

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
                like.shape[2],
                -(-max(wanted, self.capacity if self.keep is None else 0) // whole) * whole,
                like.shape[3],
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
            found = F.scaled_dot_product_attention(
                block, self.keys[:, :, part], self.values[:, :, part], seen, scale=scale, enable_gqa=self._grouped(q)
            )
            if seen is not None:
                found = found.masked_fill(~seen.any(-1, keepdim=True), 0)
            outputs.append(found)
        found = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return found.transpose(1, 2)

    def _grouped(self, q: Tensor) -> bool:
        assert self.keys is not None
        return self.keys.shape[1] != q.shape[2]

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


class Memory:
    """The state of one memory unit: its key average, and its pairs if it stores any.

    Args:
        pairs: where it stores them.
        bandwidth: of numbers of pairs, with the parameters as they are.
        values: how values are made, likewise.
    """

    def __init__(
        self,
        pairs: Pairs | None = None,
        bandwidth: Callable[[Tensor], Tensor] | None = None,
        values: FrozenValues | None = None,
    ) -> None:
        self.average = Average()
        self.pairs, self.bandwidth, self.values = pairs, bandwidth, values

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, rows first."""
        return {**self.average.tensors(), **({} if self.pairs is None else self.pairs.tensors())}

    def load(self, tensors: dict[str, Tensor], length: int) -> None:
        """Takes what :meth:`tensors` gave after `length` tokens."""
        self.average.load(tensors)
        if self.pairs is not None:
            self.pairs.load(tensors, length)

    def mark(self) -> Any:
        """For :meth:`rewind`."""
        return self.average.mark(), None if self.pairs is None else self.pairs.mark()

    def rewind(self, mark: Any) -> None:
        """See :meth:`State.rewind`."""
        average, pairs = mark
        self.average.rewind(average)
        if self.pairs is not None:
            self.pairs.rewind(pairs)

    def ask(self, k: Tensor, raw: Tensor, span: Span, chunk: Chunk) -> Tensor:
        """Stores the pairs of a chunk that is not the first, and answers its keys.

        Args:
            k: (B, T, H, D) keys.
            raw: (B, T, H, D) raw values.
            span: what a query reads.
            chunk: where the tokens stand.

        Returns:
            (B, T, H, D)
        """
        pairs = self.pairs
        assert pairs is not None
        assert pairs.raw is not None
        assert self.bandwidth is not None
        assert self.values is not None
        # The last pair's value is not complete yet; that of a document's last token never is, and nothing reads it.
        before = pairs.raw[:, None]
        if chunk.time > 1:
            before = torch.cat([before, raw[:, :-1]], 1)
        pairs.write(k, self.values.of(before, raw), 1)
        pairs.raw = raw[:, -1]
        beta = self.bandwidth(chunk.count(span))
        return pairs.read(k * beta[..., None].to(k.dtype), span, chunk)


class State:
    """All that a network carries from one chunk of a stream to the next.

    Args:
        parts: the state of each memory (or attention), by the name of its module.
        batch: rows, B.
        device: of the tensors.

    Attributes:
        length: tokens of the stream so far, the same for every row.
    """

    def __init__(self, parts: dict[str, Memory | Pairs], batch: int, device: torch.device) -> None:
        self.parts = parts
        self.length = 0
        self._first = torch.zeros(batch, dtype=torch.int64, device=device)
        self._latest = 0

    def chunk(self, batch: int, time: int, starts: Tensor | None) -> Chunk:
        """The next tokens of the stream; `starts` (B, T) bool is true where documents begin."""
        if batch != len(self._first):
            raise ValueError(f"the state is of {len(self._first)} rows, the tokens are of {batch}")
        if starts is None:
            return Chunk(self.length, self._first[:, None].expand(batch, time), self._latest, None)
        if starts.shape != (batch, time) or starts.dtype != torch.bool:
            raise ValueError(
                f"starts must be a ({batch}, {time}) bool tensor, got {tuple(starts.shape)} {starts.dtype}"
            )
        index = torch.arange(self.length, self.length + time, device=starts.device)
        first = torch.where(starts, index, -1).cummax(1).values.maximum(self._first[:, None])
        return Chunk(self.length, first, int(first.max()), starts)

    def advance(self, chunk: Chunk) -> None:
        """Counts a chunk that every part has taken in."""
        self.length += chunk.time
        self._first, self._latest = chunk.first[:, -1], chunk.latest

    def tensors(self) -> dict[str, Tensor]:
        """Everything in it by name, rows first: what a file of it holds."""
        found = {f"{name}.{key}": x for name, part in self.parts.items() for key, x in part.tensors().items()}
        return {**found, "first": self._first, "length": torch.full_like(self._first, self.length)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes what :meth:`tensors` gave; this state must be a new one of the same network.

        Raises:
            ValueError: the tensors are of another network.
        """
        known = {name.rpartition(".")[0] for name in tensors} - {""}
        if known - set(self.parts):
            raise ValueError(f"the state is of another network: it has {sorted(known - set(self.parts))[0]}")
        self.length, self._first = int(tensors["length"][0]), tensors["first"]
        self._latest = int(self._first.max())
        for name, part in self.parts.items():
            begin = name + "."
            part.load({key.removeprefix(begin): x for key, x in tensors.items() if key.startswith(begin)}, self.length)

    def rows(self, index: Tensor, empty: State) -> State:
        """The chosen rows, any of them as often as wanted, as a state that goes on by itself.

        Args:
            index: (B',) int64.
            empty: a new state of the same network with B' rows, which is filled and returned.
        """
        empty.load({name: x.index_select(0, index) for name, x in self.tensors().items()})
        return empty

    def mark(self) -> Any:
        """The present, to which :meth:`rewind` goes back. Costs O(h), whatever the length."""
        return self.length, self._first, self._latest, {name: part.mark() for name, part in self.parts.items()}

    def rewind(self, mark: Any) -> None:
        """Forgets all that was read since a mark, which can be used once."""
        self.length, self._first, self._latest, parts = mark
        for name, part in self.parts.items():
            part.rewind(parts[name])

    @property
    def bytes(self) -> int:
        """Of everything that it must hold (buffers may be larger)."""
        return sum(x.nbytes for x in self.tensors().values())

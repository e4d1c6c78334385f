"""Prefix sharing: the pairs of a common prefix are stored once and read by all rows.

Rows that continue one row differ only in later tokens. The cache of a memory without a window keeps the common pairs
as a view of that row's buffers, and the new pairs of each row beside it; a read (4) is taken over both parts, which are
joined by their normalizers. Windows are small and are copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.pair_cache import TILE, PairCache, Reader, visible
from mm_lightning.memory.state import NetworkState

MOST_SCORES = 1 << 24
"""The largest number of scores of a read that exist at once."""


class SharedPrefixCache(PairCache):
    """A pair cache whose first P pairs are the same for all rows.

    Args:
        common: keys and values, (1, G, P, D) each, of the common pairs; read only.
        capacity: further pairs of a row to preallocate.
    """

    def __init__(self, common: tuple[Tensor, ...], capacity: int) -> None:
        super().__init__(None, capacity)
        self.common = common
        self.offset = self.end = common[0].shape[2]

    @classmethod
    def of(cls, pairs: PairCache, rows: int, capacity: int) -> SharedPrefixCache:
        """Return `rows` rows that all continue the one row of `pairs`, which must not change meanwhile."""
        # The newest pair belongs to each row: its value is completed by the row's next token.
        last = pairs.end - pairs.offset - 1
        shared = cls(tuple(x[:, :, :last] for x in pairs.buffers), capacity)
        keys, values = (x[:, :, last : last + 1].expand(rows, -1, -1, -1) for x in pairs.buffers)
        shared.write(keys.transpose(1, 2), values.transpose(1, 2))
        return shared

    def select(self, index: Tensor, capacity: int) -> SharedPrefixCache:
        """Return the rows of an index (B',), which may repeat."""
        selected = SharedPrefixCache(self.common, capacity)
        keys, values = (x[index, :, : self.end - self.offset] for x in self.buffers)
        selected.write(keys.transpose(1, 2), values.transpose(1, 2))
        return selected

    def tensors(self) -> dict[str, Tensor]:
        """Return the stored pairs as a cache without sharing does, the common ones repeated for each row."""
        tensors = super().tensors()
        for name, common in zip(("keys", "values"), self.common, strict=True):
            tensors[name] = torch.cat([common.expand(len(tensors[name]), -1, -1, -1), tensors[name]], 2)
        return tensors

    def read(self, q: Tensor, span: Span, documents: Documents, reader: Reader, scale: float = 1.0) -> Tensor:
        """Return answers (B, T, H, D) as a cache without sharing does; its rows must be one document each."""
        if not reader.softmax:
            copied = PairCache()
            copied.load(self.tensors(), self.end)
            return copied.read(q, span, documents, reader, scale)
        outputs = []
        for at in range(0, q.shape[1], TILE):
            tile = q[:, at : at + TILE].transpose(1, 2) * scale
            size = tile.shape[2]
            now = documents.begin + at
            high = now + size - span.delay
            if high <= 0:
                outputs.append(torch.zeros_like(tile))
                continue
            # Up to `edge` every query of the tile sees every pair, all of them common.
            edge = min(self.offset, max(0, now - span.delay + 1))
            parts = []
            if edge:
                rows = tile.transpose(0, 1).flatten(1, 2)[None]  # (1, H, B T, D)
                answers, totals = attend(rows, *(x[:, :, :edge] for x in self.common))
                shape = (tile.shape[1], tile.shape[0], size)
                parts.append((answers[0].unflatten(1, shape[1:]).transpose(0, 1), totals.view(shape).transpose(0, 1)))
            if high > edge:
                seen = visible(edge, high, at, size, span, documents, documents.latest > edge)
                common = (x[:, :, edge:high].expand(len(tile), -1, -1, -1) for x in self.common)
                new = (x[:, :, : max(0, high - self.offset)] for x in self.buffers)
                keys, values = (torch.cat(pair, 2) for pair in zip(common, new, strict=True))
                parts.append(attend(tile, keys, values, seen))
            outputs.append(join(parts).to(q.dtype))
        return torch.cat(outputs, 2).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Read equation (4) over some of the pairs.

    Args:
        q: (B, H, T, D) queries with their bandwidth.
        k: (B, G, N, D) keys.
        v: (B, G, N, D) values.
        seen: (1 or B, 1, T, N) bool, which pairs a query reads; all by default.

    Returns:
        (B, H, T, D) answers, 0 where nothing is read, and (B, H, T) log sums of the weights, in float32 or better.
    """
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    step = max(1, MOST_SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    answers, totals = [], []
    for at in range(0, q.shape[2], step):
        scores = (q[:, :, at : at + step] @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
        if seen is not None:
            scores.masked_fill_(~seen[:, :, at : at + step], -torch.inf)
        # In place: each pass over the scores costs more than their matrix products.
        largest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
        weights = scores.sub_(largest).exp_()
        total = weights.sum(-1, keepdim=True)
        answers.append((weights.to(v.dtype) @ v) / total.clamp(min=1e-30).to(v.dtype))
        totals.append((largest + total.log())[..., 0])
    return torch.cat(answers, 2), torch.cat(totals, 2)


def join(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the read over all pairs from the reads of :func:`attend` over parts of them; 0 where nothing was read."""
    if len(parts) == 1:
        return parts[0][0]
    totals = torch.stack([total for _, total in parts])
    weights = (totals - totals.amax(0).clamp(min=torch.finfo(totals.dtype).min)).exp()
    weights = weights / weights.sum(0).clamp(min=1e-30)
    return sum(answer * weight[..., None] for (answer, _), weight in zip(parts, weights, strict=True))  # type: ignore[return-value]


def branch(state: NetworkState, index: Tensor, empty: NetworkState, capacity: int) -> NetworkState:
    """Return chosen rows like :meth:`NetworkState.rows`, but with their common pairs shared, not copied.

    Args:
        state: one row, which is one document and must not change while the branches are in use; or a branch.
        index: (B',) int64, the rows, which may repeat.
        empty: a new state of the same network with B' rows, which is filled and returned.
        capacity: tokens of each row to preallocate.
    """
    tensors = {"first": state.first, "length": torch.full_like(state.first, state.length)}
    for name, part in state.parts.items():
        copied = part.pairs is None or part.pairs.keep is not None
        tensors |= {f"{name}.{key}": x for key, x in part.tensors(pairs=copied).items()}
    empty.load({name: x[index] for name, x in tensors.items()})
    for name, part in state.parts.items():
        pairs = part.pairs
        if isinstance(pairs, SharedPrefixCache):
            empty.parts[name].pairs = pairs.select(index, capacity)
        elif pairs is not None and pairs.keep is None and pairs.buffers:
            empty.parts[name].pairs = SharedPrefixCache.of(pairs, len(index), capacity)
    return empty

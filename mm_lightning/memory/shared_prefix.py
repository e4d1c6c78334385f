"""The same past for many rows: pairs that are held once and read by all.

Rows that go on from one row differ only in what follows. So a growing store keeps the common pairs as a view of that
row's buffers, and each row's own pairs beside it; a read (4) is taken over both parts and joined by their
normalisers. Windows are small and are copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.pair_cache import TILE, PairCache, Reader, visible
from mm_lightning.memory.state import NetworkState

SCORES = 1 << 24
"""Scores of a read that exist at once."""


class SharedPrefixCache(PairCache):
    """Pairs of which all but the newest few are the same for all rows.

    Args:
        keys: (1, G, P, D), of the common pairs; read only.
        values: the same.
        capacity: own pairs of a row to make room for at first.
    """

    def __init__(self, keys: Tensor, values: Tensor, capacity: int) -> None:
        super().__init__(None, capacity)
        self.common = keys, values
        self.offset = self.end = keys.shape[2]

    @classmethod
    def of(cls, pairs: PairCache, rows: int, capacity: int) -> SharedPrefixCache:
        """Return as many rows as wanted that all go on from the one row of `pairs`, which must not change meanwhile."""
        # The newest pair belongs to each row: its value is completed by the row's next token.
        last = pairs.end - pairs.offset - 1
        keys, values = pairs.buffers
        shared = cls(keys[:, :, :last], values[:, :, :last], capacity)
        keys, values = (x[:, :, last : last + 1].expand(rows, -1, -1, -1) for x in (keys, values))
        shared.write(keys.transpose(1, 2), values.transpose(1, 2))
        return shared

    def select(self, index: Tensor, capacity: int) -> SharedPrefixCache:
        """Return some of the rows."""
        chosen = SharedPrefixCache(*self.common, capacity)
        keys, values = (x[index, :, : self.end - self.offset] for x in self.buffers)
        chosen.write(keys.transpose(1, 2), values.transpose(1, 2))
        return chosen

    def tensors(self) -> dict[str, Tensor]:
        """Return what pairs that every row holds for itself would."""
        found = super().tensors()
        for name, common in zip(("keys", "values"), self.common, strict=True):
            found[name] = torch.cat([common.expand(len(found[name]), -1, -1, -1), found[name]], 2)
        return found

    def read(self, q: Tensor, span: Span, documents: Documents, reader: Reader, scale: float = 1.0) -> Tensor:
        """Return the answers of pairs that every row holds for itself; its rows must be one document each."""
        if not reader.softmax:
            whole = self.tensors()
            copied = PairCache()
            copied.load(whole, self.end)
            return copied.read(q, span, documents, reader, scale)
        outputs = []
        for at in range(0, q.shape[1], TILE):
            block = q[:, at : at + TILE].transpose(1, 2) * scale
            size = block.shape[2]
            here = documents.begin + at
            high = here + size - span.delay
            if high <= 0:
                outputs.append(torch.zeros_like(block))
                continue
            # Up to `edge` every query of the block sees every pair, all of them common.
            edge = min(self.offset, max(0, here - span.delay + 1))
            parts = []
            if edge:
                everyone = block.transpose(0, 1).flatten(1, 2)[None]  # (1, H, B T, D)
                keys, values = (x[:, :, :edge] for x in self.common)
                found, total = attend(everyone, keys, values)
                shape = (block.shape[1], block.shape[0], size)
                parts.append((found[0].unflatten(1, shape[1:]).transpose(0, 1), total.view(shape).transpose(0, 1)))
            if high > edge:
                seen = visible(edge, high, at, size, span, documents, documents.latest > edge)
                rest = (x[:, :, edge:high].expand(len(block), -1, -1, -1) for x in self.common)
                own = (x[:, :, : max(0, high - self.offset)] for x in self.buffers)
                keys, values = (torch.cat(pair, 2) for pair in zip(rest, own, strict=True))
                parts.append(attend(block, keys, values, seen))
            outputs.append(join(parts).to(q.dtype))
        return torch.cat(outputs, 2).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a read over some of the pairs.

    Args:
        q: (B, H, T, D) queries with their bandwidth.
        k: (B, G, N, D) keys.
        v: (B, G, N, D) values.
        seen: (1 or B, 1, T, N) bool, which pairs a query reads; all by default.

    Returns:
        (B, H, T, D) answers, 0 where nothing is read, and (B, H, T) float32 log sums of the weights.
    """
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    step = max(1, SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
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
    """Return the read over all pairs from reads over parts of them; 0 where nothing was read."""
    if len(parts) == 1:
        return parts[0][0]
    totals = torch.stack([total for _, total in parts])
    weights = (totals - totals.amax(0).clamp(min=torch.finfo(totals.dtype).min)).exp()
    weights = weights / weights.sum(0).clamp(min=1e-30)
    return sum(answer * weight[..., None] for (answer, _), weight in zip(parts, weights, strict=True))  # type: ignore[return-value]


def branch(state: NetworkState, index: Tensor, empty: NetworkState, capacity: int) -> NetworkState:
    """Return rows that go on by themselves, as of :meth:`State.rows`, but without a copy of what they share.

    Args:
        state: of one row, which is one document and must not change while the branches are in use; or a branch.
        index: (B',) int64, which rows, any of them as often as wanted.
        empty: a new state of the same network with B' rows, which is filled and returned.
        capacity: tokens to make room for in each row.
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
        elif pairs is not None and pairs.keep is None and pairs.keys is not None:
            empty.parts[name].pairs = SharedPrefixCache.of(pairs, len(index), capacity)
    return empty

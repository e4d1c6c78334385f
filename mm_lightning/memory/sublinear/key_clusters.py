"""A long memory that is read by blocks: summaries of all pairs, and the few pairs that matter one by one.

Pairs that every later query can read are sorted into blocks of nearby keys. A block of n pairs is summed up by its mean
key c and mean value; a query q, with its bandwidth, reads the blocks that promise most pair by pair and takes the rest
by their summaries, so that a token costs about 2 n / block + budget pairs instead of n.

By convexity a block weighs at least L = n exp(q.c), and at most U = n exp(q.c + b), where q.(k - c) <= b for its keys.
Differences k - c are split into a part along c's direction and one across it: with p the part of q along c,

    b = max(p high, p low) + sqrt(|q|^2 - p^2) aside

of the largest and smallest part along c and the longest across it. Nothing is assumed of the keys' norms.

What that proves. Let y_i = q.(k_i - c) <= b. They sum to 0, so the positive ones of exp(y_i) - 1 outweigh the negative
ones, and sum |exp(y_i) - 1| <= 2 n (exp(b) - 1). If f' takes the unread blocks by L and their mean values, then
Z (f - f') = sum over unread pairs of L/n (exp(y_i) - 1) (v_i - f'), hence

    |f - f'| <= (V + |f'|) sum over unread blocks of 2 (U - L) / Z'

with V the largest norm of a value, and Z' <= Z what f' was divided by. With an epsilon blocks are read until the sum
is small enough for

    |f - f'| <= max(epsilon, 2 r) (V + |f'|),    r = u + s |q| + 2^-52 n

where f is the exact answer for the query and the n pairs as they are given, in whatever type, and f' is what is
returned. r is rounding: u of the answer to the values' type (2^-8 in bfloat16, 2^-11 in float16, 2^-24 in float32,
2^-53 in float64), the rest of what is computed on the way, which is all in float64, since in float32 q.k itself would
be uncertain by more than epsilon; s = 2^-51 (block + 4 D + 16) for D dimensions and keys of norms up to 2. In many
dimensions blocks are wide: proving takes a large share of them.

Without an epsilon `budget` pairs are read, and the second moments of the keys, and of values with keys, inside a group
of neighbouring blocks correct the summaries of the rest, as if what lies around a block's mean were Gaussian: exp(y) is
then exp(var / 2) on average and the value there the mean + Cov(v, k) q. That is accurate, not proven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.memory.kernels import Kernels, resolve_kernels
from mm_lightning.memory.sublinear.summaries import LONG, full, nearby, rows, summarize
from mm_lightning.ranges import AtLeastTwo, Count, NonNegative, check_fields

GAIN = 1.5
"""The largest var / 2 for which a block's second moments are believed."""

LOOK = 2.0
"""Standard deviations above its mean at which a block is ranked."""


@dataclass(frozen=True)
class SublinearRead:
    """How a long-term memory is read sub-linearly when single tokens are decoded.

    Args:
        budget: pairs that a query reads one by one, besides those not in blocks yet. Memories of less than four times
            as many are read whole.
        epsilon: read on until the error is proven to be at most this, in units of the largest value's norm plus the
            answer's, or twice the rounding of the values' type where that is more (the module's docstring says exactly
            what is proven): 0 for everything that can matter. Computes in float64. None: stop at the budget.
        block: pairs of a block.
        segment: pairs that are sorted into blocks at a time; segments of equal size are merged. block * 2^i.
    """

    budget: Count = 8192
    epsilon: NonNegative | None = None
    block: AtLeastTwo = 16
    segment: Count = 4096

    def __post_init__(self) -> None:
        check_fields(self)
        if self.budget < self.block:
            raise UserError(f"budget must be at least a block, got {self.budget} and block {self.block}")
        if self.segment % self.block or (self.segment // self.block).bit_count() != 1:
            raise UserError(f"segment must be {self.block} times a power of two, got {self.segment}")


def rounding(norm: Any, dim: int, block: int) -> Any:
    """Return the rounding s |q| of the module's docstring for a query of norm |q|."""
    return 2 * (block + 4 * dim + 16) * torch.finfo(torch.float64).eps * norm


class KeyClusters:
    """The sorted part of one memory's pairs, which lies sorted in the memory's own buffers.

    Args:
        settings: of the store.
        kernels: numba, on a CPU, read in one compiled call blocks where they lie; others copy them together first.

    Attributes:
        begin: the first sorted pair; every row's document begins there or before.
        end: behind the last one.
        low: the first pair that any row can read.
        share: of all readable pairs, those that the last query read one by one.
    """

    def __init__(self, settings: SublinearRead, kernels: Kernels = "auto") -> None:
        self.settings, self.kernels = settings, kernels
        self.begin = self.end = self.low = self.latest = 0
        self.sizes: list[int] = []
        self.order: Tensor | None = None
        self.summary: dict[str, Tensor] = {}
        self.share = 1.0

    def follow(self, keys: Tensor, values: Tensor, latest: int, first: Tensor) -> None:
        """Begins anew where a document does, in any row: before that, rows no longer read the same pairs.

        Args:
            keys: (B, H, capacity, D) buffer.
            values: the same.
            latest: the last beginning of a document in any row.
            first: (B, T) all rows' beginnings.
        """
        if latest != self.latest:
            self.give_up(keys, values)
            self.latest, self.low = latest, int(first[:, -1].min())
            self.begin = self.end = -(-latest // self.settings.block) * self.settings.block

    def give_up(self, keys: Tensor, values: Tensor) -> None:
        """Puts all pairs of the buffers back in the order of their tokens."""
        if self.order is not None:
            with torch.inference_mode():  # where the buffers were made, perhaps
                for buffer in (keys, values):
                    buffer.copy_(self.in_time(buffer))
        self.end = self.begin
        self.sizes, self.order, self.summary = [], None, {}

    def in_time(self, buffer: Tensor) -> Tensor:
        """A buffer with its pairs in the order of their tokens."""
        if self.order is None:
            return buffer
        found = buffer.clone()
        index = self.order[..., None].expand(*self.order.shape, buffer.shape[-1])
        found[:, :, self.begin : self.end].scatter_(2, index, buffer[:, :, self.begin : self.end])
        return found

    def worthwhile(self, readable: int) -> bool:
        """Whether so many pairs in all are enough to read by blocks."""
        return readable - self.begin >= max(4 * self.settings.budget, self.settings.segment)

    def extend(self, keys: Tensor, values: Tensor, readable: int) -> None:
        """Sorts what has become readable and fills whole segments, in place.

        Segments are kept in falling sizes, the binary digits of their number: two of a size become one.
        """
        unit = self.settings.segment
        count = (readable - self.begin) // unit
        sizes = [unit << i for i in reversed(range(count.bit_length())) if count >> i & 1]
        if sizes == self.sizes:
            return
        kept = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(sizes, self.sizes, strict=False))))
        at, before = sum(sizes[:kept]), sum(self.sizes)
        orders = [] if self.order is None else [self.order[:, :, :at]]
        # The length of each is proportional to the pairs.
        parts = [{n: x.narrow(LONG[n], 0, at * x.shape[LONG[n]] // before) for n, x in self.summary.items()}]
        for size in sizes[kept:]:
            place = slice(self.begin + at, self.begin + at + size)
            k, v = keys[:, :, place], values[:, :, place]
            with torch.autocast(k.device.type, enabled=False):  # which would sum in 16 bits
                sorting = nearby(k.flatten(0, 1), self.settings.block)
                for x in (k, v):
                    x[:] = rows(x.flatten(0, 1), sorting).view(x.shape)
                exact = full(k.dtype) if self.settings.epsilon is None else torch.float64
                parts.append(summarize(k.flatten(0, 1), v.flatten(0, 1), self.settings.block, unit, exact))
            time = torch.arange(at, at + size, device=k.device).expand(k.shape[:3])
            if self.order is not None and at < before:  # sorted before, in smaller segments
                time = torch.cat([self.order[:, :, at : at + size], time[:, :, before - at :]], 2)
            orders.append(time.gather(2, sorting.view(time.shape)))
            at += size
        self.order = torch.cat(orders, 2)
        self.summary = {name: torch.cat([x[name] for x in parts if x], axis) for name, axis in LONG.items()}
        self.sizes, self.end = sizes, self.begin + at

    def read(self, q: Tensor, keys: Tensor, values: Tensor, readable: int, first: Tensor) -> Tensor:
        """Equation (4) for one query a row and head, as exactly as the settings say.

        Args:
            q: (B, H, D) queries with their bandwidth.
            keys: (B, H, capacity, D) buffer, of a capacity that whole blocks fill.
            values: the same.
            readable: how many pairs of the stream queries read.
            first: (B,) beginnings of the rows' documents.

        Returns:
            (B, H, D)
        """
        with torch.autocast(q.device.type, enabled=False):
            exact = self.summary["keys"].dtype
            if resolve_kernels(self.kernels, q.device, keys.dtype) == "numba":
                return self._numba_read(q.to(exact), keys, values, readable, first)
            rows = q.flatten(0, 1).to(exact)  # (N, D), N = B H
            near = [slice(self.end, readable)] + [slice(self.low, self.begin)] * (self.begin > self.low)
            scores = [_scores(rows, keys[:, :, part].flatten(0, 1)) for part in near]
            if self.begin > self.low:
                index = torch.arange(self.low, self.begin, device=q.device)
                unseen = (index < first[:, None]).repeat_interleave(q.shape[1], 0)
                scores[1] = scores[1].masked_fill(unseen, -torch.inf)
            index, rest, moved = self._choose(rows, keys, scores, self._allowed(rows, values, readable))
            weights = torch.cat([*scores, rest], 1).softmax(-1)
            *parts, rest = weights.split([*(x.shape[1] for x in scores), rest.shape[1]], 1)
            answer = torch.bmm(rest[:, None], self.summary["values"])[:, 0]
            if moved is not None:
                answer = answer + self._regression(rest, *moved)
            kind = values.dtype if self.settings.epsilon is None else exact
            answer = answer.to(kind)
            for part, weight in zip(near, parts, strict=False):
                near_values = values[:, :, part].flatten(0, 1).to(kind)
                answer = answer + torch.bmm(weight[:, None].to(kind), near_values)[:, 0]
            answer = answer + self._weighted(torch.cat(parts[len(near) :], 1).to(kind), values, index)
        self.share = sum(x.shape[1] for x in scores) / (readable - self.low)
        return answer.to(values.dtype).view(q.shape)

    def _allowed(self, q: Tensor, values: Tensor, readable: int) -> Tensor | None:
        """Return the largest allowed sum of the module's docstring, (N,) for queries (N, D); None without epsilon."""
        if self.settings.epsilon is None:
            return None
        r = torch.finfo(values.dtype).eps / 2 + readable * torch.finfo(torch.float64).eps
        r = r + rounding(q.norm(dim=-1), q.shape[-1], self.settings.block)
        return (self.settings.epsilon - r).maximum(r)

    def _numba_read(self, q: Tensor, keys: Tensor, values: Tensor, readable: int, first: Tensor) -> Tensor:
        from mm_lightning.memory.sublinear.numba_read import read

        chosen = self.settings
        sizes = chosen.block, chosen.budget // chosen.block, self.begin, self.end, readable, self.low
        allowed = self._allowed(q.flatten(0, 1), values, readable)
        options = allowed, rounding(1.0, q.shape[-1], chosen.block), LOOK, GAIN
        answer, number = read(q, keys, values, self.summary, first, sizes, options)
        self.share = number / (readable - self.low)
        return answer.to(values.dtype)

    def _choose(
        self, q: Tensor, keys: Tensor, scores: list[Tensor], allowed: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Choose the blocks that are read, and append the scores of their pairs.

        Returns:
            (N, K) places of the blocks in the buffers; the log weights (N, blocks) of the others, -inf for those that
            are read; and what :meth:`_regression` needs of them, None where the error is to be proven.
        """
        size, capacity = self.settings.block, keys.shape[2]
        place = torch.arange(len(q), device=q.device)[:, None] * (capacity // size) + self.begin // size

        def take(chosen: Tensor) -> Tensor:
            index = chosen + place
            scores.append(self._scores(q, keys, index))
            rest.scatter_(1, chosen, -torch.inf)
            return index

        centre = torch.bmm(q[:, None], self.summary["keys"])[:, 0]  # q.c
        rest = centre + math.log(size)  # log L
        moved, variance = self._moments(q)
        rank = centre + torch.minimum(LOOK * variance.sqrt(), variance)
        first = take(rank.topk(min(self.settings.budget // size, rank.shape[1]), sorted=False).indices)
        if allowed is None:
            return first, rest + (variance / 2).clamp(max=GAIN), (moved, variance)
        more = take(self._needed(q, centre, rest, scores, allowed))
        return torch.cat([first, more], 1), rest, None

    def _scores(self, q: Tensor, keys: Tensor, index: Tensor) -> Tensor:
        """(N, K block) products of (N, D) with the keys of blocks (N, K) of the buffer."""
        blocks = keys.view(-1, self.settings.block * q.shape[1]).index_select(0, index.flatten())
        return _scores(q, blocks.view(len(q), -1, q.shape[1]))

    def _weighted(self, weight: Tensor, values: Tensor, index: Tensor) -> Tensor:
        """Return the (N, D) sums, by weights (N, K block) and in their type, of the values of blocks (N, K)."""
        size = self.settings.block
        if weight.dtype != values.dtype:
            chosen = values.view(-1, size * values.shape[-1]).index_select(0, index.flatten())
            chosen = chosen.view(len(weight), -1, values.shape[-1]).to(weight.dtype)
            return torch.bmm(weight[:, None], chosen)[:, 0]
        pairs = (index[..., None] * size + torch.arange(size, device=index.device)).flatten(1)
        flat = values.view(-1, values.shape[-1])
        return F.embedding_bag(pairs, flat, per_sample_weights=weight, mode="sum")

    def _regression(self, weight: Tensor, moved: Tensor, variance: Tensor) -> Tensor:
        """(N, D) what Cov(v, k) q adds to the mean values of blocks of these weights (N, blocks)."""
        weight = weight * self.summary["share"] / (variance / (2 * GAIN)).clamp(min=1)
        return torch.bmm(weight.unflatten(1, (moved.shape[1], -1)).sum(-1)[:, None], moved)[:, 0]

    def _moments(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Cov(v, k) q of each group, (N, groups, D), and the variance of q.k in each block, (N, blocks)."""
        moments, share = self.summary["moments"], self.summary["share"]
        found = torch.bmm(q[:, None], moments)[:, 0].unflatten(1, (-1, 2, q.shape[1]))
        groups = (found[:, :, 0] * q[:, None]).sum(-1).clamp(min=0)
        blocks = groups[..., None] * share.unflatten(1, (groups.shape[1], -1))
        return found[:, :, 1], blocks.flatten(1)

    def _needed(self, q: Tensor, centre: Tensor, rest: Tensor, scores: list[Tensor], allowed: Tensor) -> Tensor:
        """Return further blocks to read, (N, K), until the sum that the module's docstring bounds is small enough."""
        norm, summary = q.norm(dim=1, keepdim=True), self.summary
        slack = rounding(1.0, q.shape[1], self.settings.block)
        along = centre / summary["norm"]
        across = (norm**2 * (1 + slack) - along**2).clamp(min=0).sqrt()
        b = torch.maximum(along * summary["high"], along * summary["low"]) + across * summary["aside"] + slack * norm
        gap = centre + math.log(2 * self.settings.block) + b + torch.log(-torch.expm1(-b))  # log 2 (U - L)
        # First of all those that were read: where other heads need more blocks, none may be taken twice.
        gap = gap.clamp(min=torch.finfo(gap.dtype).min / 2).masked_fill(rest == -torch.inf, -torch.inf)
        total = torch.cat([*scores, rest], 1).logsumexp(1, keepdim=True)  # log Z', which can only grow
        gap, order = gap.sort(1)
        unneeded = (gap.logcumsumexp(1) - total <= allowed.log()[:, None]).sum(1)
        return order[:, int(unneeded.min()) :]


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    """Return the (N, n) products of (N, D) with (N, n, D), in q's type."""
    # As a row times a matrix: the other way round is several times slower on a CPU.
    return torch.bmm(q[:, None], keys.to(q.dtype).transpose(1, 2))[:, 0]

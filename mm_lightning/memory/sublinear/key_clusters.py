"""Sub-linear reads of a long memory: exact reads of the clusters that matter most, summaries of all others.

Pairs that every later query can read are sorted into clusters of nearby keys. A cluster of n pairs is summarized by its
mean key c and mean value; a query q, with its bandwidth, reads the highest-ranked clusters pair by pair and the
rest by their summaries, so that a token costs about 2 n / cluster_size + budget pairs instead of n.

By convexity a cluster weighs at least L = n exp(q.c), and at most U = n exp(q.c + b), where q.(k - c) <= b for its
keys. Differences k - c are split into a part along c's direction and one across it: with p the part of q along c,

    b = max(p high, p low) + sqrt(|q|^2 - p^2) aside

of the largest and smallest part along c and the longest across it. Nothing is assumed of the keys' norms.

Proof of the error bound. Let y_i = q.(k_i - c) <= b. They sum to 0, so the positive ones of exp(y_i) - 1 outweigh
the negative ones, and sum |exp(y_i) - 1| <= 2 n (exp(b) - 1). If f' takes the unread clusters by L and their mean
values, then Z (f - f') = sum over unread pairs of L/n (exp(y_i) - 1) (v_i - f'), hence

    |f - f'| <= (V + |f'|) sum over unread clusters of 2 (U - L) / Z'

with V the largest norm of a value, and Z' <= Z what f' was divided by. With an epsilon clusters are read until the sum
is small enough for

    |f - f'| <= max(epsilon, 2 r) (V + |f'|),    r = u + s |q| + 2^-52 n

where f is the exact answer for the query and the n pairs as they are given, in whatever type, and f' is what is
returned. r is rounding: u of the answer to the values' type (2^-8 in bfloat16, 2^-11 in float16, 2^-24 in float32,
2^-53 in float64), the rest of what is computed on the way, which is all in float64, since in float32 q.k itself would
be uncertain by more than epsilon; s = 2^-51 (cluster_size + 4 D + 16) for D dimensions and keys of norms up to 2. In
many dimensions clusters are wide: proving takes a large share of them.

Without an epsilon `budget` pairs are read, and the second moments of the keys, and of values with keys, inside a group
of neighboring clusters correct the summaries of the rest, as if the pairs around a cluster's mean were Gaussian:
exp(y) is then exp(var / 2) on average and the value there the mean + Cov(v, k) q. That is accurate, not proven.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.memory.kernels import Kernels, resolve_kernels
from mm_lightning.memory.sublinear.summaries import CLUSTER_AXIS, Layout, Summary, cluster_order, gather_rows, summarize
from mm_lightning.memory.sublinear.torch_read import read as torch_read
from mm_lightning.ranges import AtLeastTwo, Count, NonNegative, check_fields


@dataclass(frozen=True)
class SublinearRead:
    """Settings of the sub-linear read of a long-term memory while decoding token by token.

    Args:
        budget: pairs that a query reads one by one, besides those not in clusters yet. Memories of less than four times
            as many are read whole.
        epsilon: read on until the error is proven to be at most this, in units of the largest value's norm plus the
            answer's, or twice the rounding of the values' type where that is more (the module's docstring says exactly
            what is proven): 0 for everything that can matter. Computes in float64. None: stop at the budget.
        cluster_size: pairs of a cluster.
        segment: pairs that are sorted into clusters at a time; segments of equal size are merged. cluster_size * 2^i.
    """

    budget: Count = 8192
    epsilon: NonNegative | None = None
    cluster_size: AtLeastTwo = 16
    segment: Count = 4096

    def __post_init__(self) -> None:
        check_fields(self)
        if self.budget < self.cluster_size:
            raise UserError(f"budget must be at least cluster_size {self.cluster_size}, got {self.budget}")
        if self.segment % self.cluster_size or (self.segment // self.cluster_size).bit_count() != 1:
            raise UserError(f"segment must be cluster_size {self.cluster_size} times a power of 2, got {self.segment}")


class KeyClusters:
    """The clusters of one memory's keys: the pairs lie sorted by cluster in the memory's own buffers.

    Args:
        settings: the sizes of clusters and segments, and the read budget.
        kernels: numba, on a CPU, read clusters in one compiled call where they lie; others copy them together first.

    Attributes:
        begin: the first sorted pair; every row's document begins there or before.
        end: the first one after the last sorted pair.
        low: the first pair that any row can read.
        share: the fraction of the readable pairs that the last query read one by one.
    """

    def __init__(self, settings: SublinearRead, kernels: Kernels = "auto") -> None:
        self.settings, self.kernels = settings, kernels
        self.begin = self.end = self.low = self.latest = 0
        self.sizes: list[int] = []
        self.order: Tensor | None = None
        self.summary: Summary = {}
        self.share = 1.0

    def follow(self, buffers: tuple[Tensor, ...], latest: int, first: Tensor) -> None:
        """Drop all clusters when a document begins in any row: rows no longer read the same earlier pairs.

        Args:
            buffers: keys and values, (B, H, capacity, D) each.
            latest: the last beginning of a document in any row.
            first: (B, T) all rows' beginnings.
        """
        if latest != self.latest:
            self.dissolve(buffers)
            self.latest, self.low = latest, int(first[:, -1].min())
            self.begin = self.end = -(-latest // self.settings.cluster_size) * self.settings.cluster_size

    def dissolve(self, buffers: tuple[Tensor, ...]) -> None:
        """Put all pairs of the buffers back in the order of their tokens."""
        if self.order is not None:
            with torch.inference_mode():  # the buffers may be inference tensors
                for buffer in buffers:
                    buffer.copy_(self.in_time(buffer))
        self.end = self.begin
        self.sizes, self.order, self.summary = [], None, {}

    def in_time(self, buffer: Tensor) -> Tensor:
        """Return a buffer with its pairs in the order of their tokens."""
        if self.order is None:
            return buffer
        ordered = buffer.clone()
        index = self.order[..., None].expand(*self.order.shape, buffer.shape[-1])
        ordered[:, :, self.begin : self.end].scatter_(2, index, buffer[:, :, self.begin : self.end])
        return ordered

    def worthwhile(self, readable: int) -> bool:
        """Return whether `readable` pairs are enough to read by clusters rather than in full."""
        return readable - self.begin >= max(4 * self.settings.budget, self.settings.segment)

    def extend(self, keys: Tensor, values: Tensor, readable: int) -> None:
        """Sort, in place, the pairs that have become readable and fill whole segments.

        Segments are kept in falling sizes, the binary digits of their number: two of a size become one.
        """
        unit, cluster_size = self.settings.segment, self.settings.cluster_size
        count = (readable - self.begin) // unit
        sizes = [unit << i for i in reversed(range(count.bit_length())) if count >> i & 1]
        if sizes == self.sizes:
            return
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(sizes, self.sizes, strict=False))))
        at, before = sum(sizes[:same]), sum(self.sizes)
        orders = [] if self.order is None else [self.order[:, :, :at]]
        # The length of each is proportional to the pairs.
        parts = [
            {n: x.narrow(CLUSTER_AXIS[n], 0, at * x.shape[CLUSTER_AXIS[n]] // before) for n, x in self.summary.items()}
        ]
        for size in sizes[same:]:
            place = slice(self.begin + at, self.begin + at + size)
            k, v = keys[:, :, place], values[:, :, place]
            with torch.autocast(k.device.type, enabled=False):  # which would sum in 16 bits
                sorting = cluster_order(k.flatten(0, 1), cluster_size)
                for x in (k, v):
                    x[:] = gather_rows(x.flatten(0, 1), sorting).view(x.shape)
                proven = self.settings.epsilon is not None
                exact = torch.float64 if proven else torch.promote_types(k.dtype, torch.float32)
                parts.append(summarize(k.flatten(0, 1), v.flatten(0, 1), cluster_size, unit, exact))
            time = torch.arange(at, at + size, device=k.device).expand(k.shape[:3])
            if self.order is not None and at < before:  # sorted before, in smaller segments
                time = torch.cat([self.order[:, :, at : at + size], time[:, :, before - at :]], 2)
            orders.append(time.gather(2, sorting.view(time.shape)))
            at += size
        self.order = torch.cat(orders, 2)
        self.summary = {name: torch.cat([x[name] for x in parts if x], axis) for name, axis in CLUSTER_AXIS.items()}
        self.sizes, self.end = sizes, self.begin + at

    def read(self, q: Tensor, keys: Tensor, values: Tensor, readable: int, first: Tensor) -> Tensor:
        """Return the answers of equation (4), (B, H, D), to one query a row and head, as exactly as the settings say.

        Args:
            q: (B, H, D) queries with their bandwidth.
            keys: (B, H, capacity, D) buffer, of a capacity that whole clusters fill.
            values: the same.
            readable: how many pairs of the stream queries read.
            first: (B,) where in the stream each row's document begins.
        """
        size, dim = self.settings.cluster_size, q.shape[-1]
        slack = 2 * (size + 4 * dim + 16) * torch.finfo(torch.float64).eps  # s of the module's docstring
        layout = Layout(size, self.settings.budget // size, self.begin, self.end, readable, self.low, slack)
        read = torch_read
        if resolve_kernels(self.kernels, q.device, keys.dtype) == "numba":
            from mm_lightning.memory.sublinear.numba_read import read
        with torch.autocast(q.device.type, enabled=False):
            q = q.to(self.summary["keys"].dtype)
            allowed = None
            if self.settings.epsilon is not None:
                r = torch.finfo(values.dtype).eps / 2 + readable * torch.finfo(torch.float64).eps
                r = r + slack * q.flatten(0, 1).norm(dim=-1)
                allowed = (self.settings.epsilon - r).maximum(r)
            answer, count = read(q, keys, values, self.summary, first, layout, allowed)
        self.share = count / (readable - self.low)
        return answer.to(values.dtype)

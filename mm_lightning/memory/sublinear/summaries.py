"""Clusters of nearby keys, and the means and moments that stand for their pairs while these are not read."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PAIRS_PER_DIMENSION = 64
"""Pairs of a group for each dimension of its keys, which makes the moments a 64th of the pairs; at most a segment."""

CLUSTER_AXIS = {"keys": 2, "values": 1, "norm": 1, "high": 1, "low": 1, "aside": 1, "moments": 2, "share": 1}
"""The axis of each summary along which clusters or groups follow one another; keys lie so for fast products."""

Summary = dict[str, Tensor]
"""The summaries of clusters by name; see :func:`summarize`."""

SMALLEST_NORM = 1e-6
"""The norm below which a cluster's mean key has no direction."""

RANKING_DEVIATIONS = 2.0
"""Standard deviations of q.k above its mean at which a cluster is ranked."""

LARGEST_CORRECTION = 1.5
"""The largest var / 2 of q.k in a cluster for which its second moments are trusted."""


class Layout(NamedTuple):
    """The pairs of a memory that lie in clusters, and those that a query can read; all counted in tokens of the stream.

    Attributes:
        cluster_size: pairs of a cluster.
        budget: clusters that are read pair by pair.
        begin: the first pair that lies in a cluster.
        end: the first one after the last that does.
        readable: the first pair that queries cannot read yet.
        low: the first pair that any row can read.
        slack: the rounding s of the bound; see :mod:`mm_lightning.memory.sublinear.key_clusters`.
    """

    cluster_size: int
    budget: int
    begin: int
    end: int
    readable: int
    low: int
    slack: float


def cluster_order(keys: Tensor, cluster_size: int) -> Tensor:
    """Return an order of (N, n, D) keys in which every `cluster_size` are near each other, (N, n) int64.

    Halves are halved again, each at the median of its main direction; n is cluster_size * 2^i.
    """
    total, count, dim = keys.shape
    index = torch.arange(count, device=keys.device).repeat(total, 1)
    start = torch.ones(dim, 1, dtype=keys.dtype, device=keys.device)
    start[1::2] = -0.5  # a direction orthogonal to it is found from rounding errors only
    size = count
    while size > cluster_size:
        keys, index = keys.reshape(-1, size, dim), index.reshape(-1, size)
        moments = torch.baddbmm(-size * keys.mean(1)[:, :, None] * keys.mean(1)[:, None], keys.transpose(1, 2), keys)
        direction = start.expand(len(keys), dim, 1)
        for _ in range(8):
            direction = F.normalize(moments @ direction, dim=1)
        place = (keys @ direction)[..., 0].argsort(1)
        keys, index = gather_rows(keys, place), index.gather(1, place)
        size //= 2
    return index.reshape(total, count)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return whole rows (N, n, D) of (N, m, D), by (N, n) indices: several times faster than `gather`."""
    first = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device)[:, None]
    return x.reshape(-1, x.shape[2]).index_select(0, (index + first).flatten()).view(*index.shape, x.shape[2])


def summarize(keys: Tensor, values: Tensor, cluster_size: int, segment: int, dtype: torch.dtype) -> Summary:
    """Summarize the clusters and groups of a sorted segment of keys and values (N, n, D), computing in `dtype`.

    Returns:
        keys: (N, D, clusters) means; values: (N, clusters, D) means; norm: (N, clusters) |c| of the mean key c,
        infinite where it has no direction; high, low and aside: (N, clusters), of k - c the largest and the smallest
        part along c/|c|, and the longest part across it; moments: (N, D, groups * 2 * D) of keys with keys, then
        values, around their cluster's means; share: (N, clusters), the variance of a cluster's keys relative to its
        group's.
    """
    k, v = (x.to(dtype).unflatten(1, (-1, cluster_size)) for x in (keys, values))
    centre, mean = k.mean(2), v.mean(2)
    norm = centre.norm(dim=-1)
    norm = norm.masked_fill(norm < SMALLEST_NORM, torch.inf)
    k, v = k - centre[:, :, None], v - mean[:, :, None]  # small ones to full accuracy, which cosines near 1 are not
    direction = centre / norm[..., None]
    along = (k @ direction[..., None])[..., 0]
    aside = (k - along[..., None] * direction[:, :, None]).norm(dim=-1)
    variance = k.square().sum((2, 3))
    doublings = max(0, round(math.log2(PAIRS_PER_DIMENSION * keys.shape[-1] / cluster_size)))
    group = min(cluster_size << doublings, segment)
    both = torch.stack([k.flatten(1, 2), v.flatten(1, 2)], 1).unflatten(2, (-1, group)).transpose(1, 2)
    near = k.flatten(1, 2).unflatten(1, (-1, group))[:, :, None]
    moments = near.transpose(3, 4) @ both / group  # (N, groups, 2, D of keys, D of keys or values)
    grouped = variance.unflatten(1, (-1, group // cluster_size))
    share = grouped / grouped.mean(-1, keepdim=True).clamp(min=torch.finfo(k.dtype).tiny)
    return {
        "keys": centre.transpose(1, 2).contiguous(),
        "values": mean,
        "norm": norm,
        "high": along.amax(2),
        "low": along.amin(2),
        "aside": aside.amax(2),
        "moments": moments.permute(0, 3, 1, 2, 4).flatten(2).contiguous(),
        "share": share.flatten(1),
    }

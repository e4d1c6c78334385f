"""The sub-linear read of a memory: the clusters that matter most are chosen, and read pair by pair.

:mod:`mm_lightning.memory.sublinear.key_clusters` defines the computation and proves its error bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mm_lightning.memory.sublinear.summaries import Layout, Summary

RANKING_DEVIATIONS = 2.0
"""Standard deviations of q.k above its mean at which a cluster is ranked."""

LARGEST_CORRECTION = 1.5
"""The largest var / 2 of q.k in a cluster for which its second moments are trusted."""


def read(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    summary: Summary,
    first: Tensor,
    layout: Layout,
    allowed: Tensor | None,
    numba: bool,
) -> tuple[Tensor, float]:
    """Return the answers (B, H, D) to one query a row and head, and how many pairs were read one by one for each.

    Args:
        q: (B, H, D) queries with their bandwidth, in the type of the summary, in which all is computed.
        keys: (B, H, capacity, D) buffer, of a capacity that whole clusters fill.
        values: the same.
        summary: the summaries of all clusters, see :func:`mm_lightning.memory.sublinear.summaries.summarize`.
        first: (B,) where in the stream each row's document begins.
        layout: which pairs lie in clusters.
        allowed: (B H,) the largest sum of terms that the bound allows; None to read the budget and prove nothing.
        numba: whether numba reads clusters where they lie; otherwise they are first copied together.
    """
    begin, low, size, rows = layout.begin, layout.low, layout.cluster_size, q.flatten(0, 1)  # (N, D), N = B H
    outside = [slice(layout.end, layout.readable), slice(low, max(low, begin))]
    scores = [_product(rows, keys[:, :, part].flatten(0, 1).to(q.dtype).mT) for part in outside]
    index = torch.arange(low, max(low, begin), device=q.device)
    unseen = (index < first[:, None]).repeat_interleave(q.shape[1], 0)
    scores[1] = scores[1].masked_fill(unseen, -torch.inf)
    # Clusters by rank
    centre = _product(rows, summary["keys"])  # q.c
    covariance, variance = _moments(rows, summary)
    rank = centre + torch.minimum(RANKING_DEVIATIONS * variance.sqrt(), variance)
    chosen = rank.topk(min(layout.budget, rank.shape[1]), sorted=False).indices.sort(1).values  # as they lie
    place = torch.arange(len(rows), device=q.device)[:, None] * (keys.shape[2] // size) + begin // size
    if numba:
        from mm_lightning.memory.sublinear.numba_read import pair_scores, weighted_values
    else:
        pair_scores, weighted_values = _pair_scores, _weighted_values
    scores.append(pair_scores(rows, keys, chosen + place, size))
    unread = (centre + math.log(size)).scatter(1, chosen, -torch.inf)  # log L
    if allowed is None:
        unread = unread + (variance / 2).clamp(max=LARGEST_CORRECTION)
    else:
        more = _needed(rows, centre, unread, scores, summary, layout, allowed)
        scores.append(pair_scores(rows, keys, more + place, size))
        unread, chosen = unread.scatter(1, more, -torch.inf), torch.cat([chosen, more], 1)
    # Sums by weights
    weights = torch.cat([*scores, unread], 1).softmax(-1)
    counts = [scores[0].shape[1], scores[1].shape[1], chosen.shape[1] * size, unread.shape[1]]
    *others, read, unread = weights.split(counts, 1)
    answer = _product(unread, summary["values"]) + weighted_values(read, values, chosen + place, size)
    for part, weight in zip(outside, others, strict=True):
        answer = answer + _product(weight, values[:, :, part].flatten(0, 1).to(q.dtype))
    if allowed is None:  # what Cov(v, k) q adds to the mean values
        unread = unread * summary["share"] / (variance / (2 * LARGEST_CORRECTION)).clamp(min=1)
        answer = answer + _product(unread.unflatten(1, (covariance.shape[1], -1)).sum(-1), covariance)
    return answer.view(q.shape), sum(x.shape[1] for x in scores)


def _needed(
    q: Tensor,
    centre: Tensor,
    unread: Tensor,
    scores: list[Tensor],
    summary: Summary,
    layout: Layout,
    allowed: Tensor,
) -> Tensor:
    """Return the clusters to read besides those that are, (N, K), until the proven bound is at most what is allowed.

    As many for all queries as one of them needs.
    """
    slack, norm = layout.slack, q.norm(dim=1, keepdim=True)
    along = centre / summary["norm"]
    across = (norm**2 * (1 + slack) - along**2).clamp(min=0).sqrt()
    b = torch.maximum(along * summary["high"], along * summary["low"]) + across * summary["aside"] + slack * norm
    gap = centre + math.log(2 * layout.cluster_size) + b + torch.log(-torch.expm1(-b))  # log 2 (U - L)
    # First of all those that were read: where other heads need more clusters, none may be taken twice.
    gap = gap.clamp(min=torch.finfo(gap.dtype).min / 2).masked_fill(unread == -torch.inf, -torch.inf)
    total = torch.cat([*scores, unread], 1).logsumexp(1, keepdim=True)  # log Z', which can only grow
    gap, order = gap.sort(1)
    unneeded = (gap.logcumsumexp(1) - total <= allowed.log()[:, None]).sum(1)
    return order[:, int(unneeded.min()) :]


def _moments(q: Tensor, summary: Summary) -> tuple[Tensor, Tensor]:
    """Return Cov(v, k) q of each group, (N, groups, D), and the variance of q.k in each cluster, (N, clusters)."""
    products = _product(q, summary["moments"]).unflatten(1, (-1, 2, q.shape[1]))
    groups = (products[:, :, 0] * q[:, None]).sum(-1).clamp(min=0)
    variance = groups[..., None] * summary["share"].unflatten(1, (groups.shape[1], -1))
    return products[:, :, 1], variance.flatten(1)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Return the (N, n) products of rows (N, m) with matrices (N, m, n)."""
    # As a row times a matrix: the other way round is several times slower on a CPU.
    return torch.bmm(x[:, None], y)[:, 0]


def _pair_scores(q: Tensor, keys: Tensor, clusters: Tensor, size: int) -> Tensor:
    """Return the products (N, K size) of queries (N, D) with the keys of clusters (N, K)."""
    return _product(q, _copied(keys, clusters, size, q.dtype).mT)


def _weighted_values(weights: Tensor, values: Tensor, clusters: Tensor, size: int) -> Tensor:
    """Return the sums (N, D), by weights (N, K size), of the values of clusters (N, K)."""
    return _product(weights, _copied(values, clusters, size, weights.dtype))


def _copied(buffer: Tensor, clusters: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return the keys or values of clusters (N, K), (N, K size, D)."""
    pairs = buffer.view(-1, size * buffer.shape[-1]).index_select(0, clusters.flatten())
    return pairs.view(len(clusters), -1, buffer.shape[-1]).to(dtype)

"""The sub-linear read of a memory in plain torch, on any device: clusters that are read are first copied together.

:mod:`mm_lightning.memory.sublinear.key_clusters` defines the computation and proves its error bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.sublinear.summaries import LARGEST_CORRECTION, RANKING_DEVIATIONS, Layout, Summary


def read(
    q: Tensor, keys: Tensor, values: Tensor, summary: Summary, first: Tensor, layout: Layout, allowed: Tensor | None
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
    """
    begin, end, readable, low = layout.begin, layout.end, layout.readable, layout.low
    rows = q.flatten(0, 1)  # (N, D), N = B H
    outside = [slice(end, readable)] + [slice(low, begin)] * (begin > low)
    scores = [_scores(rows, keys[:, :, part].flatten(0, 1)) for part in outside]
    if begin > low:
        index = torch.arange(low, begin, device=q.device)
        unseen = (index < first[:, None]).repeat_interleave(q.shape[1], 0)
        scores[1] = scores[1].masked_fill(unseen, -torch.inf)
    index, unread, correction = _choose(rows, keys, summary, layout, scores, allowed)
    weights = torch.cat([*scores, unread], 1).softmax(-1)
    *parts, unread = weights.split([*(x.shape[1] for x in scores), unread.shape[1]], 1)
    answer = torch.bmm(unread[:, None], summary["values"])[:, 0]
    if correction is not None:
        answer = answer + _regression(unread, summary, *correction)
    dtype = values.dtype if allowed is None else q.dtype
    answer = answer.to(dtype)
    for part, weight in zip(outside, parts, strict=False):
        answer = answer + torch.bmm(weight[:, None].to(dtype), values[:, :, part].flatten(0, 1).to(dtype))[:, 0]
    weight = torch.cat(parts[len(outside) :], 1).to(dtype)
    answer = answer + _weighted_values(weight, values, index, layout.cluster_size)
    return answer.view(q.shape), sum(x.shape[1] for x in scores)


def _choose(
    q: Tensor, keys: Tensor, summary: Summary, layout: Layout, scores: list[Tensor], allowed: Tensor | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Choose the clusters that are read, and append the scores of their pairs.

    Returns:
        (N, K) places of the clusters in the buffers; the log weights (N, clusters) of the others, -inf for those that
        are read; and what :func:`_regression` needs of them, None where the error is to be proven.
    """
    size, slack = layout.cluster_size, layout.slack
    place = torch.arange(len(q), device=q.device)[:, None] * (keys.shape[2] // size) + layout.begin // size

    def take(chosen: Tensor) -> Tensor:
        index = chosen + place
        clusters = keys.view(-1, size * q.shape[1]).index_select(0, index.flatten())
        scores.append(_scores(q, clusters.view(len(q), -1, q.shape[1])))
        unread.scatter_(1, chosen, -torch.inf)
        return index

    centre = torch.bmm(q[:, None], summary["keys"])[:, 0]  # q.c
    unread = centre + math.log(size)  # log L
    covariance, variance = _moments(q, summary)
    rank = centre + torch.minimum(RANKING_DEVIATIONS * variance.sqrt(), variance)
    index = take(rank.topk(min(layout.budget, rank.shape[1]), sorted=False).indices)
    if allowed is None:
        return index, unread + (variance / 2).clamp(max=LARGEST_CORRECTION), (covariance, variance)
    # Further clusters, until the sum of the proven bound is at most what is allowed
    norm = q.norm(dim=1, keepdim=True)
    along = centre / summary["norm"]
    across = (norm**2 * (1 + slack) - along**2).clamp(min=0).sqrt()
    b = torch.maximum(along * summary["high"], along * summary["low"]) + across * summary["aside"] + slack * norm
    gap = centre + math.log(2 * size) + b + torch.log(-torch.expm1(-b))  # log 2 (U - L)
    # First of all those that were read: where other heads need more clusters, none may be taken twice.
    gap = gap.clamp(min=torch.finfo(gap.dtype).min / 2).masked_fill(unread == -torch.inf, -torch.inf)
    total = torch.cat([*scores, unread], 1).logsumexp(1, keepdim=True)  # log Z', which can only grow
    gap, order = gap.sort(1)
    unneeded = (gap.logcumsumexp(1) - total <= allowed.log()[:, None]).sum(1)
    more = take(order[:, int(unneeded.min()) :])
    return torch.cat([index, more], 1), unread, None


def _moments(q: Tensor, summary: Summary) -> tuple[Tensor, Tensor]:
    """Return Cov(v, k) q of each group, (N, groups, D), and the variance of q.k in each cluster, (N, clusters)."""
    products = torch.bmm(q[:, None], summary["moments"])[:, 0].unflatten(1, (-1, 2, q.shape[1]))
    groups = (products[:, :, 0] * q[:, None]).sum(-1).clamp(min=0)
    variance = groups[..., None] * summary["share"].unflatten(1, (groups.shape[1], -1))
    return products[:, :, 1], variance.flatten(1)


def _regression(weight: Tensor, summary: Summary, covariance: Tensor, variance: Tensor) -> Tensor:
    """Return what Cov(v, k) q adds to the mean values of clusters of these weights (N, clusters), (N, D)."""
    weight = weight * summary["share"] / (variance / (2 * LARGEST_CORRECTION)).clamp(min=1)
    return torch.bmm(weight.unflatten(1, (covariance.shape[1], -1)).sum(-1)[:, None], covariance)[:, 0]


def _weighted_values(weight: Tensor, values: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the (N, D) sums, by weights (N, K size) and in their type, of the values of clusters (N, K)."""
    if weight.dtype != values.dtype:
        chosen = values.view(-1, size * values.shape[-1]).index_select(0, index.flatten())
        chosen = chosen.view(len(weight), -1, values.shape[-1]).to(weight.dtype)
        return torch.bmm(weight[:, None], chosen)[:, 0]
    pairs = (index[..., None] * size + torch.arange(size, device=index.device)).flatten(1)
    return F.embedding_bag(pairs, values.view(-1, values.shape[-1]), per_sample_weights=weight, mode="sum")


def _scores(q: Tensor, keys: Tensor) -> Tensor:
    """Return the (N, n) products of (N, D) with (N, n, D), in q's type."""
    # As a row times a matrix: the other way round is several times slower on a CPU.
    return torch.bmm(q[:, None], keys.to(q.dtype).transpose(1, 2))[:, 0]

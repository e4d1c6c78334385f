"""The sub-linear read of a memory on a CPU: one compiled call for each row, which reads pairs where they lie.

It chooses the same clusters as `torch_read`, those of highest rank, by a threshold on the rank instead of by sorting.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mm_lightning.memory.kernels.numba_decode import weigh
from mm_lightning.memory.kernels.numba_support import array_at, get, in_threads, jit, kinds, prefetch, put, row_at
from mm_lightning.memory.sublinear.summaries import LARGEST_CORRECTION, RANKING_DEVIATIONS, Layout, Summary

COLUMN_TILE = 2048
"""Columns of a product that are summed up at a time, in the nearest cache."""

PREFETCHED_RUN = 64
"""The longest run of pairs that is prefetched explicitly: hardware prefetches longer ones."""

HALVINGS = 64
"""The most bisections in the search for a threshold, more than even nearly equal ranks take."""

INDEX = np.empty(0, np.int64)
"""An empty array of the type of indices."""

_SUMMARY = "keys", "values", "moments", "share", "norm", "high", "low", "aside"


@jit
def _product(vector, matrix, columns, out):  # type: ignore[no-untyped-def]
    """Compute out = vector @ matrix; one entry of `out` a column."""
    dim = len(vector)
    for begin in range(0, columns, COLUMN_TILE):
        end = min(begin + COLUMN_TILE, columns)
        part = out[begin:end]
        part[:] = 0
        for d in range(0, dim - 3, 4):
            v0, v1, v2, v3 = vector[d], vector[d + 1], vector[d + 2], vector[d + 3]
            m0, m1 = matrix[d * columns + begin :], matrix[(d + 1) * columns + begin :]
            m2, m3 = matrix[(d + 2) * columns + begin :], matrix[(d + 3) * columns + begin :]
            for i in range(end - begin):
                part[i] += v0 * m0[i] + v1 * m1[i] + v2 * m2[i] + v3 * m3[i]
        for d in range(dim // 4 * 4, dim):
            v0, m0 = vector[d], matrix[d * columns + begin :]
            for i in range(end - begin):
                part[i] += v0 * m0[i]


@jit
def _largest(rank, budget, places):  # type: ignore[no-untyped-def]
    """Write the places of the `budget` largest in rising order; return how many they are, fewer only with NaN."""
    kind, count = rank.dtype.type, len(rank)
    low, below, high, last, above = kind(-np.inf), rank.min(), rank.max(), kind(np.inf), 0  # `above` exceed `high`
    for _ in range(HALVINGS):
        middle, exceed = below + (high - below) / kind(2), kind(0)
        for i in range(count):
            exceed += kind(1) if rank[i] > middle else kind(0)
        if exceed <= budget:
            high, above = middle, int(exceed)
        else:
            low = below = middle
        if above == budget or middle == last:
            break
        last = middle
    equal, taken = budget - above, 0
    for i in range(count):
        if rank[i] > high or (equal > 0 and rank[i] > low):
            if not rank[i] > high:
                equal -= 1
            places[taken] = i
            taken += 1
    return taken


@jit
def _score(query, keys, like, starts, ends, begin, count, scores, at):  # type: ignore[no-untyped-def]
    """Write a query's products with the keys of the runs begin to count - 1 from scores[at] on; return their end."""
    dim, zero = len(query), scores.dtype.type(0)
    row = dim * like.itemsize
    for c in range(begin, count):
        start, length, ahead = starts[c], ends[c] - starts[c], keys + starts[min(c + 2, count - 1)] * row
        for i in range(length):
            for byte in range(i * row, (i + 1) * row if length <= PREFETCHED_RUN else 0, 64):
                prefetch(ahead + byte)
            k, score = array_at(keys + (start + i) * row, like, dim), zero
            for d in range(dim):
                score += query[d] * get(k, d)
            scores[at + i] = score
        at += length
    return at


@jit
def _add_values(weights, values, like, starts, ends, count, total):  # type: ignore[no-untyped-def]
    """Add the weighted values of `count` runs to `total`."""
    dim, at = len(total), 0
    row = dim * like.itemsize
    for c in range(count):
        start, length, ahead = starts[c], ends[c] - starts[c], values + starts[min(c + 1, count - 1)] * row
        # Four values at a time spare reading and writing the sum for each.
        for i in range(0, length - 3, 4):
            for byte in range(i * row, (i + 4) * row if length <= PREFETCHED_RUN else 0, 64):
                prefetch(ahead + byte)
            v, weight = array_at(values + (start + i) * row, like, 4 * dim), weights[at + i : at + i + 4]
            for d in range(dim):
                part = total[d]
                for j in range(4):
                    part += weight[j] * get(v, j * dim + d)
                total[d] = part
        for i in range(length // 4 * 4, length):
            v, weight = array_at(values + (start + i) * row, like, dim), weights[at + i]
            for d in range(dim):
                total[d] += weight * get(v, d)
        at += length


@jit
def _needed(query, centre, bounds, unread, total, size, allowed, slack, places):  # type: ignore[no-untyped-def]
    """Write the unread clusters that the bound of `key_clusters.py` asks for into `places`, and return their number.

    `total` is log Z'. Clusters of `size` pairs stay unread whose terms of the bound are at most a threshold and sum to
    at most `allowed`.
    """
    norms, highs, lows, asides = bounds
    count, squares = len(centre), (query * query).sum()
    gaps = np.zeros(count, np.float64)
    for i in range(count):
        if unread[i] > -np.inf:
            along = centre[i] / norms[i]
            across = math.sqrt(max(squares * (1 + slack) - along * along, 0.0))
            b = max(along * highs[i], along * lows[i]) + across * asides[i] + slack * math.sqrt(squares)
            if b > 0:
                gaps[i] = math.exp(centre[i] + math.log(2 * size) + b + math.log(-math.expm1(-b)) - total)
    # A term above `allowed` is one too many, and `count` of allowed / count are not.
    low, high, threshold = allowed / count, allowed, allowed
    for _ in range(HALVINGS):
        left = 0.0
        for i in range(count):
            left += gaps[i] if gaps[i] <= threshold else 0.0
        if left <= allowed:
            low = threshold
        else:
            high = threshold
        last, threshold = threshold, low + (high - low) / 2
        if threshold == last:
            break
    taken = 0
    for i in range(count):
        if gaps[i] > low:
            places[taken] = i
            taken += 1
    return taken


@jit
def _rank(query, centre, products, share, deviations, variance, rank):  # type: ignore[no-untyped-def]
    """Compute the variance of q.k in each cluster, and its rank; `products` is q by the groups' moments."""
    dim, clusters, zero = len(query), len(share), share.dtype.type(0)
    groups = len(products) // (2 * dim)
    each = clusters // groups
    for g in range(groups):
        spread, moment = zero, products[2 * g * dim : (2 * g + 1) * dim]
        for d in range(dim):
            spread += moment[d] * query[d]
        spread = max(spread, zero)
        for i in range(g * each, (g + 1) * each):
            variance[i] = spread * share[i]
            rank[i] = centre[i] + min(deviations * np.sqrt(variance[i]), variance[i])


@jit
def _log_sum(scores, count):  # type: ignore[no-untyped-def]
    most, total = scores[:count].max(), 0.0
    for i in range(count):
        total += math.exp(scores[i] - most)
    return most + math.log(total)


@jit
def _read_row(n, types, sizes, options, places):  # type: ignore[no-untyped-def]
    """Compute the answer of row n, and count the pairs that it read.

    Scores, and then weights, are those of all clusters, then of the pairs of runs: pairs outside clusters, in runs as
    long as a cluster, and the clusters that are read.
    """
    heads, dim, capacity, clusters, groups, size, budget, begin, end, readable, low = sizes
    proven, slack, deviations, correction = options
    queries, firsts, keys, values, means, averages, moments, shares, norms, highs, lows, asides = places[:12]
    allowed, answers, counts = places[12:]
    stored, exact, kind = types[0], types[1], types[1].dtype.type
    zero, one, products_size = kind(0), kind(1), groups * 2 * dim
    query, share = row_at(queries, exact, n, dim), row_at(shares, exact, n, clusters)
    keys += n * capacity * dim * stored.itemsize
    values += n * capacity * dim * stored.itemsize
    centre, products = np.empty(clusters, exact.dtype), np.empty(products_size, exact.dtype)
    _product(query, row_at(means, exact, n, dim * clusters), clusters, centre)
    _product(query, row_at(moments, exact, n, dim * products_size), products_size, products)
    variance, rank = np.empty(clusters, exact.dtype), np.empty(clusters, exact.dtype)
    _rank(query, centre, products, share, kind(deviations), variance, rank)
    chosen = np.empty(clusters, np.int64)
    count = _largest(rank, budget, chosen)
    # Pairs that are read in any case, and those of chosen clusters
    first = max(low, array_at(firsts, types[2], n // heads + 1)[n // heads])
    outside = max(begin - first, 0) + max(readable - end, 0)
    runs = -(-outside // size) + 1 + (clusters if proven else count)
    starts, ends = np.empty(runs, np.int64), np.empty(runs, np.int64)
    scores = np.empty(clusters + outside + (clusters if proven else count) * size, exact.dtype)
    used = none = np.int64(0)  # typed, for numba compiles the kernels that it is passed to anew for each literal
    for at, to in ((first, begin), (end, readable)):
        for start in range(at, to, size):
            starts[used], ends[used] = start, min(start + size, to)
            used += 1
    for c in range(count):
        starts[used], ends[used] = begin + chosen[c] * size, begin + (chosen[c] + 1) * size
        used += 1
    for i in range(clusters):
        scores[i] = centre[i] + kind(math.log(size))
        if not proven:
            scores[i] += min(variance[i] / kind(2), kind(correction))
    for c in range(count):
        scores[chosen[c]] = kind(-np.inf)
    filled = _score(query, keys, stored, starts, ends, none, used, scores, clusters)
    if proven:
        total = kind(_log_sum(scores, filled))
        norm, high = row_at(norms, exact, n, clusters), row_at(highs, exact, n, clusters)
        bounds = norm, high, row_at(lows, exact, n, clusters), row_at(asides, exact, n, clusters)
        most = array_at(allowed, exact, n + 1)[n]
        more, before = _needed(query, centre, bounds, scores, total, size, most, slack, chosen), used
        for c in range(more):
            starts[used], ends[used] = begin + chosen[c] * size, begin + (chosen[c] + 1) * size
            scores[chosen[c]] = kind(-np.inf)
            used += 1
        filled = _score(query, keys, stored, starts, ends, before, used, scores, filled)
    # Sums by weights
    total = weigh(scores, filled, scores[:filled].max())
    weighted = np.zeros(dim, exact.dtype)
    whole, averages = np.array([0, clusters]), averages + n * clusters * dim * exact.itemsize
    _add_values(scores, averages, exact, whole[:1], whole[1:], np.int64(1), weighted)
    _add_values(scores[clusters:], values, stored, starts, ends, used, weighted)
    each = clusters // groups
    for g in range(groups if not proven else 0):
        weight, moment = zero, products[(2 * g + 1) * dim : (2 * g + 2) * dim]
        for i in range(g * each, (g + 1) * each):
            weight += scores[i] * share[i] / max(variance[i] / kind(2 * correction), one)
        for d in range(dim):
            weighted[d] += weight * moment[d]
    answer = row_at(answers, exact, n, dim)
    for d in range(dim):
        put(answer, d, weighted[d] / total)
    put(array_at(counts, types[2], n + 1), n, filled - clusters)


def read(
    q: Tensor, keys: Tensor, values: Tensor, summary: Summary, first: Tensor, layout: Layout, allowed: Tensor | None
) -> tuple[Tensor, float]:
    """Compute :func:`mm_lightning.memory.sublinear.torch_read.read`, each row with as many clusters as its bound needs.

    Arguments and results are the same; keys and values are contiguous.
    """
    rows, (clusters, dim) = q.shape[0] * q.shape[1], summary["values"].shape[1:]
    groups = summary["moments"].shape[2] // (2 * dim)
    answer, counts = torch.empty_like(q), torch.empty(rows, dtype=torch.int64, device="cpu")
    tensors = [x.contiguous() for x in (q, first)] + [keys, values]
    tensors += [summary[name].contiguous() for name in _SUMMARY]
    tensors += [answer if allowed is None else allowed, answer, counts]
    budget = min(layout.budget, clusters)
    arguments = (
        (kinds(keys.dtype)[0], kinds(q.dtype)[0], INDEX),
        (q.shape[1], dim, keys.shape[2], clusters, groups, layout.cluster_size, budget, *layout[2:6]),
        (allowed is not None, layout.slack, RANKING_DEVIATIONS, LARGEST_CORRECTION),
        tuple(x.data_ptr() for x in tensors),
    )
    in_threads(_read_row, range(rows), *arguments, held=tensors)
    return answer, counts.double().mean().item()

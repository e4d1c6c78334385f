"""The sub-linear read of a memory on a CPU: one compiled call for each row, which reads pairs where they lie.

The same as `KeyClusters.read` in torch, by threshold instead of by sorting: the blocks that promise most are those
above the rank that just so many exceed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mm_lightning.memory.kernels.numba_decode import weigh
from mm_lightning.memory.kernels.numba_support import array_at, get, in_threads, jit, kinds, prefetch, put, row_at

STRIP = 2048
"""Columns of a product that are summed up at a time, in the nearest cache."""

FAR = 64
"""Pairs of a run up to which the next ones are asked for ahead: longer ones processors foresee."""

INDEX = np.empty(0, np.int64)
"""Like the places of pairs and blocks."""

_SUMMARY = "keys", "values", "moments", "share", "norm", "high", "low", "aside"

HALVINGS = 64
"""Of the range in which a threshold is sought: more than numbers close together take."""


@jit
def _product(vector, matrix, columns, out):  # type: ignore[no-untyped-def]
    """out = vector @ matrix, whose rows have so many columns."""
    dim = len(vector)
    for begin in range(0, columns, STRIP):
        end = min(begin + STRIP, columns)
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
def _largest(rank, wanted, places):  # type: ignore[no-untyped-def]
    """Writes the places of the `wanted` largest in rising order; returns how many they are, fewer only with NaN."""
    kind, count = rank.dtype.type, len(rank)
    low, below, high, last, above = kind(-np.inf), rank.min(), rank.max(), kind(np.inf), 0  # `above` exceed `high`
    for _ in range(HALVINGS):
        middle, exceed = below + (high - below) / kind(2), kind(0)
        for i in range(count):
            exceed += kind(1) if rank[i] > middle else kind(0)
        if exceed <= wanted:
            high, above = middle, int(exceed)
        else:
            low = below = middle
        if above == wanted or middle == last:
            break
        last = middle
    equal, found = wanted - above, 0
    for i in range(count):
        if rank[i] > high or (equal > 0 and rank[i] > low):
            if not rank[i] > high:
                equal -= 1
            places[found] = i
            found += 1
    return found


@jit
def _score(query, keys, like, starts, ends, begin, count, scores, at):  # type: ignore[no-untyped-def]
    """The products of a query with the keys of the runs begin to count - 1, from scores[at] on; returns its end."""
    dim, zero = len(query), scores.dtype.type(0)
    row = dim * like.itemsize
    for c in range(begin, count):
        start, length, ahead = starts[c], ends[c] - starts[c], keys + starts[min(c + 2, count - 1)] * row
        for i in range(length):
            for byte in range(i * row, (i + 1) * row if length <= FAR else 0, 64):
                prefetch(ahead + byte)
            k, score = array_at(keys + (start + i) * row, like, dim), zero
            for d in range(dim):
                score += query[d] * get(k, d)
            scores[at + i] = score
        at += length
    return at


@jit
def _add(weights, values, like, starts, ends, count, found):  # type: ignore[no-untyped-def]
    """Adds the values of so many runs by their weights."""
    dim, at = len(found), 0
    row = dim * like.itemsize
    for c in range(count):
        start, length, ahead = starts[c], ends[c] - starts[c], values + starts[min(c + 1, count - 1)] * row
        # Four values at a time spare reading and writing the sum for each.
        for i in range(0, length - 3, 4):
            for byte in range(i * row, (i + 4) * row if length <= FAR else 0, 64):
                prefetch(ahead + byte)
            v, weight = array_at(values + (start + i) * row, like, 4 * dim), weights[at + i : at + i + 4]
            for d in range(dim):
                total = found[d]
                for j in range(4):
                    total += weight[j] * get(v, j * dim + d)
                found[d] = total
        for i in range(length // 4 * 4, length):
            v, weight = array_at(values + (start + i) * row, like, dim), weights[at + i]
            for d in range(dim):
                found[d] += weight * get(v, d)
        at += length


@jit
def _needed(query, centre, bounds, unread, total, block, allowed, slack, places):  # type: ignore[no-untyped-def]
    """Write the unread blocks that the bound of `blocks.py` asks for into `places`, and return their number.

    `total` is log Z'. Blocks stay unread whose terms of the bound are at most a threshold and sum to at most `allowed`.
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
                gaps[i] = math.exp(centre[i] + math.log(2 * block) + b + math.log(-math.expm1(-b)) - total)
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
    found = 0
    for i in range(count):
        if gaps[i] > low:
            places[found] = i
            found += 1
    return found


@jit
def _promise(query, centre, moved, share, look, variance, rank):  # type: ignore[no-untyped-def]
    """The variance of q.k in each block, and by how much it may weigh; `moved` is q by the groups' moments."""
    dim, blocks, zero = len(query), len(share), share.dtype.type(0)
    groups = len(moved) // (2 * dim)
    each = blocks // groups
    for g in range(groups):
        spread, moment = zero, moved[2 * g * dim : (2 * g + 1) * dim]
        for d in range(dim):
            spread += moment[d] * query[d]
        spread = max(spread, zero)
        for i in range(g * each, (g + 1) * each):
            variance[i] = spread * share[i]
            rank[i] = centre[i] + min(look * np.sqrt(variance[i]), variance[i])


@jit
def _log_sum(scores, count):  # type: ignore[no-untyped-def]
    most, total = scores[:count].max(), 0.0
    for i in range(count):
        total += math.exp(scores[i] - most)
    return most + math.log(total)


@jit
def _row(n, types, sizes, options, places):  # type: ignore[no-untyped-def]
    """Compute the answer of row n, and count the pairs that it read.

    Scores, and then weights, are those of all blocks, then of the pairs of runs: pairs outside blocks, in runs as long
    as a block, and the blocks that are read.
    """
    heads, dim, capacity, block, blocks, groups, wanted, begin, end, readable, low = sizes
    proven, slack, look, gain = options
    queries, firsts, keys, values, means, averages, moments, shares, norms, highs, lows, asides = places[:12]
    allowed, answers, numbers = places[12:]
    stored, exact, kind = types[0], types[1], types[1].dtype.type
    zero, one, size = kind(0), kind(1), groups * 2 * dim
    query, share = row_at(queries, exact, n, dim), row_at(shares, exact, n, blocks)
    keys += n * capacity * dim * stored.itemsize
    values += n * capacity * dim * stored.itemsize
    centre, moved = np.empty(blocks, exact.dtype), np.empty(size, exact.dtype)
    _product(query, row_at(means, exact, n, dim * blocks), blocks, centre)
    _product(query, row_at(moments, exact, n, dim * size), size, moved)
    variance, rank = np.empty(blocks, exact.dtype), np.empty(blocks, exact.dtype)
    _promise(query, centre, moved, share, kind(look), variance, rank)
    chosen = np.empty(blocks, np.int64)
    count = _largest(rank, wanted, chosen)
    # Pairs that are read in any case, and those of chosen blocks
    first = max(low, array_at(firsts, types[2], n // heads + 1)[n // heads])
    outside = max(begin - first, 0) + max(readable - end, 0)
    runs = -(-outside // block) + 1 + (blocks if proven else count)
    starts, ends = np.empty(runs, np.int64), np.empty(runs, np.int64)
    scores = np.empty(blocks + outside + (blocks if proven else count) * block, exact.dtype)
    used = 0
    for at, to in ((first, begin), (end, readable)):
        for start in range(at, to, block):
            starts[used], ends[used] = start, min(start + block, to)
            used += 1
    for c in range(count):
        starts[used], ends[used] = begin + chosen[c] * block, begin + (chosen[c] + 1) * block
        used += 1
    for i in range(blocks):
        scores[i] = centre[i] + kind(math.log(block))
        if not proven:
            scores[i] += min(variance[i] / kind(2), kind(gain))
    for c in range(count):
        scores[chosen[c]] = kind(-np.inf)
    filled = _score(query, keys, stored, starts, ends, 0, used, scores, blocks)
    if proven:
        total = kind(_log_sum(scores, filled))
        norm, high = row_at(norms, exact, n, blocks), row_at(highs, exact, n, blocks)
        bounds = norm, high, row_at(lows, exact, n, blocks), row_at(asides, exact, n, blocks)
        most = array_at(allowed, exact, n + 1)[n]
        more, before = _needed(query, centre, bounds, scores, total, block, most, slack, chosen), used
        for c in range(more):
            starts[used], ends[used] = begin + chosen[c] * block, begin + (chosen[c] + 1) * block
            scores[chosen[c]] = kind(-np.inf)
            used += 1
        filled = _score(query, keys, stored, starts, ends, before, used, scores, filled)
    # Sums by weights
    total = weigh(scores, filled, scores[:filled].max())
    found = np.zeros(dim, exact.dtype)
    whole = np.array([0, blocks])
    _add(scores, averages + n * blocks * dim * exact.itemsize, exact, whole[:1], whole[1:], 1, found)
    _add(scores[blocks:], values, stored, starts, ends, used, found)
    each = blocks // groups
    for g in range(groups if not proven else 0):
        weight, moment = zero, moved[(2 * g + 1) * dim : (2 * g + 2) * dim]
        for i in range(g * each, (g + 1) * each):
            weight += scores[i] * share[i] / max(variance[i] / kind(2 * gain), one)
        for d in range(dim):
            found[d] += weight * moment[d]
    answer = row_at(answers, exact, n, dim)
    for d in range(dim):
        put(answer, d, found[d] / total)
    put(array_at(numbers, types[2], n + 1), n, filled - blocks)


def read(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    summary: dict[str, Tensor],
    first: Tensor,
    sizes: tuple[int, int, int, int, int, int],
    options: tuple[Tensor | None, float, float, float],
) -> tuple[Tensor, float]:
    """Return a query's answer for each row and head, and the mean number of pairs that were read for it.

    Args:
        q: (B, H, D), in the type that is computed in, that of the summary.
        keys: (B, H, capacity, D), contiguous, as are the others.
        values: the same.
        summary: of all blocks, see :func:`summarize`.
        first: (B,) beginnings of the rows' documents.
        sizes: pairs of a block; blocks to read; the first pair and the end of what lies in blocks; the end of what can
            be read; and the first pair that any row can read.
        options: the largest sum of terms that the bound allows, (B H,), or None to prove nothing; the rounding s,
            `LOOK` and `GAIN` of `blocks.py`.
    """
    block, wanted, *ends = sizes
    rows, (blocks, dim) = q.shape[0] * q.shape[1], summary["values"].shape[1:]
    allowed, *others = options
    groups = summary["moments"].shape[2] // (2 * dim)
    answer, numbers = torch.empty_like(q), torch.empty(rows, dtype=torch.int64, device="cpu")
    tensors = [x.contiguous() for x in (q, first)] + [keys, values]
    tensors += [summary[name].contiguous() for name in _SUMMARY]
    tensors += [answer if allowed is None else allowed, answer, numbers]
    arguments = (
        (kinds(keys.dtype)[0], kinds(q.dtype)[0], INDEX),
        (q.shape[1], dim, keys.shape[2], block, blocks, groups, min(wanted, blocks), *ends),
        (allowed is not None, *others),
        tuple(x.data_ptr() for x in tensors),
    )
    if torch.get_num_threads() == 1:
        for n in range(rows):
            _row(n, *arguments)
    else:
        in_threads(torch.get_num_threads(), _row, range(rows), *arguments, held=tensors)
    return answer, numbers.double().mean().item()

"""The decoding step of a memory on a CPU: equations (8), (9) and (4) for a single token in one compiled call."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import torch
from numba import types as numba_types
from numba.extending import overload
from torch import Tensor

from mm_lightning.memory.kernels.numba_support import array_at, get, in_threads, jit, kinds, put, row_at
from mm_lightning.memory.kernels.torch_features import EPS

PAIR_TILE = 256
"""Pairs whose scores are in memory at a time."""


def weigh(scores, count, most):  # type: ignore[no-untyped-def]
    """Turn scores, none above `most`, into weights exp(score - most) in place, and return their sum."""


@overload(weigh)
def _typed_weigh(scores, count, most):  # type: ignore[no-untyped-def]
    return _weigh_float64 if scores.dtype == numba_types.float64 else _weigh_float32


def _weigh_float64(scores, count, most):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(count):
        scores[i] = math.exp(scores[i] - most)
        total += scores[i]
    return total


def _weigh_float32(scores, count, most):  # type: ignore[no-untyped-def]
    """Compute exp(x) = 2^n exp(y), |y| <= ln(2) / 2, by Taylor's series up to y^7 (error 5e-9).

    Unlike that of the library, a loop of it becomes vector instructions.
    """
    one, total = np.float32(1), np.float32(0)
    for i in range(count):
        x = (scores[i] - most) * np.float32(1.4426950408889634)
        x = np.float32(-126) if x < np.float32(-126) else x  # as good as 0; NaN stays NaN
        n = np.rint(x)
        y = (x - n) * np.float32(0.6931471805599453)
        series = one + y * np.float32(1 / 7)
        for k in (6, 5, 4, 3, 2):
            series = one + y * series * np.float32(1 / k)
        power = np.uint32(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23)).view(np.float32)
        scores[i] = (one + y * series) * power
        total += scores[i]
    return total


@jit
def read_pairs(query, keys, values, first, end, scores, answer):  # type: ignore[no-untyped-def]
    """Compute answer = sum_i exp(query.k_i) v_i / sum_j exp(query.k_j) over the pairs first to end - 1; 0 without any.

    Tile by tile, relative to the highest score so far. Keys and values (., D) are contiguous.
    """
    dim, kind = len(query), answer.dtype.type
    highest, weight = kind(-np.inf), kind(0)
    answer[:] = kind(0)
    for begin in range(first, end, PAIR_TILE):
        count = min(PAIR_TILE, end - begin)
        most = highest
        for i in range(count):
            k, score = keys[(begin + i) * dim : (begin + i + 1) * dim], kind(0)
            for d in range(dim):
                score += query[d] * get(k, d)
            scores[i] = score
            most = max(most, score)
        fade = kind(math.exp(highest - most))
        highest = most
        weight = weight * fade + weigh(scores, count, most)
        for d in range(dim):
            answer[d] *= fade
        # Four pairs at a time spare reading and writing the answer for each.
        for i in range(0, count - 3, 4):
            w0, w1, w2, w3 = scores[i], scores[i + 1], scores[i + 2], scores[i + 3]
            v = values[(begin + i) * dim : (begin + i + 4) * dim]
            for d in range(dim):
                answer[d] += w0 * get(v, d) + w1 * get(v, dim + d) + w2 * get(v, 2 * dim + d) + w3 * get(v, 3 * dim + d)
        for i in range(count // 4 * 4, count):
            w0, v = scores[i], values[(begin + i) * dim : (begin + i + 1) * dim]
            for d in range(dim):
                answer[d] += w0 * get(v, d)
    share = kind(1) / weight if weight > kind(0) else kind(0)
    for d in range(dim):
        answer[d] *= share


@jit
def _step(job, types, sizes, tensors, place):  # type: ignore[no-untyped-def]
    """Compute a token of the heads begin to end - 1 of all rows; `tensors` are addresses, `place` as in `step`."""
    heads, dim, capacity = sizes
    begin, end = job
    stored, exact, kind = types[0], types[1], types[1].dtype.type
    at, lowest, highest, offset = place
    ktildes, gates, decays, betas, raws, gammas, alphas, firsts, totals, scales, befores, all_keys, all_values, out = (
        tensors
    )
    gate, decay, beta = array_at(gates, exact, end), array_at(decays, exact, end), array_at(betas, exact, end)
    gamma, alpha = array_at(gammas, exact, heads), array_at(alphas, exact, heads)
    scale, first = array_at(scales, types[2], end), array_at(firsts, types[3], end // heads + 1)
    one, zero, eps = kind(1), kind(0), kind(EPS)
    scores = np.empty(PAIR_TILE, types[1].dtype)
    query, mixed = np.empty(dim, types[1].dtype), np.empty(dim, types[1].dtype)
    for i in range(begin, end):
        row, h = i // heads, i % heads
        x, ahead = row_at(ktildes, stored, i, dim), row_at(raws, stored, i, dim)
        total, before = row_at(totals, exact, i, dim), row_at(befores, stored, i, dim)
        answer = row_at(out, stored, i, dim)
        keys, values = row_at(all_keys, stored, i, capacity * dim), row_at(all_values, stored, i, capacity * dim)
        # Equation (8), relative to the largest weight
        old = scale[i] + decay[i]
        level = max(old, gate[i])
        scale[i] = level
        fresh, fade = kind(math.exp(gate[i] - level)), kind(math.exp(old - level))
        squares = zero
        for d in range(dim):
            total[d] = fade * total[d] + fresh * get(x, d)
            squares += total[d] * total[d]
        inverse = one / max(kind(math.sqrt(squares)), eps)
        k = keys[at * dim : (at + 1) * dim]
        for d in range(dim):
            put(k, d, total[d] * inverse)
            query[d] = get(k, d) * beta[i]
        # Equation (9): the value of the pair before is complete with this token's raw one.
        now, later, squares = gamma[h], one - gamma[h], zero
        for d in range(dim):
            mixed[d] = now * get(before, d) + later * get(ahead, d)
            squares += mixed[d] * mixed[d]
            before[d] = ahead[d]
        scaled = alpha[h] / max(kind(math.sqrt(squares)), eps)
        v = values[(at - 1) * dim : at * dim]
        for d in range(dim):
            put(v, d, mixed[d] * scaled)
        read_pairs(query, keys, values, max(first[row], lowest) - offset, highest - offset, scores, mixed)
        for d in range(dim):
            put(answer, d, mixed[d])


def step(
    ktilde: Tensor,
    gate: Tensor,
    decay: Tensor,
    beta: Tensor,
    raw: Tensor,
    gamma: Tensor | None,
    alpha: Tensor,
    first: Tensor,
    carried: tuple[Tensor, Tensor, Tensor],
    pairs: tuple[Tensor, ...],
    place: tuple[int, int, int, int],
) -> Tensor:
    """Store one token of each row and return its answers, (B, H, D): equations (8), (9) and (4).

    Args:
        ktilde, raw: (B, H D) raw keys and raw values.
        gate, decay, beta: log g, log lambda and the bandwidth, (B, H) or broadcast to it.
        gamma, alpha: (H,) of equation (9); gamma None: 1.
        first: (B,) int64, where in the stream each row's document begins.
        carried: total (B, H, D) in float32 or better, scale (B, H) in float64 and the raw value (B, H, D) of the token
            before, contiguous; updated in place.
        pairs: keys and values, (B, H, capacity, D) each, contiguous; the new pair is written there.
        place: the index of the new pair in these buffers; the first token of the stream whose pair can be read, and one
            more than the last; and the token whose pair comes first in the buffers.
    """
    total, scale, before = carried
    keys, values = pairs
    batch, heads, dim = before.shape
    answer = torch.empty_like(before)
    gate, decay, beta = (x.to(total.dtype).expand(batch, heads).contiguous() for x in (gate, decay, beta))
    gamma = torch.ones_like(alpha) if gamma is None else gamma
    gamma, alpha = (x.to(total.dtype).contiguous() for x in (gamma, alpha))
    inputs = ktilde.contiguous(), gate, decay, beta, raw.contiguous(), gamma, alpha, first.contiguous()
    held = *inputs, total, scale, before, keys, values, answer
    tensors = tuple(x.data_ptr() for x in held)
    arguments = _types(before.dtype), (heads, dim, keys.shape[2]), tensors, place
    pieces = min(torch.get_num_threads(), batch * heads)
    cuts = [batch * heads * n // pieces for n in range(pieces + 1)]
    in_threads(_step, list(itertools.pairwise(cuts)), *arguments, held=held)
    return answer


@cache
def _types(dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    return *kinds(dtype), np.empty(0, np.float64), np.empty(0, np.int64)

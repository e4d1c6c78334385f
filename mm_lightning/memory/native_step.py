"""A single token through the memories of a block on a CPU: equations (8), (9), (6) and (4) in one compiled call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types as numba_types
from numba.extending import overload
from torch import Tensor

from mm_lightning.memory.bandwidth import FrozenBandwidth
from mm_lightning.memory.compiled import array_at, as_float, compiled, get, in_threads, kinds, put, row_at
from mm_lightning.memory.recurrence import EPS

STRIP = 256
"""Pairs whose scores are held at a time."""


def weigh(scores, count, most):  # type: ignore[no-untyped-def]
    """Turns scores, none above `most`, into weights exp(score - most), and returns their sum."""


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
    """exp(x) = 2^n exp(y), |y| <= ln(2) / 2, by Taylor's series up to y^7 (error 5e-9): unlike the library's, a loop of
    it becomes vector instructions."""
    one, total = np.float32(1), np.float32(0)
    for i in range(count):
        x = (scores[i] - most) * np.float32(1.4426950408889634)
        x = np.float32(-126) if x < np.float32(-126) else x  # as good as 0; NaN stays NaN
        n = np.rint(x)
        y = (x - n) * np.float32(0.6931471805599453)
        series = one + y * np.float32(1 / 7)
        for k in (6, 5, 4, 3, 2):
            series = one + y * series * np.float32(1 / k)
        scores[i] = (one + y * series) * as_float(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))
        total += scores[i]
    return total


@compiled
def _read(query, keys, values, first, end, scores, found):  # type: ignore[no-untyped-def]
    """found = sum_i exp(query.k_i) v_i / sum_j exp(query.k_j) over the pairs first to end - 1; 0 if there are none.

    Strip by strip, relative to the highest score so far. Keys and values (., D) lie one after the other.
    """
    dim, kind = len(query), found.dtype.type
    highest, weight = kind(-np.inf), kind(0)
    found[:] = kind(0)
    for begin in range(first, end, STRIP):
        count = min(STRIP, end - begin)
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
            found[d] *= fade
        # Four pairs at a time spare reading and writing `found` for each.
        for i in range(0, count - 3, 4):
            w0, w1, w2, w3 = scores[i], scores[i + 1], scores[i + 2], scores[i + 3]
            v = values[(begin + i) * dim : (begin + i + 4) * dim]
            for d in range(dim):
                found[d] += w0 * get(v, d) + w1 * get(v, dim + d) + w2 * get(v, 2 * dim + d) + w3 * get(v, 3 * dim + d)
        for i in range(count // 4 * 4, count):
            w0, v = scores[i], values[(begin + i) * dim : (begin + i + 1) * dim]
            for d in range(dim):
                found[d] += w0 * get(v, d)
    share = kind(1) / weight if weight > kind(0) else kind(0)
    for d in range(dim):
        found[d] *= share


@compiled
def _step(job, types, sizes, shared, memories):  # type: ignore[no-untyped-def]
    """Of the heads begin to end - 1 of a row; those of each memory come one after the other.

    `shared` and each of `memories` say where in memory tensors begin.
    """
    batch, heads, count, dim = sizes
    row, begin, end = job
    stored, exact, kind = types[0], types[1], types[1].dtype.type
    firsts, gates, decays, totals, scales, befores, gammas, alphas_psi, alphas, betas_0, betas_1, answers = shared
    gate, decay = array_at(gates, exact, batch * count), array_at(decays, exact, batch * count)
    gamma, alpha_psi = array_at(gammas, exact, count), array_at(alphas_psi, exact, count)
    alpha, beta_0, beta_1 = (
        array_at(alphas, exact, count),
        array_at(betas_0, exact, count),
        array_at(betas_1, exact, count),
    )
    scale, first = array_at(scales, types[2], batch * count), array_at(firsts, types[3], batch)
    one, zero, eps = kind(1), kind(0), kind(EPS)
    scores = np.empty(STRIP, types[1].dtype)
    query, found = np.empty(dim, types[1].dtype), np.empty(dim, types[1].dtype)
    for h in range(begin, end):
        ktildes, raws, all_keys, all_values, capacity, at, lowest, highest, offset = memories[h // heads]
        i, here = row * count + h, row * heads + h % heads
        x, ahead = row_at(ktildes, stored, here, dim), row_at(raws, stored, here, dim)
        total, before = row_at(totals, exact, i, dim), row_at(befores, stored, i, dim)
        out = row_at(answers, stored, i, dim)
        keys, values = row_at(all_keys, stored, here, capacity * dim), row_at(all_values, stored, here, capacity * dim)
        # Equation (8), relative to the largest weight
        old = scale[i] + decay[i]
        level = max(old, gate[i])
        scale[i] = level
        new, kept = kind(math.exp(gate[i] - level)), kind(math.exp(old - level))
        squares = zero
        for d in range(dim):
            total[d] = kept * total[d] + new * get(x, d)
            squares += total[d] * total[d]
        inverse = one / max(kind(math.sqrt(squares)), eps)
        # Equation (6)
        low, high = max(first[row], lowest) - offset, highest - offset
        beta = beta_0[h] + beta_1[h] * kind(max(high - low, 1)) ** alpha[h]
        k = keys[at * dim : (at + 1) * dim]
        for d in range(dim):
            put(k, d, total[d] * inverse)
            query[d] = get(k, d) * beta
        # Equation (9): the value of the pair before is complete with this token's raw one.
        now, later, squares = gamma[h], one - gamma[h], zero
        for d in range(dim):
            found[d] = now * get(before, d) + later * get(ahead, d)
            squares += found[d] * found[d]
            before[d] = ahead[d]
        scaled = alpha_psi[h] / max(kind(math.sqrt(squares)), eps)
        v = values[(at - 1) * dim : at * dim]
        for d in range(dim):
            put(v, d, found[d] * scaled)
        _read(query, keys, values, low, high, scores, found)
        for d in range(dim):
            put(out, d, found[d])


@compiled
def _read_rows(types, sizes, places):  # type: ignore[no-untyped-def]
    """Every row's read of its own pairs."""
    rows, count, capacity, dim = sizes
    queries, all_keys, all_values, answers = places
    kind = types[1].dtype
    scores, query, found = np.empty(STRIP, kind), np.empty(dim, kind), np.empty(dim, kind)
    for n in range(rows):
        q, out = row_at(queries, types[0], n, dim), row_at(answers, types[0], n, dim)
        keys, values = row_at(all_keys, types[0], n, capacity * dim), row_at(all_values, types[0], n, capacity * dim)
        for d in range(dim):
            query[d] = get(q, d)
        _read(query, keys, values, 0, count, scores, found)
        for d in range(dim):
            put(out, d, found[d])


def read(q: Tensor, keys: Tensor, values: Tensor, count: int) -> Tensor:
    """Equation (4) as a step computes it, on one thread: answers (B, H, D) to one query a row and head.

    Args:
        q: (B, H, D) with the bandwidth, contiguous, as are the others.
        keys: (B, H, capacity, D).
        values: the same.
        count: how many pairs are read.
    """
    out = torch.empty_like(q)
    places = tuple(x.data_ptr() for x in (q, keys, values, out))
    _read_rows(kinds(q.dtype), (q.shape[0] * q.shape[1], count, *keys.shape[2:]), places)
    return out


class Step:
    """Single tokens through n memories of H heads, in place.

    Args:
        bandwidth: of the n H heads.
        gamma, alpha_psi: (n H,), in float32 or float64.
        carried: total (B, n H, D) in that type, scale (B, n H) in float64 and raw values (B, n H, D) of the token
            before, contiguous; a step leaves those of its own token.
    """

    def __init__(
        self, bandwidth: FrozenBandwidth, gamma: Tensor, alpha_psi: Tensor, carried: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        scalars = gamma, alpha_psi, bandwidth.alpha, bandwidth.beta_0, bandwidth.beta_1
        self._carried, self._scalars = carried, [x.to(carried[0].dtype).contiguous() for x in scalars]

    def __call__(
        self,
        ktilde: Sequence[Tensor],
        raw: Sequence[Tensor],
        gate: Tensor,
        decay: Tensor,
        first: Tensor,
        memories: Sequence[tuple[Any, Any, tuple[int, ...]]],
    ) -> Tensor:
        """Stores a token in every memory, and answers it.

        Args:
            ktilde: of each memory (B, H D) raw keys.
            raw: of each memory (B, H D) raw values.
            gate, decay: log g and log lambda, (B, n H).
            first: (B,) int64, where in the stream each row's document begins.
            memories: of each, keys and values (B, H, capacity, D), which take in the pair; where there it goes, the
                first and one more than the last token of the stream whose pair can be read, and the token that comes
                first in the buffers.

        Returns:
            (B, n H, D)
        """
        total, _, before = self._carried
        batch, count, dim = before.shape
        answer = torch.empty_like(before)
        ktilde, raw = [x.contiguous() for x in ktilde], [x.contiguous() for x in raw]
        gate, decay = (x.to(total.dtype).contiguous() for x in (gate, decay))
        inputs = first.contiguous(), gate, decay, *self._carried, *self._scalars, answer
        each = tuple(
            (x.data_ptr(), y.data_ptr(), keys.data_ptr(), values.data_ptr(), keys.shape[2], *place)
            for x, y, (keys, values, place) in zip(ktilde, raw, memories, strict=True)
        )
        shared = tuple(x.data_ptr() for x in inputs)
        arguments = _types(before.dtype), (batch, count // len(each), count, dim), shared, each
        threads = min(torch.get_num_threads(), batch * count)
        if threads == 1:
            for row in range(batch):
                _step((row, 0, count), *arguments)
        else:
            # Every other head in a job, because those of a memory with a window have less to read
            jobs = [(row, h, h + 1) for row in range(batch) for h in range(count)]
            shares = [jobs[i::threads] for i in range(threads)]
            in_threads(threads, _run, shares, arguments, held=(ktilde, raw, inputs, memories))
        return answer


def _run(jobs: Sequence[tuple[int, ...]], arguments: tuple) -> None:
    for job in jobs:
        _step(job, *arguments)


@cache
def _types(dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    return *kinds(dtype), np.empty(0, np.float64), np.empty(0, np.int64)

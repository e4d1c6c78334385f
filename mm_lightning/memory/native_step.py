"""A single token through the memories of a block on a CPU: equations (8), (9) and (4) in one compiled call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm_lightning.memory.native import _compiled, _get, _put, pool
from mm_lightning.memory.recurrence import EPS

STRIP = 256
"""Pairs whose scores are held at a time."""


@_compiled
def _step(  # type: ignore[no-untyped-def]
    job, ktilde, raw, before, gate, decay, beta, gamma, alpha, total, scale, at, low, high, keys, values,
    new_total, new_scale, new_raw, answer,
):  # fmt: skip
    """Of the heads first to last - 1 of a row; those of each memory come one after the other."""
    row, first, last, heads, dim = job
    kind = new_total.dtype.type
    zero, one, eps = kind(0), kind(1), kind(EPS)
    scores = np.empty(STRIP, new_total.dtype)
    query, found = np.empty(dim, new_total.dtype), np.empty(dim, new_total.dtype)
    for h in range(first, last):
        memory, head = h // heads, h % heads
        x, s = ktilde[memory][row, head * dim : (head + 1) * dim], new_total[row, h]
        old = scale[row, h] + decay[row, h]
        level = max(old, gate[row, h])
        new_scale[row, h] = level
        new, kept = kind(math.exp(gate[row, h] - level)), kind(math.exp(old - level))
        squares = zero
        for d in range(dim):
            s[d] = kept * total[row, h, d] + new * _get(x, d)
            squares += s[d] * s[d]
        inverse = one / max(kind(math.sqrt(squares)), eps)
        k = keys[memory][row, head, at[memory]]
        for d in range(dim):
            _put(k, d, s[d] * inverse)
            query[d] = _get(k, d) * beta[row, h]
        # The value of the pair before is complete with this token's raw one.
        x, y, z = raw[memory][row, head * dim : (head + 1) * dim], before[row, h], new_raw[row, h]
        now, ahead, squares = gamma[h], one - gamma[h], zero
        for d in range(dim):
            mixed = now * _get(y, d) + ahead * _get(x, d)
            squares += mixed * mixed
            z[d] = x[d]
        scaled = alpha[h] / max(kind(math.sqrt(squares)), eps)
        v = values[memory][row, head, at[memory] - 1]
        for d in range(dim):
            _put(v, d, (now * _get(y, d) + ahead * _get(x, d)) * scaled)
        # The pairs low to high - 1 are read strip by strip, relative to the highest score so far.
        highest, weight = kind(-np.inf), zero
        found[:] = zero
        for begin in range(low[row, memory], high[memory], STRIP):
            count = min(STRIP, high[memory] - begin)
            most = highest
            for i in range(count):
                k = keys[memory][row, head, begin + i]
                score = zero
                for d in range(dim):
                    score += query[d] * _get(k, d)
                scores[i] = score
                most = max(most, score)
            fade = kind(math.exp(highest - most))
            highest = most
            weight *= fade
            for d in range(dim):
                found[d] *= fade
            for i in range(count):
                share = kind(math.exp(scores[i] - most))
                weight += share
                v = values[memory][row, head, begin + i]
                for d in range(dim):
                    found[d] += share * _get(v, d)
        share = one / weight if weight > zero else zero
        out = answer[row, h]
        for d in range(dim):
            _put(out, d, found[d] * share)


def step(
    ktilde: Sequence[Tensor],
    raw: Sequence[Tensor],
    before: Tensor,
    scalars: Sequence[Tensor],
    total: Tensor,
    scale: Tensor,
    at: Sequence[int],
    low: Tensor,
    high: Sequence[int],
    buffers: Sequence[tuple[Any, Any]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stores a token in n memories of H heads, and answers it.

    Args:
        ktilde: of each memory (B, H D) raw keys.
        raw: of each memory (B, H D) raw values.
        before: (B, n H, D) raw values of the token before.
        scalars: log g, log lambda and beta, (B, n H) each, gamma and alpha_psi, (n H,), in float32 or float64.
        total: (B, n H, D) of the token before, in the same type.
        scale: (B, n H) of the token before, in float64.
        at: where each memory's pair goes.
        low: (B, n) int64, the first pair that each row reads of each memory.
        high: one more than the last pair that is read of each memory.
        buffers: of each memory, keys and values (B, H, capacity, D), written in place.

    Returns:
        total, scale and raw values of this token, and the answer (B, n H, D).
    """
    batch, count, dim = before.shape
    new_total, new_scale = torch.empty_like(total), torch.empty_like(scale)
    new_raw, answer = torch.empty_like(before), torch.empty_like(before)
    tuples = [tuple(_array(x) for x in xs) for xs in (ktilde, raw, *zip(*buffers, strict=True))]
    inputs = [_array(x) for x in (before, *scalars, total, scale)]
    outputs = [_array(x) for x in (new_total, new_scale, new_raw, answer)]
    arguments = *tuples[:2], *inputs, tuple(at), low.numpy(), tuple(high), *tuples[2:], *outputs
    threads = min(torch.get_num_threads(), batch * count)
    heads = count // len(buffers)
    if threads == 1:
        for row in range(batch):
            _step((row, 0, count, heads, dim), *arguments)
    else:
        # Every other head in a job, because those of a memory with a window have less to read
        jobs = [(row, h, h + 1, heads, dim) for row in range(batch) for h in range(count)]
        for future in [pool(threads).submit(_run, jobs[i::threads], arguments) for i in range(threads)]:
            future.result()
    return new_total, new_scale, new_raw, answer


def _run(jobs: Sequence[tuple[int, ...]], arguments: tuple) -> None:
    for job in jobs:
        _step(job, *arguments)


def _array(x: Tensor) -> np.ndarray:
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()

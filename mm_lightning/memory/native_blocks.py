"""Reads of chosen blocks of pairs on a CPU, where they lie: no copy of what is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm_lightning.memory.compiled import array_at, compiled, get, in_threads, kinds, prefetch, row_at

FAR = 64
"""Values of a block up to which the next ones are asked for ahead: longer rows processors foresee."""


@compiled
def _score(n, types, sizes, places):  # type: ignore[no-untyped-def]
    """Of row n: q.k of all pairs of its blocks."""
    chosen, block, dim, room = sizes
    queries, buffer, indices, results = places
    query = row_at(queries, types[1], n, dim)
    keys = array_at(buffer, types[0], room)
    index = row_at(indices, types[2], n, chosen)
    out = row_at(results, types[1], n, chosen * block)
    size = block * dim * types[0].itemsize
    for c in range(chosen):
        begin, ahead = index[c] * block * dim, buffer + index[min(c + 2, chosen - 1)] * size
        for i in range(block):
            for at in range(i * dim * types[0].itemsize, (i + 1) * dim * types[0].itemsize, 64):
                prefetch(ahead + at)
            k, score = keys[begin + i * dim : begin + (i + 1) * dim], types[1].dtype.type(0)
            for d in range(dim):
                score += query[d] * get(k, d)
            out[c * block + i] = score


@compiled
def _add(n, types, sizes, places):  # type: ignore[no-untyped-def]
    """Of row n: the sum of all pairs' values by their weights."""
    chosen, block, dim, room = sizes
    weights, buffer, indices, results = places
    weight = row_at(weights, types[1], n, chosen * block)
    values = array_at(buffer, types[0], room)
    index = row_at(indices, types[2], n, chosen)
    out = row_at(results, types[1], n, dim)
    size = block * dim * types[0].itemsize
    for c in range(chosen):
        begin, ahead = index[c] * block * dim, buffer + index[min(c + 2, chosen - 1)] * size
        for at in range(0, size if block <= FAR else 0, 64):
            prefetch(ahead + at)
        # Four pairs at a time spare reading and writing the sum for each.
        for i in range(0, block - 3, 4):
            at = c * block + i
            w0, w1, w2, w3 = weight[at], weight[at + 1], weight[at + 2], weight[at + 3]
            v = values[begin + i * dim : begin + (i + 4) * dim]
            for d in range(dim):
                out[d] += w0 * get(v, d) + w1 * get(v, dim + d) + w2 * get(v, 2 * dim + d) + w3 * get(v, 3 * dim + d)
        for i in range(block // 4 * 4, block):
            v, w0 = values[begin + i * dim : begin + (i + 1) * dim], weight[c * block + i]
            for d in range(dim):
                out[d] += w0 * get(v, d)


def scores(q: Tensor, keys: Tensor, index: Tensor, block: int) -> Tensor:
    """(N, K block) products of queries with the keys of their blocks.

    Args:
        q: (N, D), in the type that is computed in.
        keys: (..., D), contiguous, in which each `block` of keys is a block.
        index: (N, K) int64, which blocks each query reads.
        block: keys of a block.
    """
    out = q.new_empty(len(q), index.shape[1] * block)
    _by_rows(_score, q, keys, index, block, out)
    return out


def weighted(weight: Tensor, values: Tensor, index: Tensor, block: int) -> Tensor:
    """(N, D) sums of the values of chosen blocks; weights (N, K block), otherwise as for :func:`scores`."""
    out = weight.new_zeros(len(weight), values.shape[-1])
    _by_rows(_add, weight, values, index, block, out)
    return out


def _by_rows(kernel: Callable[..., None], x: Tensor, buffer: Tensor, index: Tensor, block: int, out: Tensor) -> None:
    x, index = x.contiguous(), index.contiguous()
    sizes = index.shape[1], block, buffer.shape[-1], buffer.numel()
    arguments = _types(buffer.dtype), sizes, tuple(y.data_ptr() for y in (x, buffer, index, out))
    if torch.get_num_threads() == 1:
        for n in range(len(x)):
            kernel(n, *arguments)
    else:
        in_threads(torch.get_num_threads(), kernel, range(len(x)), *arguments, held=(x, buffer, index, out))


@cache
def _types(dtype: torch.dtype) -> tuple[Any, ...]:
    return *kinds(dtype), np.empty(0, np.int64)

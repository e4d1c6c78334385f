"""What networks do with a single token on a CPU: linear maps and norms, as fast as weights can be read.

torch's products of a matrix and a vector read several rows side by side, which memory delivers at two thirds of its
speed; and its norm is six operations, each of which takes longer to start than to run.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from mm_lightning.memory.compiled import array_at, compiled, get, in_threads, kinds, put

SHARE = 2**19
"""Weights that are worth a thread of their own."""


@compiled
def _product(rows, types, columns, weights, vector, result):  # type: ignore[no-untyped-def]
    """Of the rows first to last - 1: W x."""
    first, last = rows
    weight, x, out = (
        array_at(weights, types[0], last * columns),
        array_at(vector, types[0], columns),
        array_at(result, types[0], last),
    )
    for i in range(first, last):
        row, total = weight[i * columns : (i + 1) * columns], types[1].dtype.type(0)
        for j in range(columns):
            total += get(row, j) * get(x, j)
        put(out, i, total)


@compiled
def _rms_norm(types, dim, eps, vector, weights, result):  # type: ignore[no-untyped-def]
    x, weight, out = (
        array_at(vector, types[0], dim),
        array_at(weights, types[0], dim),
        array_at(result, types[0], dim),
    )
    kind = types[1].dtype.type
    squares = kind(0)
    for j in range(dim):
        squares += get(x, j) * get(x, j)
    inverse = kind(1) / kind(math.sqrt(squares / dim + eps))
    for j in range(dim):
        put(out, j, get(x, j) * inverse * get(weight, j))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """W x, (..., n), of a single token x (..., d) and weights (n, d) of the same type."""
    rows, columns = weight.shape
    out = x.new_empty(*x.shape[:-1], rows)
    threads = min(torch.get_num_threads(), rows * columns // SHARE)
    arguments = columns, weight.data_ptr(), x.data_ptr(), out.data_ptr()
    if threads < 2:
        _product((0, rows), kinds(x.dtype), *arguments)
        return out
    parts = itertools.pairwise(rows * n // threads for n in range(threads + 1))
    in_threads(threads, _product, parts, kinds(x.dtype), *arguments, held=(weight, x, out))
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight of a single token x (..., d), with weights (d,) of its type."""
    out = torch.empty_like(x)
    _rms_norm(kinds(x.dtype), len(weight), eps, x.data_ptr(), weight.data_ptr(), out.data_ptr())
    return out

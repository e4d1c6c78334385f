"""Keys and values on a GPU, equations (8) and (9), by Triton: parallel over rows, heads and chunks of time.

The keys take three passes: what each chunk adds up to, what comes into each chunk from those before it, the results.
The last goes through the chunks in the other direction than the first, to begin with what the cache still holds. Sums
over tokens are triangular matrix products, and none is atomic: the same inputs always have the same results.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mm_lightning.memory.kernels import triton_kernels
from mm_lightning.memory.kernels.torch_features import contiguous_rows

CHUNK = 32
"""Tokens of one head that one program computes."""

CHUNKS = 64
"""Chunks that one step of a sum over chunks adds."""

COLUMNS = 16
"""Dimensions of a head that one program sums over chunks."""


def keys(raw: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q and k, (B, T, H, D), and fresh, log fade and |S| for the derivative, (3, B, H, T).

    Args:
        raw: (B, T, H, D) in float32, bfloat16 or float16.
        gate, decay, beta: (B, T, H), contiguous, float32.
        starts: (B, T) bool, where documents begin.
    """
    batch, time, heads, dim = raw.shape
    q, k = (raw.new_empty(raw.shape) for _ in range(2))
    saved = gate.new_empty(3, batch, heads, time)
    grid, sizes = _grid(raw)
    chunks = grid[1]
    ends = gate.new_empty(batch, heads, chunks, dim)
    scales_and_fades = gate.new_empty(batch, heads, chunks, 2, dtype=torch.float64)
    scales = gate.new_empty(batch, heads, chunks, dtype=torch.float64)
    layout = *raw.stride()[:3], time, heads, dim
    begins = starts.contiguous().view(torch.uint8)
    with torch.cuda.device_of(raw):
        triton_kernels.keys_ends[grid](raw, gate, decay, begins, ends, scales_and_fades, *layout, **sizes)
        triton_kernels.keys_carry[_carry_grid(raw)](
            ends, scales_and_fades, scales, chunks, heads, dim, N=CHUNKS, D=COLUMNS, num_warps=8
        )
        arrays = raw, gate, decay, begins, beta, ends, scales, q, k, *saved
        triton_kernels.keys_results[grid](*arrays, *layout, **sizes, PRECISION=_precision(raw))
    return q, k, saved


def keys_backward(
    raw: Tensor, beta: Tensor, starts: Tensor, k: Tensor, saved: Tensor, d_q: Tensor, d_k: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the derivatives by raw, gate, decay and beta from those by the results of :func:`keys`."""
    batch, time, heads, dim = raw.shape
    d_raw = raw.new_empty(raw.shape)
    d_gate, d_decay, d_beta = (beta.new_empty(beta.shape) for _ in range(3))
    d_q, d_k = contiguous_rows(d_q), contiguous_rows(d_k)
    grid, sizes = _grid(raw)
    chunks = grid[1]
    ends = beta.new_empty(batch, heads, chunks, dim)
    left = beta.new_empty(batch, heads, chunks, dtype=torch.float64)
    layout = *d_q.stride()[:3], *d_k.stride()[:3], time, heads, dim
    with torch.cuda.device_of(raw):
        triton_kernels.back_ends[grid](beta, k, *saved[1:], d_q, d_k, ends, left, *layout, **sizes)
        triton_kernels.back_carry[_carry_grid(raw)](ends, left, chunks, heads, dim, N=CHUNKS, D=COLUMNS, num_warps=8)
        arrays = raw, starts.contiguous().view(torch.uint8), beta, k, *saved, d_q, d_k, ends
        arguments = d_raw, d_gate, d_decay, d_beta, *raw.stride()[:3], *layout
        triton_kernels.back_results[grid](*arrays, *arguments, **sizes, PRECISION=_precision(raw))
    return d_raw, d_gate, d_decay, d_beta


def values(raw: Tensor, gamma: Tensor, alpha: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (B, T, H, D) and their norms before scaling, (B, T, H).

    Args:
        raw: (B, T, H, D) in float32, bfloat16 or float16.
        gamma, alpha: (H,) float32.
        starts: (B, T) bool, where documents begin.
    """
    v, norm = raw.new_empty(raw.shape), gamma.new_empty(raw.shape[:3])
    grid, sizes = _grid(raw)
    arrays = raw, starts.contiguous().view(torch.uint8), gamma.contiguous(), alpha.contiguous(), v, norm
    with torch.cuda.device_of(raw):
        triton_kernels.values_results[grid](*arrays, *raw.stride()[:3], *raw.shape[1:], **sizes)
    return v, norm


def values_backward(
    raw: Tensor, gamma: Tensor, alpha: Tensor, starts: Tensor, v: Tensor, norm: Tensor, d_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives by raw, gamma and alpha from that by the result of :func:`values`."""
    d_raw, d_v = raw.new_empty(raw.shape), contiguous_rows(d_v)
    grid, sizes = _grid(raw)
    sums = gamma.new_empty(2, raw.shape[0], grid[1], raw.shape[2])
    arrays = raw, starts.contiguous().view(torch.uint8), gamma.contiguous(), alpha.contiguous(), v, norm, d_v, d_raw
    with torch.cuda.device_of(raw):
        triton_kernels.values_back[grid](*arrays, *sums, *raw.stride()[:3], *d_v.stride()[:3], *raw.shape[1:], **sizes)
    return d_raw, sums[0].sum((0, 1)), sums[1].sum((0, 1))


def _grid(raw: Tensor) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Return the grid and the sizes of kernels over chunks. Heads come first: their gates lie side by side."""
    batch, time, heads, dim = raw.shape
    grid = heads, -(-time // CHUNK), batch
    return grid, {"C": CHUNK, "D": max(16, 1 << (dim - 1).bit_length()), "num_warps": 4 if dim <= 128 else 8}


def _carry_grid(raw: Tensor) -> tuple[int, int, int]:
    """Return the grid of kernels that sum over chunks."""
    return raw.shape[2], -(-raw.shape[3] // COLUMNS), raw.shape[0]


def _precision(raw: Tensor) -> str:
    """Return the precision of matrix products: 11 bits of weights are enough where results are rounded to 16."""
    return "ieee" if raw.dtype == torch.float32 else "tf32"

"""Equation (4) over a window on a CPU: flash attention, one tile of queries after the other.

Each tile is read against just the keys that one of its queries sees, which are slices, not copies; the derivatives by
keys and values are added up in place, where autograd would make a tensor as long as the document of each slice's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

TILE = 64
"""Queries of a tile. More see more keys that only some of them read, fewer are slower products."""


def windowed_read(q: Tensor, k: Tensor, v: Tensor, size: int, scale: float) -> Tensor:
    """Read causally the last `size` keys.

    Args:
        q: (B, H, T, D) queries.
        k: (B, G, T, D) keys; each of the G heads serves H/G queries.
        v: (B, G, T, D) values.
        size: the largest number of pairs read.
        scale: a factor on q.k.

    Returns:
        (B, H, T, D), stored tokens first.
    """
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return _WindowedRead.apply(q, k, v, size, scale)


class _WindowedRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: int, scale: float) -> Tensor:
        batch, heads, time, dim = q.shape
        out = q.new_empty(batch, time, heads, dim).transpose(1, 2)
        log_sums = []
        for tile, near, mask in _tiles(time, size, q.dtype):
            answers, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, tile], k[:, :, near], v[:, :, near], attn_mask=mask, scale=scale
            )
            out[:, :, tile] = answers
            log_sums.append(log_sum)
        ctx.save_for_backward(q, k, v, out, *log_sums)
        ctx.settings = size, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple:  # type: ignore[override]
        q, k, v, out, *log_sums = ctx.saved_tensors
        size, scale = ctx.settings
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (tile, near, mask), log_sum in zip(_tiles(q.shape[2], size, q.dtype), log_sums, strict=True):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                d_out[:, :, tile], q[:, :, tile], k[:, :, near], v[:, :, near], out[:, :, tile], log_sum,
                0.0, False, attn_mask=mask, scale=scale,
            )  # fmt: skip
            d_q[:, :, tile] = parts[0]
            d_k[:, :, near] += parts[1]
            d_v[:, :, near] += parts[2]
        return d_q, d_k, d_v, None, None


def _tiles(time: int, size: int, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield each tile of queries, the keys that one of them sees, and the mask that is added to their scores."""
    mask = band_mask(size, TILE, size - 1, dtype, torch.device("cpu"))
    for begin in range(0, time, TILE):
        end, first = min(begin + TILE, time), max(0, begin - size + 1)
        part = mask[: end - begin, size - 1 - (begin - first) : size - 1 + end - begin]
        yield slice(begin, end), slice(first, end), part


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a mask that is first cached in inference must work in training
def band_mask(size: int, tile: int, before: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the additive mask of a tile of queries over `before` keys and its own: 0 on the last `size`, else -inf.

    (tile, before + tile) for causal reads of the last `size` keys.
    """
    age = torch.arange(tile, device=device)[:, None] + before - torch.arange(before + tile, device=device)
    mask = torch.zeros(age.shape, dtype=dtype, device=device)
    return mask.masked_fill_((age < 0) | (age >= size), -torch.inf)

"""Reads of the last pairs on a CPU: equation (4) by flash attention, block after block of queries.

Each block is read against just the keys that one of its queries sees, which are slices, not copies; the derivatives by
keys and values are added up in place, where autograd would make a tensor as long as the document of each slice's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 64
"""Queries of a block. More see more keys that only some of them read, fewer are slower products."""


def windowed_read(q: Tensor, k: Tensor, v: Tensor, size: int, scale: float) -> Tensor:
    """Causal reads of the last `size` keys.

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
    return _Read.apply(q, k, v, size, scale)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: int, scale: float) -> Tensor:
        batch, heads, time, dim = q.shape
        out = q.new_empty(batch, time, heads, dim).transpose(1, 2)
        log_sums = []
        for now, near, mask in _blocks(time, size, q.dtype):
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, now], k[:, :, near], v[:, :, near], attn_mask=mask, scale=scale
            )
            out[:, :, now] = part
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
        for (now, near, mask), log_sum in zip(_blocks(q.shape[2], size, q.dtype), log_sums, strict=True):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                d_out[:, :, now], q[:, :, now], k[:, :, near], v[:, :, near], out[:, :, now], log_sum,
                0.0, False, attn_mask=mask, scale=scale,
            )  # fmt: skip
            d_q[:, :, now] = parts[0]
            d_k[:, :, near] += parts[1]
            d_v[:, :, near] += parts[2]
        return d_q, d_k, d_v, None, None


def _blocks(time: int, size: int, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of queries, the keys that one of them sees, and what is added to their scores."""
    band = _band(size, dtype)
    for begin in range(0, time, BLOCK):
        end, first = min(begin + BLOCK, time), max(0, begin - size + 1)
        now = band[: end - begin, size - 1 - (begin - first) : size - 1 + end - begin]
        yield slice(begin, end), slice(first, end), now


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what inference is first to ask for, training uses later
def _band(size: int, dtype: torch.dtype) -> Tensor:
    """(BLOCK, size - 1 + BLOCK) of a block of queries over its keys: 0 where visible, else -inf."""
    age = torch.arange(BLOCK)[:, None] + size - 1 - torch.arange(size - 1 + BLOCK)
    return torch.zeros(age.shape, dtype=dtype).masked_fill_((age < 0) | (age >= size), -torch.inf)

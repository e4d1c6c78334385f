"""Cross-entropy of a linear classifier without having the logits of all tokens at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.documents import IGNORE_INDEX
from mm_lightning.memory.kernels import Kernels, resolve_kernels
from mm_lightning.networks.torch_loss import errors_reference

LOGITS = 2**28
"""Logits in memory at a time: 1 GiB in float32. Where they stay in 16 bits, twice as many."""


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, kernels: Kernels = "auto") -> Tensor:
    """Compute `F.cross_entropy(F.linear(x, weight).float(), targets)` in chunks, along with its derivatives.

    Matrix products are computed in autocast's type, all else in float32.

    Args:
        x: (N, d).
        weight: (V, d).
        targets: (N,) int64; -100 where there is none.
        kernels: the kernels that compute the loss from logits: Triton's where keys and values are computed by Triton.

    Returns:
        The mean over targets other than -100, in float32 or better; NaN if there is none.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _LinearCrossEntropy.apply(x, weight, targets, dtype, torch.is_grad_enabled(), _by_triton(kernels, x, dtype))


def _by_triton(kernels: Kernels, x: Tensor, dtype: torch.dtype) -> bool:
    if not x.is_cuda or resolve_kernels(kernels, x.device, dtype) != "triton":
        return False
    from mm_lightning.networks import triton_loss

    return kernels == "triton" or triton_loss.kernel_mismatch(x.device, dtype) is None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, learns: bool, by_triton: bool
    ) -> Tensor:
        total, d_x, d_weight = _in_chunks(x, weight, targets, dtype, learns, by_triton)
        count = (targets != IGNORE_INDEX).sum()
        ctx.save_for_backward(d_x, d_weight, count)
        ctx.dtype = weight.dtype
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        d_x, d_weight, count = ctx.saved_tensors
        share = grad / count.clamp(min=1)
        return d_x * share, (d_weight * share).to(ctx.dtype), None, None, None, None


@torch.library.custom_op(__name__.replace(".", "_") + "::in_chunks", mutates_args=())
def _in_chunks(
    x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, learns: bool, by_triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed loss and, with `learns`, its derivatives by x, in x's type, and by weight, at least float32."""
    exact = torch.promote_types(dtype, torch.float32)
    total = torch.zeros((), dtype=exact, device=x.device)
    d_x = torch.empty_like(x) if learns else x.new_empty(0)
    d_weight = torch.zeros_like(weight, dtype=exact) if learns else total.new_empty(0)
    # Triton's kernel leaves logits in their type.
    size = max(1, LOGITS * (4 // dtype.itemsize if by_triton else 1) // len(weight))
    size -= size % 128 if size > 128 else 0  # matrix products come in tiles
    with torch.autocast(x.device.type, enabled=False):
        weight = weight.to(dtype)
        for begin in range(0, len(x), size):
            part = slice(begin, begin + size)
            inputs = x[part].to(dtype)
            logits = F.linear(inputs, weight)  # (n, V)
            if by_triton:
                from mm_lightning.networks.triton_loss import errors

                losses, d_logits = errors(logits, targets[part], IGNORE_INDEX, learns), logits
            else:
                losses, d_logits = errors_reference(logits, targets[part], exact, learns)
            total += losses.sum()
            if learns:
                d_logits = d_logits.to(dtype)
                d_x[part] = d_logits @ weight
                d_weight += d_logits.T @ inputs
    return total, d_x, d_weight


@_in_chunks.register_fake
def _(x, weight, targets, dtype, learns, by_triton):  # type: ignore[no-untyped-def]
    exact = torch.promote_types(dtype, torch.float32)
    total = torch.empty((), dtype=exact, device=x.device)
    if not learns:
        return total, x.new_empty(0), total.new_empty(0)
    return total, torch.empty_like(x), torch.empty_like(weight, dtype=exact)

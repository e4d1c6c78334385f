"""Cross-entropy of a linear classifier without having the logits of all tokens at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
"""The target that counts for nothing."""

LOGITS = 2**28
"""Logits that exist at a time: 1 GiB in float32."""


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`F.cross_entropy(F.linear(x, weight).float(), targets)`, its derivatives computed along with it.

    Matrix products are computed in autocast's type, all else in float32.

    Args:
        x: (N, d).
        weight: (V, d).
        targets: (N,) int64; -100 where there is none.

    Returns:
        The mean over targets other than -100, a float32 scalar; NaN if there is none.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _LinearCrossEntropy.apply(x, weight, targets, dtype, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, learns: bool) -> Tensor:
        total, d_x, d_weight = _in_chunks(x, weight, targets, dtype, learns)
        count = (targets != IGNORE).sum()
        ctx.save_for_backward(d_x, d_weight, count)
        ctx.dtype = weight.dtype
        return total / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        d_x, d_weight, count = ctx.saved_tensors
        share = grad / count.clamp(min=1)
        return d_x * share, (d_weight * share).to(ctx.dtype), None, None, None


@torch.library.custom_op(__name__.replace(".", "_") + "::in_chunks", mutates_args=())
def _in_chunks(
    x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the losses, and if it learns, its derivatives by x in its type and by weight in float32 or better."""
    exact = torch.promote_types(dtype, torch.float32)
    total = torch.zeros((), dtype=exact, device=x.device)
    d_x = torch.empty_like(x) if learns else x.new_empty(0)
    d_weight = torch.zeros_like(weight, dtype=exact) if learns else total.new_empty(0)
    size = max(1, LOGITS // len(weight))
    with torch.autocast(x.device.type, enabled=False):
        weight = weight.to(dtype)
        for begin in range(0, len(x), size):
            part = slice(begin, begin + size)
            inputs, counts = x[part].to(dtype), targets[part] != IGNORE
            wanted = targets[part].where(counts, 0)[:, None]
            logits = F.linear(inputs, weight).to(exact)  # (n, V)
            scale = logits.logsumexp(-1, keepdim=True)
            found = logits.gather(-1, wanted) - scale  # log of the wanted token's probability
            total -= found.squeeze(-1).where(counts, 0).sum()
            if learns:
                d_logits = logits.sub_(scale).exp_().scatter_(-1, wanted, found.exp() - 1).mul_(counts[:, None])
                d_logits = d_logits.to(dtype)
                d_x[part] = d_logits @ weight
                d_weight += d_logits.T @ inputs
    return total, d_x, d_weight


@_in_chunks.register_fake
def _(x, weight, targets, dtype, learns):  # type: ignore[no-untyped-def]
    exact = torch.promote_types(dtype, torch.float32)
    total = torch.empty((), dtype=exact, device=x.device)
    if not learns:
        return total, x.new_empty(0), total.new_empty(0)
    return total, torch.empty_like(x), torch.empty_like(weight, dtype=exact)

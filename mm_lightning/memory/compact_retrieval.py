"""Retrieval by kernels of bounded support, in place of the gaussian of equation (4) (arXiv 2601.22766).

    w_i = max(0, q.k_i / n - tau)^n,    with tau such that the weights sum to 1

Keys of norm 1 make this kernel regression with the epanechnikov (n = 1), biweight (2) or triweight kernel (3), whose
radius adapts to the pairs at hand: sparsemax, and entmax with alpha = 1 + 1/n. Far pairs have weight 0; with growing n
this becomes equation (4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.retrieval import Retrieval

COMPACT_KERNELS = {"epanechnikov": 1, "biweight": 2, "triweight": 3}
"""The power n by the name of the kernel."""
STEPS = 20
"""Newton steps for tau: enough for the 20,000 pairs of its test in float64."""


def compact_weights_reference(scores: Tensor, power: int) -> Tensor:
    """Compute the weights by halving the interval in which tau lies; faster forms must agree.

    Args:
        scores: (..., N) q.k; -inf where a pair is not read.
        power: n.

    Returns:
        (..., N) weights in float64 that sum to 1, or to 0 where no pair is read.
    """
    empty = scores.isneginf().all(-1, keepdim=True)
    z = scores.double().masked_fill(empty, 0) / power
    low, high = z.amax(-1, keepdim=True) - 1, z.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (z - middle).clamp(min=0).pow(power).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (z - low).clamp(min=0).pow(power).masked_fill(empty, 0)


class _CompactWeights(torch.autograd.Function):
    """Weights from scores: tau is the root of a convex function, which Newton's steps approach from below."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, power: int) -> Tensor:
        largest = scores.amax(-1, keepdim=True)
        z = (scores - largest.masked_fill(largest.isneginf(), 0)) / power
        tau = torch.full_like(largest, -1.0)
        for _ in range(STEPS):
            above = (z - tau).clamp_(min=0)
            slope = above.pow(power - 1) if power > 1 else (above > 0).to(z.dtype)
            total = slope.sum(-1, keepdim=True)
            excess = (slope * above).sum(-1, keepdim=True) - 1
            tau = tau + excess.clamp(min=0) / (power * total.clamp(min=torch.finfo(z.dtype).tiny))
        weights = (z - tau).clamp_(min=0).pow(power)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        ctx.save_for_backward(weights)
        ctx.power = power
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        slope = weights.pow(1 - 1 / ctx.power) if ctx.power > 1 else (weights > 0).to(weights.dtype)
        total = slope.sum(-1, keepdim=True)
        mean = (slope * gradient).sum(-1, keepdim=True) / total.clamp(min=torch.finfo(weights.dtype).tiny)
        return slope * (gradient - mean), None


def compact_weights(scores: Tensor, power: int) -> Tensor:
    """Compute the weights of :func:`compact_weights_reference` in the type of the scores, with gradients."""
    return _CompactWeights.apply(scores, power)


class CompactRetrieval(Retrieval):
    """The read of pairs by a kernel of bounded support.

    Args:
        power: n: 1 for epanechnikov, 2 for biweight, 3 for triweight.
    """

    has_dropout = True

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def answer_scaled(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float, dropout: float = 0.0
    ) -> Tensor:
        """Return (B, H, T, D) answers to queries of this shape; see :meth:`Retrieval.answer`."""
        weights = F.dropout(self.tile_weights(q, k, seen, scale), dropout)
        return (weights.to(v.dtype) @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)).to(q.dtype)

    def tile_weights(self, q: Tensor, k: Tensor, seen: Tensor | None, scale: float) -> Tensor:
        """Return (B, H, T, N) weights in float32 or better, from queries (B, H, T, D) and keys (B, G, N, D)."""
        exact = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            scores = scale * q.to(exact) @ k.to(exact).repeat_interleave(q.shape[1] // k.shape[1], 1).mT
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        if self.kernels == "reference":
            return compact_weights_reference(scores, self.power).to(exact)
        return compact_weights(scores, self.power)

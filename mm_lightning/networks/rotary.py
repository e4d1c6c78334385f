"""Rotary position encoding (RoPE), and YaRN, its extension beyond the training context (arXiv 2309.00071)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""cos, and -sin beside sin, of the angles of positions: (B, T, 1, D) each."""
FAST, SLOW = 32.0, 1.0
"""YaRN keeps dimensions that turn more than FAST times in the training context, and stretches those below SLOW."""


def frequencies(dim: int, base: float, factor: float = 1.0, context: int = 1) -> Tensor:
    """Return the angles of one position in radians, (D/2,) in float64.

    Args:
        dim: D.
        base: base of the encoding.
        factor: how many times longer than `context` texts are to be; 1 for RoPE as it was trained.
        context: tokens of the training context.
    """
    # In float64, because position times frequency loses all accuracy in float32 at long contexts.
    plain = base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if factor == 1:
        return plain

    def turning(times: float) -> float:
        """Return the dimension, as a fraction of a pair, that turns so often in the training context."""
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(turning(FAST)), 0), min(math.ceil(turning(SLOW)), dim - 1)
    stretched = ((torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain / factor * stretched + plain * (1 - stretched)


def rotary(position: Tensor, dim: int, base: float, factor: float = 1.0, context: int = 1) -> Rotation:
    """Return cos, and -sin beside sin, of the angles of positions: (B, T, 1, D) each in float32.

    With a factor above 1 both are multiplied by YaRN's 0.1 ln(factor) + 1, so that q.k is by its square. Arguments as
    for :func:`frequencies`.
    """
    angle = position[..., None, None] * frequencies(dim, base, factor, context).to(position.device)
    sharpness = 0.1 * math.log(factor) + 1
    cos, sin = (sharpness * angle.cos()).float(), (sharpness * angle.sin()).float()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of (B, T, H, D) by the angles of their positions."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)

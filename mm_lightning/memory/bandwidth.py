"""How sharply a memory is read: the adaptive bandwidth of v2, equation (6), and the fixed one of v1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm_lightning.memory.layers import TIMES

LARGEST_EXPONENT = math.log(2**16 - 1)
"""The largest exponent of the factor of a key in v1's public code."""


class AdaptiveBandwidth(nn.Module):
    """beta = beta_1 n^alpha + beta_0 for n stored pairs; the three parameters are learned, one of each per head.

    beta_i = exp(min(theta_i, 10)), theta_i = 1.5 at first; alpha = min(|theta|, 1), theta = 1/3 at first (Table 6).
    """

    def __init__(self, heads: int):
        super().__init__()
        self.beta_0_theta = nn.Parameter(torch.empty(heads))
        self.beta_1_theta = nn.Parameter(torch.empty(heads))
        self.alpha_theta = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.beta_0_theta, 1.5)
        nn.init.constant_(self.beta_1_theta, 1.5)
        nn.init.constant_(self.alpha_theta, 1 / 3)

    @property
    def beta_0(self) -> Tensor:
        """(H,)"""
        return _full(self.beta_0_theta).clamp(max=10).exp()

    @property
    def beta_1(self) -> Tensor:
        """(H,)"""
        return _full(self.beta_1_theta).clamp(max=10).exp()

    @property
    def alpha(self) -> Tensor:
        """(H,)"""
        return _full(self.alpha_theta).abs().clamp(max=1)

    def scalars(self) -> dict[str, Tensor]:
        """alpha, beta_0 and beta_1, (H,) each."""
        return {"alpha": self.alpha, "beta_0": self.beta_0, "beta_1": self.beta_1}

    def forward(self, pairs: Tensor) -> Tensor:
        """(B, T, H) bandwidths for (B, T) numbers of stored pairs."""
        return adaptive(pairs[..., None], **self.scalars())


def adaptive(pairs: Tensor, alpha: Tensor, beta_0: Tensor, beta_1: Tensor) -> Tensor:
    """Equation (6): (..., H) bandwidths for (..., 1 or H) numbers of stored pairs and (H,) parameters."""
    # An empty memory answers 0 whatever its bandwidth; 0^alpha has no finite derivative by alpha.
    return torch.addcmul(beta_0, beta_1, pairs.clamp(min=1).to(alpha.dtype) ** alpha)


class FixedBandwidth(nn.Module):
    """beta = exp(2 kappa), one a head, with the limit of v1; kappa = 1 at first, stored divided by ten.

    v1 multiplies keys by factors of at most 65535. In a contextual memory both sides of an inner product are keys, with
    exp(kappa) each; in a persistent one only the query is, with exp(2 kappa).

    Args:
        heads: H.
        scaled_sides: how many sides of an inner product are multiplied: 2 in a contextual memory, 1 in a persistent
            one.
    """

    def __init__(self, heads: int, scaled_sides: int = 2):
        super().__init__()
        self.largest_exponent = scaled_sides * LARGEST_EXPONENT
        self.kappa = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.kappa, 1 / TIMES)

    @property
    def beta(self) -> Tensor:
        """(H,)"""
        return (2 * TIMES * _full(self.kappa)).clamp(max=self.largest_exponent).exp()

    def scalars(self) -> dict[str, Tensor]:
        """beta, (H,)."""
        return {"beta": self.beta}

    def forward(self, pairs: Tensor) -> Tensor:
        """(H,), whatever the number of pairs."""
        return self.beta


@dataclass(frozen=True)
class FrozenBandwidth:
    """beta_1 n^alpha + beta_0 with parameters that no longer change, (H,) each, for inference."""

    alpha: Tensor
    beta_0: Tensor
    beta_1: Tensor

    def __call__(self, pairs: Tensor) -> Tensor:
        """(..., H) of (..., 1 or H) numbers of stored pairs."""
        return adaptive(pairs, self.alpha, self.beta_0, self.beta_1)


def frozen_bandwidth(bandwidths: Sequence[AdaptiveBandwidth | FixedBandwidth]) -> FrozenBandwidth:
    """Of the heads of several memories of one kind, with the present parameters."""
    found = [bandwidth.scalars() for bandwidth in bandwidths]
    joined = {name: torch.cat([scalars[name] for scalars in found]).detach() for name in found[0]}
    if "beta" not in joined:
        return FrozenBandwidth(**joined)
    fixed = joined["beta"]
    return FrozenBandwidth(torch.zeros_like(fixed), fixed, torch.zeros_like(fixed))


def _full(theta: Tensor) -> Tensor:
    return theta.to(torch.promote_types(theta.dtype, torch.float32))

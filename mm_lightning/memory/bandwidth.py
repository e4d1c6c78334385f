"""Bandwidths, which say how sharply a memory is read: the adaptive one of v2, equation (6), and the fixed one of v1.

beta = beta_1 n^alpha + beta_0    for n stored pairs
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mm_lightning.memory.layers import V1_SCALAR_SCALE, MemoryPart

LARGEST_EXPONENT = math.log(2**16 - 1)
"""The largest logarithm of the factor of a key in v1's public code."""


class Bandwidth(MemoryPart):
    """The bandwidth of a memory. Derive from it, and define :meth:`forward`, for another kind.

    The constructor's arguments are those of :class:`mm_lightning.memory.keys.Keys`.
    """

    def forward(self, pairs: Tensor, x: Tensor) -> Tensor:
        """Return beta, (B, T, H) or (H,), above 0.

        Args:
            pairs: (B, T) int64, how many pairs each token reads.
            x: (B, T, d) inputs.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward(pairs, x)")


class AdaptiveBandwidth(Bandwidth):
    """The bandwidth of equation (6), with learned beta_0, beta_1 and alpha, one of each per head.

    beta_i = exp(min(theta_i, 10)), initially theta_i = 1.5; alpha = min(|theta|, 1), initially theta = 1/3 (Table 6).

    Args:
        heads: H.
        initial: the initial bandwidth as a multiple of the published one.
    """

    def __init__(self, heads: int, initial: float = 1.0):
        super().__init__()
        self.initial_theta = 1.5 + math.log(initial)
        self.beta_0_theta = nn.Parameter(torch.empty(heads))
        self.beta_1_theta = nn.Parameter(torch.empty(heads))
        self.alpha_theta = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.beta_0_theta, self.initial_theta)
        nn.init.constant_(self.beta_1_theta, self.initial_theta)
        nn.init.constant_(self.alpha_theta, 1 / 3)

    @property
    def beta_0(self) -> Tensor:
        """beta_0, (H,)."""
        return _to_float32(self.beta_0_theta).clamp(max=10).exp()

    @property
    def beta_1(self) -> Tensor:
        """beta_1, (H,)."""
        return _to_float32(self.beta_1_theta).clamp(max=10).exp()

    @property
    def alpha(self) -> Tensor:
        """alpha, (H,)."""
        return _to_float32(self.alpha_theta).abs().clamp(max=1)

    def scalars(self) -> dict[str, Tensor]:
        """Return alpha, beta_0 and beta_1, (H,) each."""
        return {"alpha": self.alpha, "beta_0": self.beta_0, "beta_1": self.beta_1}

    def forward(self, pairs: Tensor, x: Tensor | None = None) -> Tensor:
        """Return beta (B, T, H) of equation (6) for (B, T) numbers of stored pairs; inputs play no part."""
        alpha = self.alpha
        # An empty memory answers 0 whatever its bandwidth; 0^alpha has no finite derivative by alpha.
        return torch.addcmul(self.beta_0, self.beta_1, pairs[..., None].clamp(min=1).to(alpha.dtype) ** alpha)


class FixedBandwidth(Bandwidth):
    """The bandwidth of v1, beta = exp(2 kappa), with one learned kappa a head, initially 1 and stored divided by ten.

    v1 multiplies keys by factors of at most 65535. In a contextual memory both sides of an inner product are keys, with
    exp(kappa) each; in a persistent one only the query is, with exp(2 kappa).

    Args:
        heads: H.
        scaled_sides: sides of an inner product that are multiplied: 2 in a contextual memory, 1 in a persistent one.
        initial: the initial bandwidth as a multiple of the published one.
    """

    def __init__(self, heads: int, scaled_sides: int = 2, initial: float = 1.0):
        super().__init__()
        self.initial_kappa = 1 + math.log(initial) / 2
        self.largest_exponent = scaled_sides * LARGEST_EXPONENT
        self.kappa = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.kappa, self.initial_kappa / V1_SCALAR_SCALE)

    @property
    def beta(self) -> Tensor:
        """beta, (H,)."""
        return (2 * V1_SCALAR_SCALE * _to_float32(self.kappa)).clamp(max=self.largest_exponent).exp()

    def scalars(self) -> dict[str, Tensor]:
        """Return beta, (H,)."""
        return {"beta": self.beta}

    def forward(self, pairs: Tensor, x: Tensor | None = None) -> Tensor:
        """Return beta, (H,), the same for any number of pairs."""
        return self.beta


def _to_float32(theta: Tensor) -> Tensor:
    """Return a parameter in float32, or in float64 if it has that type."""
    return theta.to(torch.promote_types(theta.dtype, torch.float32))

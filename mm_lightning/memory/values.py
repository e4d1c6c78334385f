"""The values of a memory: equation (9) with its learned scalars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.features import blend
from mm_lightning.memory.kernels import Kernels, ahead_values
from mm_lightning.memory.layers import TIMES
from mm_lightning.memory.recurrence import unit

Scale = Literal["exp_abs", "exp"]


@dataclass(frozen=True)
class FrozenValues:
    """Values with parameters that no longer change, for inference.

    Attributes:
        gamma: (H,) weight of the present token; None without a look-ahead.
        alpha_psi: (H,) norm of the values.
    """

    gamma: Tensor | None
    alpha_psi: Tensor

    def of(self, now: Tensor, ahead: Tensor) -> Tensor:
        """(B, T, H, D) values of tokens with these raw values, and the raw values of the tokens after them."""
        dtype = torch.promote_types(now.dtype, torch.float32)
        values = unit(now.to(dtype)) if self.gamma is None else blend(now.to(dtype), ahead.to(dtype), self.gamma)
        return (values * self.alpha_psi[:, None]).to(now.dtype)


class Values(nn.Module):
    """v of equation (9) from (B, T, H, D) raw values, with learned gamma and alpha_psi, one of each per head.

    In v2 alpha_psi = exp(min(|theta|, 15)) with theta = 0 at first (Table 6). The derivative of |theta| at 0 is taken
    as 1: with the usual 0 it could never leave its initial value. In v1 alpha_psi = exp(10 theta), -0.5 / 10 at first.

    Args:
        heads: H.
        look_ahead: whether a value looks at the next token; without, it is alpha_psi Norm(W_psi x) of its own.
        scale: the form of alpha_psi, exp_abs (v2) or exp (v1).
    """

    def __init__(self, heads: int, look_ahead: bool = True, scale: Scale = "exp_abs"):
        super().__init__()
        self.scale = scale
        self.gamma = nn.Parameter(torch.empty(heads)) if look_ahead else None
        self.alpha_psi_theta = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gamma is not None:
            nn.init.uniform_(self.gamma)
        nn.init.constant_(self.alpha_psi_theta, 0 if self.scale == "exp_abs" else -0.5 / TIMES)

    @property
    def alpha_psi(self) -> Tensor:
        """(H,) norm of the values."""
        theta = self.alpha_psi_theta.to(torch.promote_types(self.alpha_psi_theta.dtype, torch.float32))
        if self.scale == "exp":
            return (TIMES * theta).exp()
        return torch.where(theta < 0, -theta, theta).clamp(max=15).exp()

    def scalars(self) -> dict[str, Tensor]:
        """gamma, if there is a look-ahead, and alpha_psi, (H,) each."""
        gamma = {} if self.gamma is None else {"gamma": self.gamma}
        return {**gamma, "alpha_psi": self.alpha_psi}

    def forward(self, vtilde: Tensor, documents: Documents, kernels: Kernels = "auto") -> Tensor:
        return ahead_values(vtilde, self.gamma, self.alpha_psi, documents, kernels)


def frozen_values(values: Sequence[Values]) -> FrozenValues:
    """Of the heads of several memories of one kind, with the present parameters."""
    gamma = torch.cat([v.gamma for v in values if v.gamma is not None]) if values[0].gamma is not None else None
    alpha_psi = torch.cat([v.alpha_psi for v in values]).detach()
    return FrozenValues(None if gamma is None else gamma.detach().to(alpha_psi.dtype), alpha_psi)

"""Values: equation (9). A pair's value describes the near future, so it looks one token ahead.

vbar_T = gamma vtilde_T + (1 - gamma) vtilde_{T+1},    v_T = alpha_psi Norm(vbar_T)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.layers import TIMES
from mm_lightning.memory.recurrence import EPS, unit


def look_ahead_reference(vtilde: Tensor, gamma: Tensor, documents: Documents) -> Tensor:
    """Norm(vbar) of equation (9), as it is written.

    Args:
        vtilde: (B, T, H, D) raw values W_psi x.
        gamma: (H,) weight of the present token.
        documents: a document's last token has no next one, which counts as 0. (Nothing ever reads that pair.)

    Returns:
        (B, T, H, D) values of norm 1.
    """
    last = F.pad(documents.position[:, 1:] == 0, (0, 1), value=True)  # (B, T)
    ahead = F.pad(vtilde[:, 1:], (0, 0, 0, 0, 0, 1)).masked_fill(last[..., None, None], 0)
    return blend(vtilde, ahead, gamma)


def blend(now: Tensor, ahead: Tensor, gamma: Tensor) -> Tensor:
    """Norm(gamma now + (1 - gamma) ahead) of (..., H, D) raw values and (H,) gamma."""
    return unit(torch.lerp(ahead, now, gamma[:, None]))


def look_ahead(vtilde: Tensor, gamma: Tensor, documents: Documents) -> Tensor:
    """:func:`look_ahead_reference` in few passes over memory, with its own derivative."""
    return _LookAhead.apply(vtilde, gamma, documents)


class _LookAhead(torch.autograd.Function):
    """In float32 or better; saves only its input, its output and the norms."""

    @staticmethod
    def forward(ctx, vtilde: Tensor, gamma: Tensor, documents: Documents) -> Tensor:
        dtype = torch.promote_types(vtilde.dtype, torch.float32)
        raw, weight = vtilde.to(dtype), gamma.to(dtype)[:, None]
        total = raw * weight
        total[:, :-1] += _within(raw[:, 1:] * (1 - weight), documents)
        norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True).clamp_min_(EPS)
        values = total.div_(norm).to(vtilde.dtype)
        ctx.save_for_backward(vtilde, gamma, norm, values)
        ctx.documents = documents
        return values

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        vtilde, gamma, norm, values = ctx.saved_tensors
        dtype = norm.dtype
        raw, weight, values = vtilde.to(dtype), gamma.to(dtype)[:, None], values.to(dtype)
        grad = grad.to(dtype)
        dtotal = torch.addcmul(grad, values, (grad * values).sum(-1, keepdim=True), value=-1).div_(norm)
        dgamma = (dtotal * raw).sum((0, 1, 3))
        going = _within(dtotal[:, :-1], ctx.documents)
        dgamma = dgamma - (going * raw[:, 1:]).sum((0, 1, 3))
        draw = dtotal * weight
        draw[:, 1:].addcmul_(going, (1 - weight).expand_as(going))
        return draw.to(vtilde.dtype), dgamma.to(gamma.dtype), None


def _within(x: Tensor, documents: Documents) -> Tensor:
    """x (B, T - 1, H, D) with 0 for the last token of each document, whose next token is another document's."""
    return x if documents.single else x.masked_fill((documents.position[:, 1:] == 0)[..., None, None], 0)


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

    def forward(self, vtilde: Tensor, documents: Documents) -> Tensor:
        if self.gamma is None:
            raw = vtilde.to(torch.promote_types(vtilde.dtype, torch.float32))
            values = unit(raw).to(vtilde.dtype)
        else:
            values = look_ahead(vtilde, self.gamma, documents)
        return values * self.alpha_psi[:, None].to(values.dtype)


def frozen_values(values: Sequence[Values]) -> FrozenValues:
    """Of the heads of several memories of one kind, with the present parameters."""
    gamma = torch.cat([v.gamma for v in values if v.gamma is not None]) if values[0].gamma is not None else None
    alpha_psi = torch.cat([v.alpha_psi for v in values]).detach()
    return FrozenValues(None if gamma is None else gamma.detach().to(alpha_psi.dtype), alpha_psi)

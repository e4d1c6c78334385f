"""Values: equation (9). A pair's value describes the near future, so it looks one token ahead.

vbar_T = gamma vtilde_T + (1 - gamma) vtilde_{T+1},    v_T = alpha_psi Norm(vbar_T)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.recurrence import EPS, unit


def look_ahead_reference(vtilde: Tensor, gamma: Tensor, documents: Documents) -> Tensor:
    """Norm(vbar) of equation (9), as it is written.

    Args:
        vtilde: (B, T, H, D) raw values W_psi x.
        gamma: (H,) weight of the present token.
        documents: a document's last token has no next one, which counts as 0. (Nothing ever reads that pair.)

    Returns:
        (B, T, H, D) values of norm 1, computed in float32 or better.
    """
    dtype = vtilde.dtype
    vtilde = vtilde.to(torch.promote_types(dtype, torch.float32))
    last = F.pad(documents.position[:, 1:] == 0, (0, 1), value=True)  # (B, T)
    ahead = F.pad(vtilde[:, 1:], (0, 0, 0, 0, 0, 1)).masked_fill(last[..., None, None], 0)
    return blend(vtilde, ahead, gamma.to(vtilde.dtype)).to(dtype)


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

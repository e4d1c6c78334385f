"""Keys and values in plain torch, equations (8) and (9), in few passes over memory and with explicit derivatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.documents import Documents

CHUNK = 32
"""Tokens of one small matrix product."""

EPS = 1e-12
"""Norms below this count as this, which makes 0/0 = 0."""


def contiguous_rows(x: Tensor) -> Tensor:
    """Return x with its last axis contiguous, as compiled kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


def finite_bandwidth(beta: Tensor, dtype: torch.dtype) -> Tensor:
    """Return bandwidths clamped so that q = beta k is finite in k's type: float16 ends at 65504."""
    return beta.clamp(max=torch.finfo(dtype).max) if dtype == torch.float16 else beta


def queries(k: Tensor, beta: Tensor) -> Tensor:
    """Return q = beta k, in k's type, from (..., H, D) keys and (..., H) bandwidths."""
    return k * finite_bandwidth(beta, k.dtype)[..., None].to(k.dtype)


def normalize(x: Tensor) -> Tensor:
    """Return `F.normalize` along the last axis, in fewer operations."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(EPS)


def normalized_mix(now: Tensor, ahead: Tensor, gamma: Tensor) -> Tensor:
    """Return Norm(gamma now + (1 - gamma) ahead) of equation (9) from (..., H, D) raw values and (H,) gamma."""
    return normalize(torch.lerp(ahead, now, gamma[:, None]))


def gated_average(ktilde: Tensor, gate: Tensor, decay: Tensor, documents: Documents) -> Tensor:
    """Compute the keys of equation (8) by small matrix products, a chunk each: O(T) time and memory, no loop over time.

    Arguments and result are those of :func:`mm_lightning.memory.keys.gated_average_reference`. Computes in float32
    (float64 for float64 inputs), logarithms of weights in float64. Differentiable in `ktilde`, `gate` and `decay`.
    """
    return _GatedAverage.apply(ktilde, gate, decay, documents)


class _GatedAverage(torch.autograd.Function):
    """Keys S_t / |S_t| of equation (8), from S_t = sum_{s <= t} exp(u_s - m_t) ktilde_s.

    With A = cumsum(log lambda), u = log g - A and m = cummax(u), all within a document, S_t is kbar_t but for a
    positive factor, and every weight is at most 1.
    """

    @staticmethod
    def forward(ctx, ktilde: Tensor, gate: Tensor, decay: Tensor, documents: Documents) -> Tensor:
        dtype = torch.promote_types(ktilde.dtype, torch.float32)
        log_weight, level = _levels(gate, decay, documents)
        with torch.autocast(ktilde.device.type, enabled=False):
            total = decayed_sum(_scaled(ktilde, log_weight.exp().to(dtype), dtype), level)
            norm = torch.linalg.vector_norm(total, dim=-1).clamp_min_(EPS)
        keys = torch.empty(ktilde.shape, dtype=dtype, device=ktilde.device)
        torch.div(total, norm[..., None], out=keys.transpose(1, 2))
        keys = keys.to(ktilde.dtype)
        ctx.save_for_backward(ktilde, log_weight.exp_().to(dtype), level, norm, keys, documents.position)
        ctx.dtypes = gate.dtype, decay.dtype
        return keys

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        ktilde, fresh_weight, level, norm, keys, position = ctx.saved_tensors
        dtype = norm.dtype
        grad, raw, keys = (x.transpose(1, 2).to(dtype) for x in (grad, ktilde, keys))  # (B, H, T, D)
        with torch.autocast(raw.device.type, enabled=False):
            along = (grad * keys).sum(-1, keepdim=True)
            dtotal = torch.addcmul(grad, keys, along, value=-1).div_(norm[..., None])
            later = decayed_sum(dtotal.contiguous(), level, reverse=True)  # sum over t' >= t of exp(m_t - m_t') dS_t'
            dgate = fresh_weight * (later * raw).sum(-1)
            ddecay = (later * keys).sum(-1) * norm - dgate
            dktilde = torch.empty_like(ktilde)
            dktilde.copy_(later.mul_(fresh_weight[..., None]).transpose(1, 2))
        ddecay = ddecay.transpose(1, 2).masked_fill(position[..., None] == 0, 0)
        return dktilde, dgate.transpose(1, 2).to(ctx.dtypes[0]), ddecay.to(ctx.dtypes[1]), None


def _levels(gate: Tensor, decay: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
    """Return u - m and m of each token, (B, H, T) in float64.

    Documents are kept apart by raising u from one to the next by more than its whole range: the running maximum then
    starts over, and exp(m_s - m_t) across a boundary is exactly 0.
    """
    gate, decay = gate.transpose(1, 2).double(), decay.transpose(1, 2).double()
    total = decay.cumsum(-1)
    if not documents.single:
        position = documents.position[:, None].expand_as(total)
        begin = torch.arange(total.shape[-1], device=total.device) - position
        total = total - total.gather(-1, begin)
    u = gate - total
    if not documents.single:
        reach = u.amax(-1, keepdim=True) - u.amin(-1, keepdim=True) + 1024
        u = u + reach * (position == 0).cumsum(-1)
    level = u.cummax(-1).values
    return u - level, level


def _scaled(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weight * x, (B, H, T, D) contiguous, from x (B, T, H, D) and weight (B, H, T)."""
    y = torch.empty(*weight.shape, x.shape[-1], dtype=dtype, device=x.device)
    return torch.mul(x.transpose(1, 2), weight[..., None], out=y)


def decayed_sum(x: Tensor, level: Tensor, reverse: bool = False) -> Tensor:
    """Compute S_t = sum_{s <= t} exp(level_s - level_t) x_s for a level that never falls along T.

    Each chunk is one small triangular matrix product; the sums at the chunks' ends obey the same equation with the
    levels found there, so they are summed by the same function, and what comes into a chunk is added to its first
    token. With `reverse`, the transpose: R_t = sum_{s >= t} exp(level_t - level_s) x_s.

    Args:
        x: (..., T, D), contiguous; may be overwritten.
        level: (..., T) in float64.

    Returns:
        (..., T, D)
    """
    *rest, time, dim = x.shape
    if time <= CHUNK:
        return _weights(level, x.dtype, reverse) @ x
    chunks = -(-time // CHUNK)
    if missing := chunks * CHUNK - time:
        x = F.pad(x, (0, 0, 0, missing))
        level = torch.cat([level, level[..., -1:].expand(*rest, missing)], -1)
    x, level = x.view(*rest, chunks, CHUNK, dim), level.view(*rest, chunks, CHUNK)
    weights = _weights(level, x.dtype, reverse)  # (..., N, C, C)
    far, near = (0, -1) if reverse else (-1, 0)  # where a chunk's sum is complete, and where the next one's begins
    complete = (weights[..., far, None, :] @ x).squeeze(-2)  # (..., N, D)
    carry = decayed_sum(complete, level[..., far].contiguous(), reverse)
    to, of = (slice(None, -1), slice(1, None)) if reverse else (slice(1, None), slice(None, -1))
    fade = (level[..., of, far] - level[..., to, near]).abs().neg().exp().to(x.dtype)
    x[..., to, near, :] += fade[..., None] * carry[..., of, :]
    return (weights @ x).view(*rest, chunks * CHUNK, dim)[..., :time, :]


def _weights(level: Tensor, dtype: torch.dtype, reverse: bool) -> Tensor:
    """Return exp(level_s - level_t) for s <= t, else 0: (..., T, T), transposed if `reverse`."""
    weights = (level[..., None, :] - level[..., :, None]).to(dtype).exp_().tril_()
    return weights.mT if reverse else weights


def look_ahead(vtilde: Tensor, gamma: Tensor, documents: Documents) -> Tensor:
    """Compute :func:`mm_lightning.memory.values.look_ahead_reference` in few passes over memory."""
    return _LookAhead.apply(vtilde, gamma, documents)


class _LookAhead(torch.autograd.Function):
    """Norm(vbar) of equation (9), in float32 or better; saves only its input, its output and the norms."""

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
        d_next = _within(dtotal[:, :-1], ctx.documents)
        dgamma = dgamma - (d_next * raw[:, 1:]).sum((0, 1, 3))
        draw = dtotal * weight
        draw[:, 1:].addcmul_(d_next, (1 - weight).expand_as(d_next))
        return draw.to(vtilde.dtype), dgamma.to(gamma.dtype), None


def _within(x: Tensor, documents: Documents) -> Tensor:
    """Return x (B, T - 1, H, D) with 0 at the last token of each document."""
    return x if documents.single else x.masked_fill((documents.position[:, 1:] == 0)[..., None, None], 0)

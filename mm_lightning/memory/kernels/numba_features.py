"""Keys and values on a CPU, equations (8) and (9), in one pass over the tokens compiled by numba."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mm_lightning.memory.kernels.numba_support import flat, get, in_threads, jit, put
from mm_lightning.memory.kernels.torch_features import EPS, contiguous_rows

TOKEN_TILE = 16
"""Tokens of one head that are computed in a row, so that their memory accesses lie close together."""


@jit
def _keys(sizes, strides, raw, gate, decay, starts, beta, qs, ks, fresh, fade, norm, total, scale):  # type: ignore[no-untyped-def]
    """Compute q = beta k, k = S / |S|, S_t = fade_t S_{t-1} + fresh_t ktilde_t of heads low to high - 1 of a row."""
    row, low, high, time, heads, dim = sizes
    one, zero, eps = total.dtype.type(1), total.dtype.type(0), total.dtype.type(EPS)
    for turn in range(-(-time // TOKEN_TILE) * (high - low)):
        h, begin = low + turn % (high - low), turn // (high - low) * TOKEN_TILE
        for t in range(begin, min(begin + TOKEN_TILE, time)):
            i = (row * time + t) * heads + h
            before = -np.inf if starts[row * time + t] else scale[row, h] + decay[i]
            scale[row, h] = max(before, gate[i])  # no weight is larger than exp of this
            fresh[i], fade[i] = math.exp(gate[i] - scale[row, h]), math.exp(before - scale[row, h])
            new, saved = fresh[i], fade[i]
            at = row * strides[0] + t * strides[1] + h * strides[2]
            x, s = raw[at : at + dim], total[row, h]
            squares = zero
            for d in range(dim):
                s[d] = saved * s[d] + new * get(x, d)
                squares += s[d] * s[d]
            norm[i] = max(total.dtype.type(math.sqrt(squares)), eps)
            inverse = one / norm[i]
            sharp = beta[i] * inverse
            at = ((row * heads + h) * time + t) * dim
            q, k = qs[at : at + dim], ks[at : at + dim]
            for d in range(dim):
                put(k, d, s[d] * inverse)
                put(q, d, s[d] * sharp)


@jit
def _keys_back(
    sizes, strides, raw, starts, beta, ks, fresh, fade, norm, d_qs, d_ks, d_raw, d_gate, d_decay, d_beta, later
):  # type: ignore[no-untyped-def]
    """Compute the derivatives of :func:`_keys`; later is R_t = dS_t + fade_{t+1} R_{t+1}."""
    row, low, high, time, heads, dim = sizes
    one, zero = later.dtype.type(1), later.dtype.type(0)
    tiles = -(-time // TOKEN_TILE)
    for turn in range(tiles * (high - low)):
        h, begin = low + turn % (high - low), (tiles - 1 - turn // (high - low)) * TOKEN_TILE
        for t in range(min(begin + TOKEN_TILE, time) - 1, begin - 1, -1):
            i = (row * time + t) * heads + h
            at = ((row * heads + h) * time + t) * dim
            k, r = ks[at : at + dim], later[row, h]
            at = row * strides[3] + t * strides[4] + h * strides[5]
            d_q = d_qs[at : at + dim]
            at = row * strides[6] + t * strides[7] + h * strides[8]
            d_k = d_ks[at : at + dim]
            by_q, by_k = zero, zero
            for d in range(dim):
                by_q += get(d_q, d) * get(k, d)
                by_k += get(d_k, d) * get(k, d)
            d_beta[i] = by_q
            sharp, along, inverse = beta[i], beta[i] * by_q + by_k, one / norm[i]
            new, saved = fresh[i], zero if t == time - 1 else fade[i + heads]
            at = row * strides[0] + t * strides[1] + h * strides[2]
            x = raw[at : at + dim]
            at = ((row * time + t) * heads + h) * dim
            d_x = d_raw[at : at + dim]
            enters, stays = zero, zero
            for d in range(dim):
                r[d] = saved * r[d] + (get(d_k, d) + sharp * get(d_q, d) - along * get(k, d)) * inverse
                enters += r[d] * get(x, d)
                stays += r[d] * get(k, d)
                put(d_x, d, new * r[d])
            d_gate[i] = new * enters
            d_decay[i] = zero if starts[row * time + t] else stays * norm[i] - new * enters


@jit
def _values(sizes, strides, raw, starts, gamma, alpha, vs, norm):  # type: ignore[no-untyped-def]
    """Compute v = alpha u / |u|, u_t = gamma x_t + (1 - gamma) x_{t+1}, of the heads low to high - 1 of a row."""
    row, low, high, time, heads, dim = sizes
    one, zero, eps = gamma.dtype.type(1), gamma.dtype.type(0), gamma.dtype.type(EPS)
    for turn in range(-(-time // TOKEN_TILE) * (high - low)):
        h, begin = low + turn % (high - low), turn // (high - low) * TOKEN_TILE
        for t in range(begin, min(begin + TOKEN_TILE, time)):
            ends = t == time - 1 or starts[row * time + t + 1]
            now, ahead = gamma[h], zero if ends else one - gamma[h]
            at = row * strides[0] + t * strides[1] + h * strides[2]
            x = raw[at : at + dim]
            at += 0 if ends else strides[1]
            y = raw[at : at + dim]
            squares = zero
            for d in range(dim):
                u = now * get(x, d) + ahead * get(y, d)
                squares += u * u
            i = (row * time + t) * heads + h
            norm[i] = max(gamma.dtype.type(math.sqrt(squares)), eps)
            scaled = alpha[h] / norm[i]
            at = ((row * heads + h) * time + t) * dim
            v = vs[at : at + dim]
            for d in range(dim):
                put(v, d, (now * get(x, d) + ahead * get(y, d)) * scaled)


@jit
def _values_back(sizes, strides, raw, starts, gamma, alpha, vs, norm, d_vs, d_raw, d_gamma, d_alpha, du):  # type: ignore[no-untyped-def]
    """Compute the derivatives of :func:`_values`; du is that by u of the next token."""
    row, low, high, time, heads, dim = sizes
    one, zero = gamma.dtype.type(1), gamma.dtype.type(0)
    tiles = -(-time // TOKEN_TILE)
    for turn in range(tiles * (high - low)):
        h, begin = low + turn % (high - low), (tiles - 1 - turn // (high - low)) * TOKEN_TILE
        for t in range(min(begin + TOKEN_TILE, time) - 1, begin - 1, -1):
            ends = t == time - 1 or starts[row * time + t + 1]
            i = (row * time + t) * heads + h
            at = ((row * heads + h) * time + t) * dim
            v = vs[at : at + dim]
            at = row * strides[3] + t * strides[4] + h * strides[5]
            d_v = d_vs[at : at + dim]
            along = zero
            for d in range(dim):
                along += get(d_v, d) * get(v, d)
            d_alpha[row, h] += along / alpha[h]
            along /= alpha[h] * alpha[h]
            scaled, now, ahead = alpha[h] / norm[i], gamma[h], zero if ends else one - gamma[h]
            differs = zero if ends else one
            at = row * strides[0] + t * strides[1] + h * strides[2]
            x, u = raw[at : at + dim], du[row, h]
            at += 0 if ends else strides[1]
            y = raw[at : at + dim]
            at = ((row * time + min(t + 1, time - 1)) * heads + h) * dim  # the last token's is written twice
            d_y = d_raw[at : at + dim]
            towards = zero
            for d in range(dim):
                d_u = (get(d_v, d) - along * get(v, d)) * scaled
                towards += d_u * (get(x, d) - differs * get(y, d))
                put(d_y, d, now * u[d] + ahead * d_u)
                u[d] = d_u
            d_gamma[row, h] += towards
            if t == 0:
                at = (row * time * heads + h) * dim
                d_x = d_raw[at : at + dim]
                for d in range(dim):
                    put(d_x, d, now * u[d])


def keys(raw: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q and k, (B, T, H, D) with heads before time in memory, and fresh, fade and |S|, (3, B, T, H).

    Args:
        raw: (B, T, H, D).
        gate, decay, beta: (B, T, H) contiguous, in the type of the computation.
        starts: (B, T) bool, where documents begin.
    """
    batch, time, heads, dim = raw.shape
    starts = starts.contiguous()
    total, scale = gate.new_zeros(batch, heads, dim), gate.new_empty(batch, heads, dtype=torch.float64)
    q, k = (raw.new_empty(batch, heads, time, dim) for _ in range(2))
    saved = gate.new_empty(3, batch, time, heads)
    arrays = [flat(x) for x in (raw, gate, decay, starts, beta, q, k, *saved)]
    _in_parallel(_keys, raw, raw.stride()[:3], *arrays, total.numpy(), scale.numpy())
    return q.transpose(1, 2), k.transpose(1, 2), saved


def keys_backward(
    raw: Tensor, beta: Tensor, starts: Tensor, k: Tensor, saved: Tensor, d_q: Tensor, d_k: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the derivatives by raw, gate, decay and beta from those by the results of :func:`keys`."""
    batch, _, heads, dim = raw.shape
    d_raw, sizes = raw.new_empty(raw.shape), beta.shape
    d_gate, d_decay, d_beta = (beta.new_empty(sizes) for _ in range(3))
    d_q, d_k = contiguous_rows(d_q), contiguous_rows(d_k)
    arrays = [flat(x) for x in (raw, starts, beta, k, *saved, d_q, d_k, d_raw, d_gate, d_decay, d_beta)]
    strides = *raw.stride()[:3], *d_q.stride()[:3], *d_k.stride()[:3]
    _in_parallel(_keys_back, raw, strides, *arrays, beta.new_zeros(batch, heads, dim).numpy())
    return d_raw, d_gate, d_decay, d_beta


def values(raw: Tensor, gamma: Tensor, alpha: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (B, T, H, D) with heads before time in memory, and their norms before scaling, (B, T, H).

    Args:
        raw: (B, T, H, D).
        gamma, alpha: (H,) in the type of the computation.
        starts: (B, T) bool, where documents begin.
    """
    batch, time, heads, dim = raw.shape
    v, norm = raw.new_empty(batch, heads, time, dim), gamma.new_empty(batch, time, heads)
    _in_parallel(_values, raw, raw.stride()[:3], *(flat(x) for x in (raw, starts, gamma, alpha, v, norm)))
    return v.transpose(1, 2), norm


def values_backward(
    raw: Tensor, gamma: Tensor, alpha: Tensor, starts: Tensor, v: Tensor, norm: Tensor, d_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives by raw, gamma and alpha from that by the result of :func:`values`."""
    batch, _, heads, dim = raw.shape
    d_raw, d_v = raw.new_empty(raw.shape), contiguous_rows(d_v)
    sums = [gamma.new_zeros(batch, heads) for _ in range(2)]
    arrays = [flat(x) for x in (raw, starts, gamma, alpha, v, norm, d_v, d_raw)]
    strides = *raw.stride()[:3], *d_v.stride()[:3]
    state = gamma.new_zeros(batch, heads, dim)
    _in_parallel(_values_back, raw, strides, *arrays, *(x.numpy() for x in (*sums, state)))
    d_gamma, d_alpha = (x.sum(0) for x in sums)
    return d_raw, d_gamma, d_alpha


def _in_parallel(kernel: Callable[..., None], raw: Tensor, strides: tuple[int, ...], *arrays: np.ndarray) -> None:
    """Run a kernel on all heads of all rows, on as many threads as torch uses."""
    batch, time, heads, dim = raw.shape
    pieces = min(heads, -(-torch.get_num_threads() // max(batch, 1)))
    cuts = [heads * piece // pieces for piece in range(pieces + 1)]
    jobs = [(row, low, high, time, heads, dim) for row in range(batch) for low, high in itertools.pairwise(cuts)]
    in_threads(kernel, jobs, strides, *arrays)

"""The Triton kernels of :mod:`mm_lightning.memory.kernels.triton_launch`. One program computes C tokens of one head.

Tensors are (B, T, H, D) in strides and (B, T, H) unless stated otherwise; D here is the head dimension `dim` rounded up
to a power of two. Computed in float32, the logarithms of weights in float64. Loads past the end of a row return neutral
elements.
"""

from __future__ import annotations

from mm_lightning.errors import UserError
from mm_lightning.memory.kernels.torch_features import EPS

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise UserError("kernels triton need the package triton: pip install triton, or choose torch") from error

SMALLEST_NORM = tl.constexpr(EPS)
LOG_ZERO = tl.constexpr(-1e4)
"""The smallest logarithm of a weight: exp of it is 0 and, unlike -inf, it can be added and subtracted."""


@triton.jit
def _rows(base, t, stride, time, dim, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load the rows (C, D) of the tokens t in float32, 0 outside of the sequence."""
    d = tl.arange(0, D)
    inside = ((t >= 0) & (t < time))[:, None] & (d < dim)[None, :]
    return tl.load(base + t[:, None] * stride + d[None, :], inside, 0).to(tl.float32)


@triton.jit
def _put_rows(base, t, stride, time, dim, rows, D: tl.constexpr):  # type: ignore[no-untyped-def]
    d = tl.arange(0, D)
    tl.store(base + t[:, None] * stride + d[None, :], rows, (t < time)[:, None] & (d < dim)[None, :])


@triton.jit
def _gates(gate, decay, starts, t, row, head, time, heads):  # type: ignore[no-untyped-def]
    """Load log g, log lambda, and 1 where a document begins, (C,) in float64; past the end -inf, 0 and 0."""
    inside, i = t < time, row * time + t
    g = tl.load(gate + i * heads + head, inside, float("-inf")).to(tl.float64)
    a = tl.load(decay + i * heads + head, inside, 0).to(tl.float64)
    return g, a, tl.load(starts + i, inside, 0).to(tl.int32)


@triton.jit
def _weights(gate, decay, began, scale, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute the weights of C tokens (or chunks), and of the S before, in S_t = fade_t S_{t-1} + fresh_t x_t.

    Args:
        gate, decay, began: (C,), began above 0 where a document begins.
        scale: log of the largest weight in the S before the first of them; -inf if there is none.

    Returns:
        (C, C) weights of x_s in S_t; and (C,) each: the weight of the S before, fresh, log fade, and the new scales.
    """
    total, document = tl.cumsum(decay, 0), tl.cumsum(began, 0)
    u = gate - total
    s = tl.arange(0, C)[None, :]
    t = tl.arange(0, C)[:, None]
    together = (s <= t) & (document[None, :] == document[:, None])
    logs = tl.where(together, u[None, :], float("-inf"))
    before = tl.max(tl.where(s < t, logs, float("-inf")), 1)
    earlier = tl.where(document == 0, scale, float("-inf"))
    before = tl.maximum(before, earlier)
    level = tl.maximum(before, u)  # no weight is larger than exp of this
    weights = tl.exp((logs - level[:, None]).to(tl.float32))
    carried = tl.exp((earlier - level).to(tl.float32))
    fresh = tl.exp((u - level).to(tl.float32))
    return weights, carried, fresh, tl.maximum(before - level, LOG_ZERO), level + total


@triton.jit
def keys_ends(
    raw, gate, decay, starts, ends, scales_and_fades, sb, st, sh, time, heads, dim, C: tl.constexpr, D: tl.constexpr
):  # type: ignore[no-untyped-def]
    """Compute each chunk by itself: S of its last token, its scale, and the log weight of an earlier S in it."""
    head, chunk, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    t = chunk.to(tl.int64) * C + tl.arange(0, C)
    g, a, began = _gates(gate, decay, starts, t, row, head, time, heads)
    left, begins = tl.sum(a, 0), tl.sum(began, 0)
    u = tl.where(tl.cumsum(began, 0) == begins, g - tl.cumsum(a, 0), float("-inf"))
    level = tl.max(u, 0)
    weights = tl.exp((u - level).to(tl.float32))
    x = _rows(raw + row * sb + head * sh, t, st, time, dim, D)
    i, d = (row * heads + head) * tl.num_programs(1) + chunk, tl.arange(0, D)
    tl.store(ends + i * dim + d, tl.sum(weights[:, None] * x, 0), d < dim)
    tl.store(scales_and_fades + 2 * i, level + left)
    tl.store(scales_and_fades + 2 * i + 1, tl.where(begins > 0, float("-inf"), left))


@triton.jit
def keys_carry(ends, scales_and_fades, scales, chunks, heads, dim, N: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Replace each chunk's own sum by that of the row so far, and compute their scales."""
    head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    i, d = (row * heads + head) * chunks, tl.program_id(1) * D + tl.arange(0, D)
    before, scale = tl.zeros([D], tl.float32), tl.full([], float("-inf"), tl.float64)
    stored = tl.where(tl.program_id(1) == 0, chunks, 0)  # by one of the programs that compute them
    for first in range(0, chunks, N):
        c = first + tl.arange(0, N)
        inside = c < chunks
        gate = tl.load(scales_and_fades + 2 * (i + c), inside, float("-inf"))
        left = tl.load(scales_and_fades + 2 * (i + c) + 1, inside, 0)
        began = (left == float("-inf")).to(tl.int32)
        weights, carried, _, _, new = _weights(gate, tl.where(began > 0, 0, left), began, scale, N)
        at = ends + (i + c)[:, None] * dim + d[None, :]
        seen = inside[:, None] & (d < dim)[None, :]
        x = tl.load(at, seen, 0)
        total = tl.dot(weights, x, input_precision="ieee") + carried[:, None] * before[None, :]
        tl.store(at, total, seen)
        tl.store(scales + i + c, new, c < stored)
        last = tl.arange(0, N) == N - 1
        before = tl.sum(tl.where(last[:, None], total, 0), 0)
        scale = tl.sum(tl.where(last, new, 0), 0)


@triton.jit
def keys_results(  # type: ignore[no-untyped-def]
    raw, gate, decay, starts, beta, ends, scales, qs, ks, freshes, fades, norms,
    sb, st, sh, time, heads, dim, C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute q = beta k and k = S / |S| of a chunk, and fresh, log fade and |S| for the derivative."""
    chunks, rows = tl.num_programs(1), tl.num_programs(2)
    head, chunk, row = tl.program_id(0), chunks - 1 - tl.program_id(1), (rows - 1 - tl.program_id(2)).to(tl.int64)
    t = chunk.to(tl.int64) * C + tl.arange(0, C)
    g, a, began = _gates(gate, decay, starts, t, row, head, time, heads)
    i, d = (row * heads + head) * chunks + chunk - 1, tl.arange(0, D)
    scale = tl.load(scales + i, chunk > 0, float("-inf"))
    before = tl.load(ends + i * dim + d, d < tl.where(chunk > 0, dim, 0), 0)
    weights, carried, fresh, fade, _ = _weights(g, a, began, scale, C)
    x = _rows(raw + row * sb + head * sh, t, st, time, dim, D)
    total = tl.dot(weights, x, input_precision=PRECISION) + carried[:, None] * before[None, :]
    norm = tl.maximum(tl.sqrt(tl.sum(total * total, 1)), SMALLEST_NORM)
    k = total / norm[:, None]
    inside, at = t < time, (row * time * heads + head) * dim
    sharp = tl.load(beta + (row * time + t) * heads + head, inside, 0)
    _put_rows(ks + at, t, heads * dim, time, dim, k, D)
    _put_rows(qs + at, t, heads * dim, time, dim, k * sharp[:, None], D)
    at = (row * heads + head) * time + t
    tl.store(freshes + at, fresh, inside)
    tl.store(fades + at, fade, inside)
    tl.store(norms + at, norm, inside)


@triton.jit
def _d_total(  # type: ignore[no-untyped-def]
    beta, ks, fades, norms, d_qs, d_ks, qb, qt, qh, kb, kt, kh, t, row, head, time, heads, dim, D: tl.constexpr
):
    """Compute the derivatives by S (C, D) and beta (C,); load k (C, D), |S| and the sums of log fade (C,)."""
    inside, at = t < time, (row * heads + head) * time + t
    sharp = tl.load(beta + (row * time + t) * heads + head, inside, 0)
    norm = tl.load(norms + at, inside, 1)
    faded = tl.cumsum(tl.load(fades + at, inside, 0).to(tl.float64), 0)
    k = _rows(ks + (row * time * heads + head) * dim, t, heads * dim, time, dim, D)
    d_q = _rows(d_qs + row * qb + head * qh, t, qt, time, dim, D)
    d_k = _rows(d_ks + row * kb + head * kh, t, kt, time, dim, D)
    d_beta = tl.sum(d_q * k, 1)
    along = sharp * d_beta + tl.sum(d_k * k, 1)
    d_total = (d_k + sharp[:, None] * d_q - along[:, None] * k) / norm[:, None]
    return d_total, d_beta, k, norm, faded


@triton.jit
def back_ends(  # type: ignore[no-untyped-def]
    beta, ks, fades, norms, d_qs, d_ks, ends, left, qb, qt, qh, kb, kt, kh, time, heads, dim,
    C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute fade R of each chunk's first token as if it were the last chunk, and the log of all its fades."""
    head, chunk, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    t = chunk.to(tl.int64) * C + tl.arange(0, C)
    d_total, _, _, _, faded = _d_total(
        beta, ks, fades, norms, d_qs, d_ks, qb, qt, qh, kb, kt, kh, t, row, head, time, heads, dim, D
    )
    i, d = (row * heads + head) * tl.num_programs(1) + chunk, tl.arange(0, D)
    weights = tl.exp(faded.to(tl.float32))
    tl.store(ends + i * dim + d, tl.sum(weights[:, None] * d_total, 0), d < dim)
    tl.store(left + i, tl.maximum(tl.min(faded, 0), LOG_ZERO))


@triton.jit
def back_carry(ends, left, chunks, heads, dim, N: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Replace each chunk's own sum by that of the row from there on."""
    head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    i, d = (row * heads + head) * chunks, tl.program_id(1) * D + tl.arange(0, D)
    later = tl.zeros([D], tl.float32)
    steps = (chunks + N - 1) // N
    for step in range(steps):
        c = (steps - 1 - step) * N + tl.arange(0, N)
        inside = c < chunks
        fade = tl.load(left + i + c, inside, 0)
        upto = tl.cumsum(fade, 0)
        start = upto - fade
        at = ends + (i + c)[:, None] * dim + d[None, :]
        seen = inside[:, None] & (d < dim)[None, :]
        x = tl.load(at, seen, 0)
        carried = tl.exp((tl.min(upto, 0) - start).to(tl.float32))
        total = tl.dot(_upper(start, N), x, input_precision="ieee") + carried[:, None] * later[None, :]
        tl.store(at, total, seen)
        later = tl.sum(tl.where((tl.arange(0, N) == 0)[:, None], total, 0), 0)


@triton.jit
def _upper(faded, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the weights exp(faded_s - faded_t) for s >= t, else 0, (C, C)."""
    logs = (faded[None, :] - faded[:, None]).to(tl.float32)
    return tl.exp(tl.where(tl.arange(0, C)[None, :] >= tl.arange(0, C)[:, None], logs, float("-inf")))


@triton.jit
def back_results(  # type: ignore[no-untyped-def]
    raw, starts, beta, ks, freshes, fades, norms, d_qs, d_ks, ends, d_raw, d_gate, d_decay, d_beta,
    sb, st, sh, qb, qt, qh, kb, kt, kh, time, heads, dim, C: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the derivatives of :func:`keys_results`; R_t = dS_t + fade_{t+1} R_{t+1}."""
    chunks, rows = tl.num_programs(1), tl.num_programs(2)
    head, chunk, row = tl.program_id(0), chunks - 1 - tl.program_id(1), (rows - 1 - tl.program_id(2)).to(tl.int64)
    t = chunk.to(tl.int64) * C + tl.arange(0, C)
    inside, at = t < time, (row * time + t) * heads + head
    d_total, d_sharp, k, norm, faded = _d_total(
        beta, ks, fades, norms, d_qs, d_ks, qb, qt, qh, kb, kt, kh, t, row, head, time, heads, dim, D
    )
    i, d = (row * heads + head) * chunks + chunk + 1, tl.arange(0, D)
    later = tl.load(ends + i * dim + d, d < tl.where(chunk < chunks - 1, dim, 0), 0)
    carried = tl.exp((tl.min(faded, 0) - faded).to(tl.float32))
    r = tl.dot(_upper(faded, C), d_total, input_precision=PRECISION) + carried[:, None] * later[None, :]
    x = _rows(raw + row * sb + head * sh, t, st, time, dim, D)
    fresh = tl.load(freshes + (row * heads + head) * time + t, inside, 0)
    _put_rows(d_raw + (row * time * heads + head) * dim, t, heads * dim, time, dim, fresh[:, None] * r, D)
    enters = fresh * tl.sum(r * x, 1)
    stays = norm * tl.sum(r * k, 1) - enters
    tl.store(d_beta + at, d_sharp, inside)
    tl.store(d_gate + at, enters, inside)
    tl.store(d_decay + at, tl.where(tl.load(starts + row * time + t, inside, 1) > 0, 0, stays), inside)


@triton.jit
def _ahead(starts, share, t, row, time):  # type: ignore[no-untyped-def]
    """Return the share of the next token in the value of t, (C,): 0 for a document's last token and outside."""
    has_next = (t >= 0) & (t < time - 1)
    return tl.where(tl.load(starts + row * time + t + 1, has_next, 1) > 0, 0, share)


@triton.jit
def values_results(  # type: ignore[no-untyped-def]
    raw, starts, gamma, alpha, vs, norms, sb, st, sh, time, heads, dim, C: tl.constexpr, D: tl.constexpr
):
    """Compute v = alpha u / |u| with u_t = gamma x_t + (1 - gamma) x_{t+1}."""
    head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    t = tl.program_id(1).to(tl.int64) * C + tl.arange(0, C)
    now = tl.load(gamma + head)
    ahead = _ahead(starts, 1 - now, t, row, time)
    base = raw + row * sb + head * sh
    u = now * _rows(base, t, st, time, dim, D)
    y = _rows(base, t + 1, st, time, dim, D)
    u += tl.where((ahead != 0)[:, None], ahead[:, None] * y, 0)
    norm = tl.maximum(tl.sqrt(tl.sum(u * u, 1)), SMALLEST_NORM)
    scaled = tl.load(alpha + head) / norm
    _put_rows(vs + (row * time * heads + head) * dim, t, heads * dim, time, dim, u * scaled[:, None], D)
    tl.store(norms + (row * time + t) * heads + head, norm, t < time)


@triton.jit
def _d_blend(vs, d_vs, norms, length, t, row, head, vb, vt, vh, time, heads, dim, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute the derivatives by u (C, D) and alpha (C,) of :func:`values_results`."""
    v = _rows(vs + (row * time * heads + head) * dim, t, heads * dim, time, dim, D)
    d_v = _rows(d_vs + row * vb + head * vh, t, vt, time, dim, D)
    norm = tl.load(norms + (row * time + t) * heads + head, (t >= 0) & (t < time), 1)
    along = tl.sum(d_v * v, 1) / length
    return (d_v - (along / length)[:, None] * v) * (length / norm)[:, None], along


@triton.jit
def values_back(  # type: ignore[no-untyped-def]
    raw, starts, gamma, alpha, vs, norms, d_vs, d_raw, d_gamma, d_alpha,
    sb, st, sh, vb, vt, vh, time, heads, dim, C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute the derivatives of :func:`values_results`; those by gamma and alpha for each chunk."""
    head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    t = tl.program_id(1).to(tl.int64) * C + tl.arange(0, C)
    now, length = tl.load(gamma + head), tl.load(alpha + head)
    du, along = _d_blend(vs, d_vs, norms, length, t, row, head, vb, vt, vh, time, heads, dim, D)
    before, _ = _d_blend(vs, d_vs, norms, length, t - 1, row, head, vb, vt, vh, time, heads, dim, D)
    share = _ahead(starts, 1 - now, t - 1, row, time)
    d_x = now * du + tl.where((share != 0)[:, None], share[:, None] * before, 0)
    _put_rows(d_raw + (row * time * heads + head) * dim, t, heads * dim, time, dim, d_x, D)
    base = raw + row * sb + head * sh
    differs = _ahead(starts, 1.0, t, row, time) > 0
    y = tl.where(differs[:, None], _rows(base, t + 1, st, time, dim, D), 0)
    towards = tl.sum(du * (_rows(base, t, st, time, dim, D) - y), 1)
    i = (row * tl.num_programs(1) + tl.program_id(1)) * heads + head
    tl.store(d_gamma + i, tl.sum(towards, 0))
    tl.store(d_alpha + i, tl.sum(along, 0))

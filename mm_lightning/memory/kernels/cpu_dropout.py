"""Equation (4) with dropout of its weights, on a CPU, whose fused attention has none."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

TILE = 128
"""Queries whose weights are in memory at a time."""


def dropout_read(q: Tensor, k: Tensor, v: Tensor, size: int | None, scale: float, dropout: float) -> Tensor:
    """Read causally the last `size` keys with dropout, seeded by one draw from torch's default generator.

    Args:
        q: (B, H, T, D) queries.
        k: (B, G, T, D) keys; each of the G heads serves H/G queries.
        v: (B, G, T, D) values.
        size: the largest number of pairs read; None for all.
        scale: a factor on q.k.
        dropout: the share of the weights dropped; the others are divided by 1 - dropout.

    Returns:
        (B, H, T, D), in q's type; computed in float32 at least.
    """
    group, exact = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    rows = [x.flatten(0, 1).to(exact) for x in (q, k, v)]
    seed = int(torch.randint(2**62, (), device="cpu"))
    return _DropoutRead.apply(rows[0] * scale, *rows[1:], size or q.shape[2], dropout, seed).view_as(q).to(q.dtype)


class _DropoutRead(torch.autograd.Function):
    """One tile of queries after the other; the backward pass computes their weights again and drops the same.

    Saves the logarithm of each row's sum, not the T x T matrix.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: int, dropout: float, seed: int) -> Tensor:
        out, log_sums = torch.empty_like(q), q.new_empty(*q.shape[:2], 1)
        generator = torch.Generator().manual_seed(seed)
        buffer = _buffer(q, size)
        for tile, seen in _tiles(q.shape[1], size):
            weights = _scores(buffer, q[:, tile], k[:, seen], size)
            highest = weights.amax(-1, keepdim=True)
            sums = weights.sub_(highest).exp_().sum(-1, keepdim=True)
            weights.view(-1).index_fill_(0, _draw_dropped(weights.numel(), dropout, generator), 0)
            out[:, tile] = (weights @ v[:, seen]).div_(sums * (1 - dropout))
            log_sums[:, tile] = sums.log_().add_(highest)
        ctx.save_for_backward(q, k, v, out, log_sums)
        ctx.settings = size, dropout, seed
        return out

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_outs: Tensor) -> tuple[Tensor | None, ...]:
        (d_out,) = d_outs
        q, k, v, out, log_sums = ctx.saved_tensors
        size, dropout, seed = ctx.settings
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # The derivative of a row's softmax removes the mean of the weights' derivatives.
        means = (d_out * out).sum(-1, keepdim=True)
        d_out = d_out / (1 - dropout)
        generator = torch.Generator().manual_seed(seed)
        buffers = _buffer(q, size), _buffer(q, size)
        for tile, seen in _tiles(q.shape[1], size):
            weights = _scores(buffers[0], q[:, tile], k[:, seen], size).sub_(log_sums[:, tile]).exp_()
            dropped = _draw_dropped(weights.numel(), dropout, generator)
            d_scores = _product(buffers[1], d_out[:, tile], v[:, seen])
            d_scores.view(-1).index_fill_(0, dropped, 0)
            d_scores.sub_(means[:, tile]).mul_(weights)
            d_q[:, tile] = d_scores @ k[:, seen]
            d_k[:, seen].baddbmm_(d_scores.mT, q[:, tile])
            weights.view(-1).index_fill_(0, dropped, 0)
            d_v[:, seen].baddbmm_(weights.mT, d_out[:, tile])
        return d_q, d_k, d_v, None, None, None


def _tiles(time: int, size: int) -> list[tuple[slice, slice]]:
    """Return the tiles of queries, each with the keys that one of them sees."""
    ends = [min(start + TILE, time) for start in range(0, time, TILE)]
    return [(slice(i * TILE, end), slice(max(0, i * TILE - size + 1), end)) for i, end in enumerate(ends)]


def _buffer(q: Tensor, size: int) -> Tensor:
    """Allocate memory for the weights of any tile."""
    return q.new_empty(q.shape[0] * min(TILE, q.shape[1]) * min(TILE + size - 1, q.shape[1]))


def _product(buffer: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return a b^T, computed in the buffer."""
    shape = (a.shape[0], a.shape[1], b.shape[1])
    return torch.bmm(a, b.mT, out=buffer[: math.prod(shape)].view(shape))


def _scores(buffer: Tensor, q: Tensor, k: Tensor, size: int) -> Tensor:
    """Compute the scores of a tile of queries that ends with the last key; -inf where a key is not seen."""
    scores = _product(buffer, q, k)
    count, before = q.shape[1], k.shape[1] - q.shape[1]
    masked = torch.full((count, count), -torch.inf, dtype=q.dtype)
    scores[..., before:] += masked.triu(1)
    if k.shape[1] > size:
        scores[..., :count] += masked.tril(before - size)
    return scores


def _draw_dropped(count: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Draw the indices of those of `count` weights that are dropped, each with the same probability; increasing.

    The gaps between them are geometric, so that random numbers are drawn for the dropped weights only.
    """
    mean = count * dropout
    enough = min(count, int(mean + 8 * mean**0.5 + 16))  # too few once in 10^13 times
    gaps = torch.rand(enough, dtype=torch.float64, generator=generator).neg_().log1p_().div_(math.log1p(-dropout))
    places = gaps.floor_().add_(1).cumsum(0).sub_(1)
    return places[: int(torch.searchsorted(places, count))].long()

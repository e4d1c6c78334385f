"""Reading with dropout on a CPU, whose fused kernel has none: equation (4) with some of its weights dropped."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Queries whose weights are written out at a time."""


def dropout_read(q: Tensor, k: Tensor, v: Tensor, size: int | None, scale: float, dropout: float) -> Tensor:
    """Causal reads of the last `size` keys with dropout, seeded by one draw from torch's default generator.

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
    return _Read.apply(rows[0] * scale, *rows[1:], size or q.shape[2], dropout, seed).view_as(q).to(q.dtype)


class _Read(torch.autograd.Function):
    """Block after block of queries; the backward pass computes their weights again and drops the same.

    Of the T x T matrix, only the logarithm of each row's sum is kept.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: int, dropout: float, seed: int) -> Tensor:
        out, log_sums = torch.empty_like(q), q.new_empty(*q.shape[:2], 1)
        generator = torch.Generator().manual_seed(seed)
        room = _room(q, size)
        for now, seen in _blocks(q.shape[1], size):
            weights = _scores(room, q[:, now], k[:, seen], size)
            highest = weights.amax(-1, keepdim=True)
            sums = weights.sub_(highest).exp_().sum(-1, keepdim=True)
            weights.view(-1).index_fill_(0, _drawn(weights.numel(), dropout, generator), 0)
            out[:, now] = (weights @ v[:, seen]).div_(sums * (1 - dropout))
            log_sums[:, now] = sums.log_().add_(highest)
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
        rooms = _room(q, size), _room(q, size)
        for now, seen in _blocks(q.shape[1], size):
            weights = _scores(rooms[0], q[:, now], k[:, seen], size).sub_(log_sums[:, now]).exp_()
            lost = _drawn(weights.numel(), dropout, generator)
            d_scores = _fill(rooms[1], d_out[:, now], v[:, seen])
            d_scores.view(-1).index_fill_(0, lost, 0)
            d_scores.sub_(means[:, now]).mul_(weights)
            d_q[:, now] = d_scores @ k[:, seen]
            d_k[:, seen].baddbmm_(d_scores.mT, q[:, now])
            weights.view(-1).index_fill_(0, lost, 0)
            d_v[:, seen].baddbmm_(weights.mT, d_out[:, now])
        return d_q, d_k, d_v, None, None, None


def _blocks(time: int, size: int) -> list[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that one of them sees."""
    ends = [min(start + BLOCK, time) for start in range(0, time, BLOCK)]
    return [(slice(i * BLOCK, end), slice(max(0, i * BLOCK - size + 1), end)) for i, end in enumerate(ends)]


def _room(q: Tensor, size: int) -> Tensor:
    """Memory for the weights of any block."""
    return q.new_empty(q.shape[0] * min(BLOCK, q.shape[1]) * min(BLOCK + size - 1, q.shape[1]))


def _fill(room: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The products of a's and b's rows, in the memory given."""
    shape = (a.shape[0], a.shape[1], b.shape[1])
    return torch.bmm(a, b.mT, out=room[: math.prod(shape)].view(shape))


def _scores(room: Tensor, q: Tensor, k: Tensor, size: int) -> Tensor:
    """The scores of a block of queries, the last of which is as late as the last key; -inf where a key is not seen."""
    scores = _fill(room, q, k)
    count, before = q.shape[1], k.shape[1] - q.shape[1]
    hidden = torch.full((count, count), -torch.inf, dtype=q.dtype)
    scores[..., before:] += hidden.triu(1)
    if k.shape[1] > size:
        scores[..., :count] += hidden.tril(before - size)
    return scores


def _drawn(count: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Which of `count` weights are dropped, each with the same probability; increasing.

    The gaps between them are geometric, so that random numbers are drawn for the dropped weights only.
    """
    mean = count * dropout
    enough = min(count, int(mean + 8 * mean**0.5 + 16))  # too few once in 10^13 times
    gaps = torch.rand(enough, dtype=torch.float64, generator=generator).neg_().log1p_().div_(math.log1p(-dropout))
    places = gaps.floor_().add_(1).cumsum(0).sub_(1)
    return places[: int(torch.searchsorted(places, count))].long()

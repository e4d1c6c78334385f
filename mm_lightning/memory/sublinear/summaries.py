"""What is known of many pairs without looking at each: blocks of nearby keys, and their means and moments."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOMENTS = 64
"""Pairs of a group for each dimension of its keys, which makes the moments a 64th of the pairs."""

LONG = {"keys": 2, "values": 1, "norm": 1, "high": 1, "low": 1, "aside": 1, "moments": 2, "share": 1}
"""The axis of each summary along which blocks or groups follow one another; keys lie so for fast products."""

SHORT = 1e-6
"""The norm below which a block's mean key has no direction."""


def full(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are taken in."""
    return torch.promote_types(dtype, torch.float32)


def nearby(keys: Tensor, block: int) -> Tensor:
    """An order of (N, n, D) keys in which every `block` of them are near each other, (N, n) int64; n is block * 2^i.

    Halves are halved again, each at the median of its main direction.
    """
    total, count, dim = keys.shape
    index = torch.arange(count, device=keys.device).repeat(total, 1)
    start = torch.ones(dim, 1, dtype=keys.dtype, device=keys.device)
    start[1::2] = -0.5  # of no use for a direction that is orthogonal to it, which then is found from rounding
    size = count
    while size > block:
        keys, index = keys.reshape(-1, size, dim), index.reshape(-1, size)
        moments = torch.baddbmm(-size * keys.mean(1)[:, :, None] * keys.mean(1)[:, None], keys.transpose(1, 2), keys)
        direction = start.expand(len(keys), dim, 1)
        for _ in range(8):
            direction = F.normalize(moments @ direction, dim=1)
        place = (keys @ direction)[..., 0].argsort(1)
        keys, index = rows(keys, place), index.gather(1, place)
        size //= 2
    return index.reshape(total, count)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Whole rows (N, n, D) of (N, m, D), by (N, n) indices: several times faster than `gather`."""
    first = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device)[:, None]
    return x.reshape(-1, x.shape[2]).index_select(0, (index + first).flatten()).view(*index.shape, x.shape[2])


def summarize(keys: Tensor, values: Tensor, block: int, segment: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Summarize the blocks and groups of a sorted segment of keys and values (N, n, D), computing in `dtype`.

    Returns:
        keys: (N, D, blocks) means; values: (N, blocks, D) means; norm: (N, blocks) |c| of the mean key c, infinite
        where it has no direction; high, low and aside: (N, blocks), of k - c the largest and the smallest part along
        c/|c|, and the longest part across it; moments: (N, D, groups * 2 * D) of keys with keys, then values, around
        their block's means; share: (N, blocks), the variance of a block's keys relative to its group's.
    """
    k, v = (x.to(dtype).unflatten(1, (-1, block)) for x in (keys, values))
    centre, mean = k.mean(2), v.mean(2)
    norm = centre.norm(dim=-1)
    norm = norm.masked_fill(norm < SHORT, torch.inf)
    k, v = k - centre[:, :, None], v - mean[:, :, None]  # small ones to full accuracy, which cosines near 1 are not
    direction = centre / norm[..., None]
    along = (k @ direction[..., None])[..., 0]
    aside = (k - along[..., None] * direction[:, :, None]).norm(dim=-1)
    variance = k.square().sum((2, 3))
    group = _group(keys.shape[-1], block, segment)
    both = torch.stack([k.flatten(1, 2), v.flatten(1, 2)], 1).unflatten(2, (-1, group)).transpose(1, 2)
    near = k.flatten(1, 2).unflatten(1, (-1, group))[:, :, None]
    moments = near.transpose(3, 4) @ both / group  # (N, groups, 2, D of keys, D of keys or values)
    grouped = variance.unflatten(1, (-1, group // block))
    share = grouped / grouped.mean(-1, keepdim=True).clamp(min=torch.finfo(k.dtype).tiny)
    return {
        "keys": centre.transpose(1, 2).contiguous(),
        "values": mean,
        "norm": norm,
        "high": along.amax(2),
        "low": along.amin(2),
        "aside": aside.amax(2),
        "moments": moments.permute(0, 3, 1, 2, 4).flatten(2).contiguous(),
        "share": share.flatten(1),
    }


def _group(dim: int, block: int, segment: int) -> int:
    """Pairs of a group: block * 2^i near MOMENTS * D, at most a segment."""
    wanted = block << max(0, round(math.log2(MOMENTS * dim / block)))
    return min(wanted, segment)

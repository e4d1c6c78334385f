"""The number of tokens a run was trained on, from its logged counts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping


def tokens_at(step: int, counts: Mapping[int, float]) -> float | None:
    """Return the tokens that a run was trained on up to a step; None if `counts` is empty.

    Args:
        step: number of steps.
        counts: known token counts by step, interpolated and extrapolated linearly.
    """
    points = sorted({0: 0.0, **counts}.items())
    if len(points) == 1:
        return None
    at = min(max(bisect_left(points, step, key=lambda point: point[0]), 1), len(points) - 1)
    (low, before), (high, after) = points[at - 1 : at + 1]
    return after if step == high else before + (after - before) * (step - low) / (high - low)

"""How many tokens a run was trained on, from the counts that it logged."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping


def tokens_at(step: int, counts: Mapping[int, float]) -> float | None:
    """Return the tokens of a run's first steps.

    Args:
        step: how many steps.
        counts: tokens by step, where they are known; between two of them, and behind the last, steps are taken to be
            alike.

    Returns:
        None where nothing is known.
    """
    points = sorted({0: 0.0, **counts}.items())
    if len(points) == 1:
        return None
    at = min(max(bisect_left(points, step, key=lambda point: point[0]), 1), len(points) - 1)
    (low, before), (high, after) = points[at - 1 : at + 1]
    return after if step == high else before + (after - before) * (step - low) / (high - low)

"""95% confidence intervals: one method for shares and their means, one for other numbers, one for paired differences.

Shares of questions have a score interval, which for one sample is Wilson's and does not vanish where all answers are
alike; means over groups have the same with the variance that is the largest at each mean. Other numbers have Student's.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

Z = 1.959964
"""Standard deviations that a two-sided 95% interval of a normal distribution reaches to."""

Ends = tuple[float, float]


@functools.cache
def t_quantile(degrees: int) -> float:
    """Return Student's t that a two-sided 95% interval reaches to (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    if degrees > 2000:
        return Z + (Z**3 + Z) / (4 * degrees)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """Return the probability that |t| is below sqrt(degrees) tan(angle)."""
    odd, cosine = degrees % 2, math.cos(angle)
    term = cosine if odd else 1.0
    total = 0.0 if degrees == 1 else term
    for n in range(2 + odd, degrees - 1, 2):
        term *= (n - 1) / n * cosine**2
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def share_interval(value: float, counts: Sequence[float], extra: float = 0.0) -> Ends:
    """Return the score interval of an unweighted mean of independent shares.

    It holds every mean m from which the value is no further than 1.96 standard deviations, where shares with the mean m
    vary the most. With one share this is Wilson's interval; with equal counts Wilson's of all of them together.

    Args:
        value: the mean of the shares.
        counts: the questions behind each share.
        extra: half of an interval that covers a further, independent source of variance.
    """
    sizes = Counter(counts)

    def outside(mean: float, distance: float) -> bool:
        return distance > math.sqrt(Z**2 * _largest_variance(mean, sizes) + extra**2)

    ends = []
    for edge in (0.0, 1.0):
        inner, outer = value, edge
        if not outside(edge, abs(edge - value)):
            inner = edge
        for _ in range(50 if inner != edge else 0):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle, abs(middle - value)) else (middle, outer)
        ends.append(inner)
    return ends[0], ends[1]


def _largest_variance(mean: float, sizes: Counter[float]) -> float:
    """Return the largest variance that an unweighted mean of shares, themselves of this mean, can have.

    With p_k = (1 - s n_k) / 2, not below 0: where the sum of p_k (1 - p_k) / n_k has no further to go at this mean.
    """
    number = sum(sizes.values())
    mean = min(mean, 1 - mean)
    varying = sorted(sizes)  # those with p_k above 0, which the largest lack
    while True:
        times = sum(sizes[size] for size in varying)
        slope = (times - 2 * mean * number) / sum(size * sizes[size] for size in varying)
        if slope * varying[-1] <= 1 or len(varying) == 1:
            break
        varying.pop()
    return sum(sizes[size] * (1 - (slope * size) ** 2) / 4 / size for size in varying) / number**2


def independent(value: float, stderr: float | None, count: int) -> float:
    """Return how many right-or-wrong answers tell as much as `count` scores between 0 and 1 of this standard error."""
    if not stderr or count < 2:
        return count
    return max(count, value * (1 - value) / stderr**2 * (Z / t_quantile(count - 1)) ** 2)


def mean_interval(value: float, stderr: float | None, count: int) -> Ends | None:
    """Return Student's interval of a mean; None of a single number."""
    if stderr is None or count < 2:
        return None
    half = t_quantile(count - 1) * stderr
    return value - half, value + half


def paired_interval(differences: Sequence[float], shares: bool) -> Ends | None:
    """Return the interval of the mean of differences between two networks' numbers for the same items.

    Args:
        differences: one an item.
        shares: whether they are differences of scores between 0 and 1. Then half a pair of each kind is added first
            (Agresti and Min, 2005), so that it does not vanish where both networks answer alike; else it is Student's.
    """
    count = len(differences)
    total = math.fsum(differences)
    if shares:
        mean = total / (count + 2)
        variance = (math.fsum(x * x for x in differences) + 1) / (count + 2) - mean**2
        half = Z * math.sqrt(variance / (count + 2))
        return max(-1.0, mean - half), min(1.0, mean + half)
    mean = total / count
    if count < 2:
        return None
    spread = math.fsum((x - mean) ** 2 for x in differences) / (count - 1)
    return mean_interval(mean, math.sqrt(spread / count), count)

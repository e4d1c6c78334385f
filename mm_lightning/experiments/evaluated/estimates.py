"""Numbers with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mm_lightning.evaluation.task import Row
from mm_lightning.experiments.statistics import t_quantile

Z = 1.959964
"""Standard deviations that a two-sided 95% interval of a normal distribution reaches to."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% confidence interval.

    Attributes:
        value: the number.
        low: where the interval begins; None where there is none.
        high: where it ends.
        stderr: the standard error.
        count: items behind it.
        scale: the number is shown as so many times itself: 100 is percent.
        digits: after the point, where it is shown.
        note: shown behind it, e.g. how many parts of a mean are there.
    """

    value: float
    low: float | None
    high: float | None
    stderr: float | None
    count: int
    scale: float = 1
    digits: int = 3
    note: str = ""

    def __str__(self) -> str:
        numbers = [f"{self.scale * x:.{self.digits}f}" for x in (self.value, self.low, self.high) if x is not None]
        text = numbers[0] if len(numbers) == 1 else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
        return f"{text} ({self.note})" if self.note else text


def share(row: Row, repeats: int = 1) -> Estimate:
    """A mean of scores between 0 and 1, in percent, with Wilson's interval.

    The number of independent answers is what the standard error says it is: count, of answers that are right or wrong;
    fewer, where answers hang together, as those after the same demonstrations do. Where all answers are alike, which
    says nothing of it, it is count / repeats.

    Args:
        row: the mean and its standard error.
        repeats: how often each question was asked.
    """
    return _share(row.value, row.stderr, row.count, row.count / repeats)


def _share(p: float, stderr: float | None, count: int, independent: float, note: str = "") -> Estimate:
    if stderr is None or count < 2:
        return Estimate(p, None, None, stderr, count, 100, 1, note)
    n = independent if stderr == 0 else p * (1 - p) / stderr**2 + 1
    if n <= 0 or not 0 <= p <= 1:
        return Estimate(p, p - Z * stderr, p + Z * stderr, stderr, count, 100, 1, note)
    centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = ((x / (1 + Z**2 / n)) for x in (centre - half, centre + half))
    return Estimate(p, max(0.0, low), min(1.0, high), stderr, count, 100, 1, note)


def mean_of_shares(parts: Sequence[Estimate], of: int) -> Estimate:
    """The unweighted mean of independent shares; it says so where there are fewer than `of`."""
    value = math.fsum(part.value for part in parts) / len(parts)
    count = sum(part.count for part in parts)
    note = "" if len(parts) == of else f"{len(parts)} of {of}"
    if any(part.stderr is None for part in parts):
        return Estimate(value, None, None, None, count, 100, 1, note)
    stderr = math.sqrt(math.fsum((part.stderr or 0.0) ** 2 for part in parts)) / len(parts)
    return _share(value, stderr, count, count, note)


def quantity(row: Row, digits: int = 3) -> Estimate:
    """A mean of any numbers, with Student's interval."""
    if row.stderr is None or row.count < 2:
        return Estimate(row.value, None, None, row.stderr, row.count, digits=digits)
    half = t_quantile(row.count - 1) * row.stderr
    return Estimate(row.value, row.value - half, row.value + half, row.stderr, row.count, digits=digits)

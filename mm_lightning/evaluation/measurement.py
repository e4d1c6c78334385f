"""The numbers of a table: a mean over items, its standard error and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_lightning.evaluation.intervals import Ends, independent, mean_interval, paired_interval, share_interval
from mm_lightning.evaluation.metrics import Metric


@dataclass(frozen=True)
class Row:
    """One number of a table.

    Attributes:
        group: what it is of.
        metric: what it is.
        value: the number.
        stderr: its standard error over items; None where there is none.
        count: items behind it.
        unit: of the metric (:mod:`~mm_lightning.evaluation.metrics`); empty in results of earlier versions.
        low: where its 95% interval begins; None where there is none.
        high: where it ends.
    """

    group: dict[str, Any]
    metric: str
    value: float
    stderr: float | None
    count: int
    unit: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measurement:
    """A number of a table as the values of the items that it is the mean of.

    Attributes:
        group: what it is of.
        metric: what it is.
        values: by item; the same items have the same names for all networks.
        weights: of the items in the mean; None for equal ones.
        classes: of the items, where the mean is that of the classes' means.
        count: answers behind it, where an item was answered several times.
        extra_variance: variance of the mean that is not one over items.
        extra_half: half of the 95% interval that covers it.
    """

    group: dict[str, Any]
    metric: Metric
    values: Mapping[str, float]
    weights: Mapping[str, float] | None = None
    classes: Mapping[str, str] | None = None
    count: int | None = None
    extra_variance: float = 0.0
    extra_half: float = 0.0

    def row(self) -> Row:
        """Return the mean with its standard error and its interval."""
        number = len(self.values)
        if self.classes is None:
            weights = dict.fromkeys(self.values, 1.0) if self.weights is None else self.weights
            total = math.fsum(weights.values())
            value = math.fsum(weights[key] * x for key, x in self.values.items()) / total
            squares = math.fsum((weights[key] * (x - value)) ** 2 for key, x in self.values.items())
            variance = squares * number / (number - 1) / total**2 if number > 1 else None
            counts = None
        else:
            by_class: dict[str, list[float]] = {}
            for key, x in self.values.items():
                by_class.setdefault(self.classes[key], []).append(x)
            value, variance = _mean_of_means(list(by_class.values()))
            counts = [len(members) for members in by_class.values()]
        items_error = None if variance is None else math.sqrt(variance)
        stderr = None if variance is None else math.sqrt(variance + self.extra_variance)
        ends = interval(self.metric.unit, value, items_error, number, counts, self.extra_half)
        low, high = ends or (None, None)
        count = number if self.count is None else self.count
        return Row(self.group, self.metric.name, value, stderr, count, self.metric.unit, low, high)

    def difference(self, other: Measurement) -> Row | None:
        """Return the mean difference from another network's on the items that both have; None without such items."""
        common = [key for key in self.values if key in other.values]
        if not common:
            return None
        weights = dict.fromkeys(common, 1.0) if self.weights is None else {key: self.weights[key] for key in common}
        total = math.fsum(weights.values())
        size = 100.0 if self.metric.unit == "percent" else 1.0
        pairs = {key: (self.values[key] - other.values[key]) / size for key in common}
        mean = math.fsum(weights[key] * x for key, x in pairs.items()) / total
        # as of the mean itself, what varies is the weighted deviation from it
        pairs = {key: mean + len(common) * weights[key] / total * (x - mean) for key, x in pairs.items()}
        ends = paired_interval([*pairs.values()], self.metric.unit in ("share", "percent"))
        low, high = (None, None) if ends is None else (size * ends[0], size * ends[1])
        return Row(self.group, self.metric.name, size * mean, None, len(common), self.metric.unit, low, high)


def _mean_of_means(classes: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Return the mean of the means of classes and its variance; a class of one member has that of the others."""
    means = [math.fsum(members) / len(members) for members in classes]
    value = math.fsum(means) / len(means)
    squares = [math.fsum((x - mean) ** 2 for x in members) for members, mean in zip(classes, means, strict=True)]
    spare = sum(len(members) - 1 for members in classes)
    if spare:
        pooled = sum(squares) / spare
    elif len(means) > 1:  # no class has two members
        pooled = math.fsum((mean - value) ** 2 for mean in means) / (len(means) - 1)
    else:
        return value, None
    variances = [
        (square / (len(members) - 1) if len(members) > 1 else pooled) / len(members)
        for members, square in zip(classes, squares, strict=True)
    ]
    return value, math.fsum(variances) / len(means) ** 2


def interval(
    unit: str,
    value: float,
    stderr: float | None,
    count: int,
    classes: Sequence[float] | None = None,
    extra: float = 0.0,
) -> Ends | None:
    """Return the 95% interval of a mean (docs/evaluation.md): a score interval of shares, else Student's.

    Args:
        unit: of the metric.
        value: the mean, in this unit.
        stderr: its standard error over items.
        count: items.
        classes: items of each class, where it is the mean of the classes' means.
        extra: half of an interval that covers what is no variance over items.
    """
    if unit == "count":
        return None
    size = 100.0 if unit == "percent" else 1.0
    if unit not in ("share", "percent") or not 0 <= value <= size:
        return mean_interval(value, stderr, count)
    error = None if stderr is None else stderr / size
    low, high = share_interval(value / size, classes or [independent(value / size, error, count)], extra / size)
    return size * low, size * high

"""Numbers with their confidence intervals, as tables and figures show them, and the lines of tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mm_lightning.evaluation.intervals import independent, share_interval
from mm_lightning.evaluation.measurement import Row, interval
from mm_lightning.evaluation.metrics import DIGITS, scale, unit_words
from mm_lightning.experiments.drawing import humanize
from mm_lightning.experiments.evaluated.evaluations import Network


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% confidence interval.

    Attributes:
        value: the number.
        low: where the interval begins; None where there is none.
        high: where it ends.
        count: items behind it.
        scale: the number is shown as so many times itself: 100 for shares.
        digits: after the point, where it is shown.
        note: shown behind it, e.g. how many parts of a mean are there.
        independent: of a share, how many right-or-wrong answers tell as much.
        signed: whether it is shown with its sign.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    scale: float = 1
    digits: int = 3
    note: str = ""
    independent: float = 0.0
    signed: bool = False

    def __str__(self) -> str:
        sign = "+" if self.signed else ""
        numbers = [
            f"{self.scale * x:{sign},.{self.digits}f}" for x in (self.value, self.low, self.high) if x is not None
        ]
        text = numbers[0] if len(numbers) == 1 else f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"
        return f"{text} ({self.note})" if self.note else text


def estimate(row: Row, repeats: int = 1, signed: bool = False) -> Estimate:
    """Return a number of a task's table in the form of its unit.

    Args:
        row: the number; one of an earlier version has no interval, which is then made of its standard error.
        repeats: how often each question was asked, for intervals that are made here.
        signed: whether it is a difference.
    """
    size = 100.0 if row.unit == "percent" else 1.0
    share = row.unit in ("share", "percent") and 0 <= row.value <= size
    low, high, alike = row.low, row.high, float(row.count)
    if share and not signed:
        p, error = row.value / size, None if row.stderr is None else row.stderr / size
        alike = independent(p, error, row.count)
        if low is None and row.stderr is not None:
            alike = p * (1 - p) / error**2 + 1 if error else row.count / repeats
            low, high = (size * end for end in share_interval(p, [alike]))
    elif low is None and not signed:
        low, high = interval(row.unit, row.value, row.stderr, row.count) or (None, None)
    return Estimate(
        row.value, low, high, row.count, scale(row.unit), DIGITS.get(row.unit, 4), independent=alike, signed=signed
    )


def mean_of_shares(parts: Sequence[Estimate], of: int) -> Estimate:
    """Return the unweighted mean of independent shares in percent; it says so where there are fewer than `of`."""
    shares = [part.scale * part.value / 100 for part in parts]
    value = math.fsum(shares) / len(shares)
    low, high = share_interval(value, [part.independent for part in parts])
    note = "" if len(parts) == of else f"{len(parts)} of {of}"
    return Estimate(value, low, high, sum(part.count for part in parts), 100, 1, note)


def row_key(row: Row) -> str:
    """Return the line of a table that a row belongs to: its group and metric."""
    return json.dumps([row.group, row.metric], sort_keys=True)


def align(
    rows: Iterable[tuple[Network, Row]], signed: bool = False
) -> tuple[dict[str, Row], dict[tuple[str, Network], Estimate]]:
    """Return a row for each line of a table, in the order in which lines appear, and its cells by line and network."""
    lines: dict[str, Row] = {}
    cells: dict[tuple[str, Network], Estimate] = {}
    for network, row in rows:
        lines.setdefault(row_key(row), row)
        cells[row_key(row), network] = estimate(row, signed=signed)
    return lines, cells


def with_unit(row: Row) -> str:
    """Return the metric of a row with its unit: accuracy, %."""
    return ", ".join(filter(None, (humanize(row.metric), unit_words(row.unit))))

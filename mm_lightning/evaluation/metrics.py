"""Metrics and their units: each is stated here, or by the task that makes it, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "percent", "nats", "bits/byte", "perplexity", "count", "number"]
"""A share lies between 0 and 1 and is shown in percent; percent is so from the beginning."""

DIGITS: dict[str, int] = {"share": 1, "percent": 1, "nats": 3, "bits/byte": 3, "perplexity": 2, "count": 0, "number": 4}
"""Digits after the point with which each unit is shown."""


@dataclass(frozen=True)
class Metric:
    """A number that a task finds.

    Attributes:
        name: as rows and records have it.
        unit: in which it is written to results.json.
        higher_is_better: None where neither is.
    """

    name: str
    unit: Unit
    higher_is_better: bool | None = True


def scale(unit: str) -> float:
    """Return the factor from a number as it is written to the number that is shown: 100 for shares."""
    return 100.0 if unit == "share" else 1.0


def unit_words(unit: str) -> str:
    """Return the unit for heads of tables and axes, empty for plain numbers."""
    plain = dict.fromkeys(("count", "number", "perplexity"), "")
    return {"share": "%", "percent": "%", "nats": "nats/token", **plain}.get(unit, unit)


def _shares(*names: str) -> list[Metric]:
    return [Metric(name, "share") for name in names]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_shares("accuracy", "accuracy_gold_alone"),
        *_shares("greedy", "likelihood", "likelihood_by_length"),
        *_shares("greedy_macro", "likelihood_macro", "likelihood_by_length_macro"),
        *_shares("acc", "acc_norm", "exact_match", "contains", "f1", "pass@1", "pass_at_1", "math_verify"),
        Metric("inside", "share", None),
        Metric("share", "share", None),
        Metric("prompts cut", "share", False),
        Metric("total_variation", "number", False),
        Metric("loss", "nats", False),
        Metric("above the training context", "nats", False),
        Metric("bits_per_byte", "bits/byte", False),
        Metric("perplexity", "perplexity", False),
        Metric("tokens", "count", None),
        Metric("longest prompt", "count", None),
        Metric("excluded_questions", "count", None),
        Metric("weight", "number", None),
        Metric("weight of its own position", "number", None),
    )
}
"""The metrics of the tasks of this package by name, and those that harnesses have in common."""


def find_metric(name: str) -> Metric:
    """Return the metric of a name, without the filter that harnesses add to it; a plain number if it is not known."""
    return METRICS.get(name) or METRICS.get(name.split(",")[0]) or Metric(name, "number", None)

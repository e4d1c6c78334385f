"""A section of the report: tables and figures of the evaluations of its tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mm_lightning.experiments import page
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.evaluations import Evaluation, Group
from mm_lightning.experiments.network_looks import Looks

Part = page.Block | EstimateTable
"""A part of a report; an :class:`EstimateTable` becomes a table and a CSV file."""


@dataclass(frozen=True)
class ReportSection:
    """One section of the report.

    Attributes:
        title: of the section.
        takes: returns whether an evaluation belongs to it.
        parts: returns tables and figures of evaluations under the same settings.
    """

    title: str
    takes: Callable[[Evaluation], bool]
    parts: Callable[[Group, Looks], list[Part | None]]


def counts(numbers: list[int]) -> str:
    """Return a number of questions in words: one number, or the smallest and the largest."""
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

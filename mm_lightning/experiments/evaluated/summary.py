"""The one table that `mm evaluate` ends with: a line for each headline number, a column for each network."""

from __future__ import annotations

from collections.abc import Sequence

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.registry import restore_task
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import align, with_unit
from mm_lightning.experiments.evaluated.evaluations import Evaluation, EvaluationResults, Network

MOST_LINES = 40
"""The most lines of a task."""


def headline(evaluation: Evaluation) -> list[Row]:
    """Return the rows of an evaluation that short tables show."""
    try:
        return restore_task(evaluation.kind, evaluation.settings).headline(evaluation.rows)
    except (UserError, TypeError):
        return evaluation.rows


def summary(results: EvaluationResults, evaluations: Sequence[Evaluation]) -> EstimateTable:
    """Return the headline numbers with 95% intervals and items; what does not compare stands in lines of its own."""
    networks: list[Network] = list(dict.fromkeys(e.network for e in evaluations))
    table = EstimateTable("results", ["task", "group", "metric", *(network.name for network in networks)], 3)
    for task in dict.fromkeys(e.task for e in evaluations):
        groups = results.groups([e for e in evaluations if e.task == task])
        for group in groups:
            lines, cells = align((e.network, row) for e in group.evaluations for row in headline(e))
            title = task if len(groups) == 1 else f"{task} ({group.number} of {len(groups)}, do not compare)"
            for n, (key, row) in enumerate([*lines.items()][:MOST_LINES]):
                estimates = [cells.get((key, network)) for network in networks]
                values = [None if cell is None else f"{cell} ({cell.count:,})" for cell in estimates]
                name = ", ".join(f"{name}={value}" for name, value in row.group.items())
                table.add(title if n == 0 else "", name, with_unit(row), *values)
            if len(lines) > MOST_LINES:
                table.add("", f"({len(lines) - MOST_LINES} more in numbers.csv)", "")
    return table

"""The one table that `mm evaluate` ends with: a line for each headline number, a column for each network."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.registry import restore_task
from mm_lightning.experiments.evaluated.differences import with_unit
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import Estimate, estimate
from mm_lightning.experiments.evaluated.evaluations import Evaluation, EvaluationResults, Network

MOST_LINES = 40
"""The most lines of a task."""


def headline(evaluation: Evaluation) -> list[Row]:
    """The rows of an evaluation that short tables show."""
    try:
        return restore_task(evaluation.kind, evaluation.settings).headline(evaluation.rows)
    except (UserError, TypeError):
        return evaluation.rows


def summary(gathered: EvaluationResults, evaluations: Sequence[Evaluation]) -> EstimateTable:
    """The headline numbers with 95% intervals and items; what does not compare stands in lines of its own."""
    networks: list[Network] = list(dict.fromkeys(e.network for e in evaluations))
    grid = EstimateTable("results", ["task", "group", "metric", *(network.name for network in networks)], 3)
    for task in dict.fromkeys(e.task for e in evaluations):
        groups = gathered.groups(lambda e, task=task: e.task == task and e in evaluations)  # type: ignore[misc]
        for group in groups:
            lines: dict[str, Row] = {}
            cells: dict[tuple[str, Network], Estimate] = {}
            for e in group.evaluations:
                for row in headline(e):
                    key = json.dumps([row.group, row.metric], sort_keys=True)
                    lines.setdefault(key, row)
                    cells[key, e.network] = estimate(row)
            title = task if len(groups) == 1 else f"{task} ({group.number} of {len(groups)}, do not compare)"
            for n, (key, row) in enumerate([*lines.items()][:MOST_LINES]):
                own = [cells.get((key, network)) for network in networks]
                values = [None if cell is None else f"{cell} ({cell.count:,})" for cell in own]
                name = ", ".join(f"{name}={value}" for name, value in row.group.items())
                grid.add(title if n == 0 else "", name, with_unit(row), *values)
            if len(lines) > MOST_LINES:
                grid.add("", f"({len(lines) - MOST_LINES} more in numbers.csv)", "")
    return grid

"""Paired differences: what networks that were asked the same items differ by, item by item."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.metrics import unit_words
from mm_lightning.evaluation.registry import restore_task
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import humanize
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import Estimate, estimate
from mm_lightning.experiments.evaluated.evaluations import Evaluation, Group, Network, last_ones
from mm_lightning.experiments.evaluated.report_section import Part

METHOD = (
    "Differences from {} on the same items, item by item, with 95% intervals (docs/evaluation.md): an interval that "
    "does not hold 0 is a difference, also where the intervals of the two numbers overlap."
)


def measurements(evaluation: Evaluation) -> dict[str, Measurement]:
    """Return the numbers of an evaluation as values by item, by what each is of; none where its samples are missing."""
    records = evaluation.records()
    if not records:
        return {}
    try:
        task = restore_task(evaluation.kind, evaluation.settings)
        found = task.measurements(records)
    except (UserError, KeyError, TypeError):  # of another version, or of a task that is not known here
        return {}
    wanted = {_key(row) for row in task.headline([one.row() for one in found])} if found else set()
    wanted |= {_key(one.row()) for one in found if one.group.keys() == {"position"} and one.metric.name == "loss"}
    return {_key(one.row()): one for one in found if _key(one.row()) in wanted}


def _key(row: Row) -> str:
    return json.dumps([row.group, row.metric], sort_keys=True)


def paired(group: Group, task: str) -> Iterator[tuple[Network, Network, str, Row]]:
    """Yield for each network but the first, and for each number, how much it is above the first network's."""
    networks = last_ones([n for n in group.networks if group.of(n, task)])
    if len(networks) < 2:
        return
    first, *others = networks
    base = measurements(group.of(first, task)[0])
    for other in others if base else ():
        for key, measurement in measurements(group.of(other, task)[0]).items():
            if key in base and (row := measurement.difference(base[key])) is not None:
                yield first, other, key, row


def differences(group: Group, task: str) -> list[Part | None]:
    """A line for each number, a column for each network but the first, with the items that both were asked."""
    found = list(paired(group, task))
    if not found:
        return []
    first = found[0][0]
    others = list(dict.fromkeys(other for _, other, _, _ in found))
    lines: dict[str, Row] = {}
    cells: dict[tuple[str, Network], Estimate] = {}
    for _, other, key, row in found:
        lines.setdefault(key, row)
        cells[key, other] = estimate(row, signed=True)
    names = list(dict.fromkeys(name for row in lines.values() for name in row.group))
    heads = [*names, "metric", "items in common", *(f"{group.label(o)} minus {group.label(first)}" for o in others)]
    grid = EstimateTable(f"{task}-differences{group.suffix}", heads, len(names) + 2)
    for key, row in lines.items():
        own = [cells.get((key, other)) for other in others]
        counts = dict.fromkeys(f"{cell.count:,}" for cell in own if cell is not None)
        place = [row.group.get(name) for name in names]
        grid.add(*place, with_unit(row), " or ".join(counts), *own)
    return [page.Text(METHOD.format(group.label(first))), grid]


def with_unit(row: Row) -> str:
    """accuracy, %"""
    return ", ".join(filter(None, (humanize(row.metric), unit_words(row.unit))))

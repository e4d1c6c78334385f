"""Paired differences: how much networks that were asked the same items differ, item by item."""

from __future__ import annotations

from collections.abc import Iterator

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.registry import restore_task
from mm_lightning.experiments import page
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import align, row_key, with_unit
from mm_lightning.experiments.evaluated.evaluations import Evaluation, Group, Network, last_ones
from mm_lightning.experiments.evaluated.report_section import Part

METHOD = (
    "Differences from {} on the same items, item by item, with 95% intervals (docs/evaluation.md): an interval that "
    "does not hold 0 is a difference, also where the intervals of the two numbers overlap."
)


def measurements(evaluation: Evaluation) -> dict[str, Measurement]:
    """Return the numbers of an evaluation that its task compares, as values by item.

    They are by :func:`row_key`; there are none where the samples are missing.
    """
    records = evaluation.records()
    if not records:
        return {}
    try:
        task = restore_task(evaluation.kind, evaluation.settings)
        by_line = {row_key(one.row()): one for one in task.measurements(records)}
    except (UserError, KeyError, TypeError):  # of another version, or of a task that is not known here
        return {}
    shown = set(map(row_key, task.compared([one.row() for one in by_line.values()])))
    return {line: one for line, one in by_line.items() if line in shown}


def paired(group: Group, task: str) -> Iterator[tuple[Network, Network, Row]]:
    """Yield the first network, another, and how much each number of the other is above the first one's."""
    networks = last_ones([n for n in group.networks if group.of(n, task)])
    if len(networks) < 2:
        return
    first, *others = networks
    base = measurements(group.of(first, task)[0])
    for other in others if base else ():
        for line, measurement in measurements(group.of(other, task)[0]).items():
            if line in base and (row := measurement.difference(base[line])) is not None:
                yield first, other, row


def differences(group: Group, task: str) -> list[Part | None]:
    """Return a table: a line for each number, a column for each network but the first, and the items in common."""
    pairs = list(paired(group, task))
    if not pairs:
        return []
    first = pairs[0][0]
    others = list(dict.fromkeys(other for _, other, _ in pairs))
    lines, cells = align(((other, row) for _, other, row in pairs), signed=True)
    names = list(dict.fromkeys(name for row in lines.values() for name in row.group))
    heads = [*names, "metric", "items in common", *(f"{group.label(o)} minus {group.label(first)}" for o in others)]
    table = EstimateTable(f"{task}-differences{group.suffix}", heads, len(names) + 2)
    for line, row in lines.items():
        estimates = [cells.get((line, other)) for other in others]
        counts = dict.fromkeys(f"{cell.count:,}" for cell in estimates if cell is not None)
        table.add(*map(row.group.get, names), with_unit(row), " or ".join(counts), *estimates)
    return [page.Text(METHOD.format(group.label(first))), table]

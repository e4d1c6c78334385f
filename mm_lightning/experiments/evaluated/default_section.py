"""The section of tasks that have none of their own: all metrics, and a curve where one number of the groups varies."""

from __future__ import annotations

import json

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.registry import restore_task
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import drawing, humanize
from mm_lightning.experiments.evaluated import plots
from mm_lightning.experiments.evaluated.differences import with_unit
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import Estimate, estimate
from mm_lightning.experiments.evaluated.evaluations import Group, Network, last_ones
from mm_lightning.experiments.evaluated.report_section import Part, ReportSection
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.style import figure_of, frame, legend_height, lengths_axis, side_legend


def parts(group: Group, looks: Looks) -> list[Part | None]:
    """A table and curves for each task."""
    shown: list[Part | None] = []
    for task in group.tasks:
        rows = {n: [row for e in group.of(n, task) for row in e.rows] for n in group.networks}
        rows = {network: found for network, found in rows.items() if found}
        keys = list(dict.fromkeys(key for found in rows.values() for row in found for key in row.group))
        lines: dict[str, Row] = {}
        cells: dict[tuple[str, Network], Estimate] = {}
        for network, found in rows.items():
            for row in found:
                line = json.dumps([row.group, row.metric], sort_keys=True)
                lines.setdefault(line, row)
                cells[line, network] = estimate(row)
        heads = [*keys, "metric", "items", *map(group.label, rows)]
        grid = EstimateTable(f"{task}{group.suffix}", heads, len(keys) + 2)
        for line, row in lines.items():
            own = [cells.get((line, network)) for network in rows]
            most = max(e.count for e in own if e is not None)
            grid.add(*(row.group.get(key) for key in keys), with_unit(row), f"{most:,}", *own)
        text = f"{task}: means with 95% intervals over items (docs/evaluation.md). The paper has no such numbers."
        shown += [page.Text(text), grid, _references(task, group, list(lines.values()))]
        for key in keys:
            metrics = dict.fromkeys(row.metric for found in rows.values() for row in found if _varies(row, key))
            shown += [_curve(task, key, metric, group, rows, looks) for metric in metrics]
    return shown


def _references(task: str, group: Group, rows: list[Row]) -> EstimateTable | None:
    """Numbers to hold the metrics against, such as those of simple predictors."""
    evaluation = next(e for e in group.evaluations if e.task == task)
    try:
        known = restore_task(evaluation.kind, evaluation.settings).references()
    except (UserError, TypeError):  # of another version, or of a task that is not known here
        return None
    units = {row.metric: row.unit for row in rows}
    if not known:
        return None
    metrics = list(dict.fromkeys(metric for values in known.values() for metric in values))
    grid = EstimateTable(f"{task}-references{group.suffix}", ["to compare with", *map(humanize, metrics)])
    for name, values in known.items():
        cells = [estimate(Row({}, metric, values[metric], None, 0, units.get(metric, "number"))) for metric in metrics]
        grid.add(name, *map(str, cells))
    return grid


def _unit_of(rows: dict[Network, list[Row]], metric: str) -> str:
    return with_unit(next(row for found in rows.values() for row in found if row.metric == metric))


def _varies(row: Row, key: str) -> bool:
    value = row.group.get(key)
    return row.group.keys() == {key} and isinstance(value, (int, float)) and not isinstance(value, bool)


def _curve(
    task: str, key: str, metric: str, group: Group, rows: dict[Network, list[Row]], looks: Looks
) -> page.Drawing | None:
    curves = {
        network: {row.group[key]: estimate(row) for row in found if _varies(row, key) and row.metric == metric}
        for network, found in rows.items()
    }
    places = sorted({place for found in curves.values() for place in found})
    if len(places) < 2:
        return None
    curves = {network: curves[network] for network in last_ones(list(curves))}
    figure, axes = figure_of(8.4, 4.0 + legend_height([group.label(n) for n in curves]))
    values = []
    for network, found in curves.items():
        if found:
            there = sorted(found)
            plots.line(axes, there, [found[n] for n in there], group.label(network), looks[network])
            values += [e.scale * end for e in found.values() for end in (e.low, e.high, e.value) if end is not None]
    if places[0] > 0 and places[-1] > 4 * places[0]:
        lengths_axis(axes, places, humanize(key))
    axes.set(xlabel=humanize(key), ylabel=_unit_of(rows, metric))
    frame(axes, values)
    side_legend(figure, [axes])
    caption = f"{task}: {humanize(metric)} by {humanize(key)}, with 95% intervals."
    return drawing(figure, f"{task}-{metric}-by-{key}{group.suffix}".replace("_", "-"), caption, png=True)


SECTION = ReportSection("Other tasks", lambda e: True, parts)

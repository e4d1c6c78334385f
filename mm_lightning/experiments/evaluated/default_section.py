"""The section of tasks that have none of their own: all metrics, and a curve where one number of the groups varies."""

from __future__ import annotations

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.registry import restore_task
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import drawing, file_name, humanize
from mm_lightning.experiments.evaluated import plots
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import align, estimate, with_unit
from mm_lightning.experiments.evaluated.evaluations import Group, Network, last_ones
from mm_lightning.experiments.evaluated.report_section import Part, ReportSection
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.style import figure_of, frame, legend_height, lengths_axis, side_legend


def parts(group: Group, looks: Looks) -> list[Part | None]:
    """Return a table and curves for each task."""
    shown: list[Part | None] = []
    for task in group.tasks:
        rows = {n: [row for e in group.of(n, task) for row in e.rows] for n in group.networks}
        rows = {network: some for network, some in rows.items() if some}
        lines, cells = align((network, row) for network, some in rows.items() for row in some)
        keys = list(dict.fromkeys(key for row in lines.values() for key in row.group))
        heads = [*keys, "metric", "items", *map(group.label, rows)]
        table = EstimateTable(f"{task}{group.suffix}", heads, len(keys) + 2)
        for line, row in lines.items():
            estimates = [cells.get((line, network)) for network in rows]
            most = max(e.count for e in estimates if e is not None)
            table.add(*map(row.group.get, keys), with_unit(row), f"{most:,}", *estimates)
        text = f"{task}: means with 95% intervals over items (docs/evaluation.md). The paper has no such numbers."
        shown += [page.Text(text), table, _references(task, group, list(lines.values()))]
        for key in keys:
            metrics = dict.fromkeys(row.metric for row in lines.values() if _varies(row, key))
            shown += [_curve(task, key, metric, group, rows, looks) for metric in metrics]
    return shown


def _references(task: str, group: Group, rows: list[Row]) -> EstimateTable | None:
    """Return numbers to hold the metrics against, such as those of simple predictors."""
    evaluation = next(e for e in group.evaluations if e.task == task)
    try:
        references = restore_task(evaluation.kind, evaluation.settings).references()
    except (UserError, TypeError):  # of another version, or of a task that is not known here
        return None
    if not references:
        return None
    units = {row.metric: row.unit for row in rows}
    metrics = list(dict.fromkeys(metric for values in references.values() for metric in values))
    table = EstimateTable(f"{task}-references{group.suffix}", ["to compare with", *map(humanize, metrics)])
    for name, values in references.items():
        cells = [estimate(Row({}, metric, values[metric], None, 0, units.get(metric, "number"))) for metric in metrics]
        table.add(name, *map(str, cells))
    return table


def _varies(row: Row, key: str) -> bool:
    value = row.group.get(key)
    return row.group.keys() == {key} and isinstance(value, (int, float)) and not isinstance(value, bool)


def _curve(
    task: str, key: str, metric: str, group: Group, rows: dict[Network, list[Row]], looks: Looks
) -> page.Drawing | None:
    """Draw a metric against a number of its groups; None where there is one place only."""
    chosen = {
        network: [row for row in some if _varies(row, key) and row.metric == metric] for network, some in rows.items()
    }
    places = sorted({row.group[key] for some in chosen.values() for row in some})
    if len(places) < 2:
        return None
    unit = with_unit(next(row for some in chosen.values() for row in some))
    curves = {
        network: {row.group[key]: estimate(row) for row in sorted(chosen[network], key=lambda row: row.group[key])}
        for network in last_ones(list(chosen))
    }
    figure, axes = figure_of(8.4, 4.0 + legend_height([group.label(n) for n in curves]))
    values = []
    for network, curve in curves.items():
        if curve:
            plots.line(axes, list(curve), list(curve.values()), group.label(network), looks[network])
            values += [e.scale * end for e in curve.values() for end in (e.low, e.high, e.value) if end is not None]
    if places[0] > 0 and places[-1] > 4 * places[0]:
        lengths_axis(axes, places, humanize(key))
    axes.set(xlabel=humanize(key), ylabel=unit)
    frame(axes, values)
    side_legend(figure, [axes])
    caption = f"{task}: {humanize(metric)} by {humanize(key)}, with 95% intervals."
    return drawing(figure, file_name(f"{task}-{metric}-by-{key}{group.suffix}"), caption, png=True)


SECTION = ReportSection("Other tasks", lambda e: True, parts)

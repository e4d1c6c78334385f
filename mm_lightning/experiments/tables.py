"""The tables of a report: for a page, for the terminal, and as CSV."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint.environment import describe_hardware
from mm_lightning.console import clock, print_table, say
from mm_lightning.csv_text import csv_text
from mm_lightning.experiments.drawing import decimals, humanize, si_format, value_text
from mm_lightning.experiments.figures import DERIVED
from mm_lightning.experiments.page import NOTHING
from mm_lightning.experiments.provenance import commit, remarks
from mm_lightning.experiments.statistics import Difference, Row, Spread
from mm_lightning.experiments.study import LOSS, Run, Study
from mm_lightning.experiments.tuning import grid_table, warnings


def table(study: Study, rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and cells of the report's table; the CSV files hold more columns."""
    metrics = [name for name in study.metrics if name not in DERIVED or _beside(study, name)]
    compared = any(row.difference for row in rows)
    columns = ["variant", "seeds", "steps"]
    for name in metrics:
        columns.append(humanize(name))
        columns += ["published"] if _beside(study, name) else []
        columns += ["difference [95% CI]"] if name == LOSS and compared else []
    columns += ["parameters", "training FLOPs/token", "tokens", "training FLOPs", "tokens/s", "training time"]
    lines = []
    for row in rows:
        line = [row.variant, f"{row.done}" if row.done == row.planned else f"{row.done} of {row.planned}"]
        line.append(steps_text(row))
        for name in metrics:
            line.append(spread_text(row.metrics.get(name), row.done))
            if theirs := _beside(study, name):
                line.append(f"{theirs[row.variant]:g}" if row.variant in theirs else NOTHING)
            if name == LOSS and compared:
                line.append("baseline" if row.variant == study.baseline else difference_text(row.difference, row.done))
        line += [_short(row.parameters), _short(row.training_flops_per_token), _short(row.tokens)]
        speed = NOTHING if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
        lines.append([*line, _short(row.training_flops), speed, _clock(row.seconds)])
    return columns, lines


def _beside(study: Study, metric: str) -> dict[str, float]:
    """Return the published values of a metric that are of variants of the study, by variant."""
    return {name: x for name, x in study.published.get(metric, {}).items() if name in study.variants}


def steps_text(row: Row) -> str:
    """Return the steps of a variant: 1,000, 28 of 1,000, or 28 to 1,000 of 1,000."""
    if row.steps is None:
        return NOTHING
    text = " to ".join(dict.fromkeys(f"{step:,}" for step in row.steps))
    return f"{text} of {row.planned_steps:,}" if row.planned_steps and row.steps[0] < row.planned_steps else text


def spread_text(spread: Spread | None, seeds: int) -> str:
    """Return mean and standard deviation, as in 2.4312 ± 0.0021."""
    if spread is None:
        return NOTHING
    text = value_text(spread.mean)
    text += "" if spread.deviation is None else f" ± {spread.deviation:.{decimals(spread.mean)}f}"
    return text if len(spread.values) == seeds else f"{text} ({len(spread.values)} seeds)"


def difference_text(difference: Difference | None, seeds: int) -> str:
    """Return mean difference and interval, as in +0.0123 [-0.0010, +0.0256]."""
    if difference is None:
        return NOTHING
    if difference.low is None:
        return f"{difference.mean:+.4f} (1 seed)"
    text = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    return text if len(difference.values) == seeds else f"{text} ({len(difference.values)} pairs)"


def _short(value: float | None) -> str:
    return NOTHING if value is None else si_format(value)


def _clock(seconds: float | None) -> str:
    return NOTHING if seconds is None else clock(seconds)


def reached(run: Run) -> str:
    """Return the last step of a run and its planned steps."""
    return f"{run.step:,} of {run.steps:,}" if run.steps else f"{run.step:,}"


def reference_rows(study: Study) -> list[list[str]]:
    """Return the reference values of metrics, as a range where runs differ in them."""
    by_reference: dict[tuple[str, str], list[float]] = {}
    for run in study.runs:
        for metric, values in run.references.items():
            for name, value in values.items():
                by_reference.setdefault((name, metric), []).append(value)
    ends = {key: list(dict.fromkeys((min(values), max(values)))) for key, values in by_reference.items()}
    rows = [[name, humanize(metric), " to ".join(value_text(v) for v in e)] for (name, metric), e in ends.items()]
    return rows + [
        [f"published: {name}", humanize(metric), f"{value:g}"]
        for metric, values in study.published.items()
        for name, value in values.items()
        if name not in study.variants or metric not in study.metrics
    ]


def show(study: Study, rows: list[Row]) -> None:
    """Print the table, the runs that are not in it, and remarks."""
    columns, lines = table(study, rows)
    shown = [n for n, name in enumerate(columns) if not name.endswith("tokens") and "FLOPs" not in name]
    print_table([columns[n] for n in shown], ([line[n] for n in shown] for line in lines), study.name)
    for run in study.runs:
        if not run.finished:
            last = f": {run.last_line[:160]}" if run.last_line else ""
            say(f"does not count: {run.name}, {run.status} at step {reached(run)}{last}")
    if study.tuning is not None:
        print_table(*grid_table(study.tuning), "tuning")
    for note in [*remarks(study), *study.notes, *(warnings(study.tuning) if study.tuning else [])]:
        say(note)


def _axes(run: Run) -> dict[str, Any]:
    """Return a run's value on each axis, under names that no other column has."""
    return {f"axis {axis}": value for axis, value in run.values.items()}


def tuning_record(study: Study, run: Run) -> dict[str, Any]:
    """Return the stage of a run (tuning, final or both) and its tuned values; nothing without tuning."""
    if study.tuning is None:
        return {}
    stages = {"tuning": study.tuning.runs, "final": study.runs}
    stage = " and ".join(name for name, runs in stages.items() if any(run is each for each in runs))
    return {"stage": stage, **{f"tuned {name}": run.tuned.get(name) for name in study.tuning.axes}}


def variant_record(study: Study, row: Row) -> dict[str, Any]:
    """Return a line of report.csv."""
    record: dict[str, Any] = {"variant": row.variant, **_axes(study.of(row.variant, finished=False)[0])}
    if study.tuning is not None:
        record |= {f"tuned {name}": study.chosen(row.variant).get(name) for name in study.tuning.axes}
    record |= {"seeds_finished": row.done, "seeds_planned": row.planned}
    record |= {"steps_fewest": row.steps and row.steps[0], "steps_most": row.steps and row.steps[1]}
    record["steps_planned"] = row.planned_steps
    for name, metric in row.metrics.items():
        record |= {f"{name} mean": metric.mean, f"{name} sd": metric.deviation}
        if row.variant in study.published.get(name, {}):
            record[f"{name} published"] = study.published[name][row.variant]
    if row.difference is not None:
        record["difference_from"] = study.reference(row.variant)
        record["difference"], record["difference_pairs"] = row.difference.mean, len(row.difference.values)
        record["difference_low"], record["difference_high"] = row.difference.low, row.difference.high
    for name in ("parameters", "training_flops_per_token", "tokens", "training_flops", "tokens_per_second"):
        record[name] = getattr(row, name)
    return {**record, "training_seconds": row.seconds}


def run_record(study: Study, run: Run) -> dict[str, Any]:
    """Return a line of runs.csv."""
    record: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "folder": run.name, "status": run.status}
    record |= {**tuning_record(study, run), **_axes(run), "step": run.step, "steps_planned": run.steps}
    record |= {"last_validated_at": max(run.curve(LOSS), default=None), **run.final()}
    for name in ("parameters", "training_flops_per_token", "tokens", "training_flops", "tokens_per_second"):
        record[name] = getattr(run, name)
    record |= {"training_seconds": run.seconds_at(run.step), "wall_seconds": run.wall_seconds}
    if run.environment:
        record |= {"code": commit(run.environment), "hardware": describe_hardware(run.environment)}
    return record


def curve_record(run: Run) -> dict[str, list[list[float | None]]]:
    """Return the evaluation metrics of a run for runs.json: pairs of tokens and value, None where it is not finite."""

    def point(step: int, value: float) -> list[float | None]:
        return [run.tokens_at(step), finite(float(f"{value:.6g}"))]

    return {metric: [point(*pair) for pair in sorted(run.curve(metric).items())] for metric in run.final()}


def finite(value: Any) -> Any:
    """Return a value of JSON, which has no infinite numbers and none that is not a number: None for these."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records as CSV under the union of their columns."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    rows = [[record.get(name, "") for name in columns] for record in records]
    path.write_text(csv_text([columns, *rows]), encoding="utf-8")

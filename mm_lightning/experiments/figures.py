"""The figures of a report: learning curves, final values, and metrics against the numeric axes of a sweep."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mm_lightning.errors import UserError
from mm_lightning.experiments.drawing import (
    LABEL_WIDTH,
    drawing,
    file_name,
    humanize,
    legend,
    scale_places,
    scale_tokens,
)
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.experiments.page import Drawing
from mm_lightning.experiments.statistics import Row, spread
from mm_lightning.experiments.study import LOSS, Run, Study
from mm_lightning.style import COLORS, GREY, INK, MARKERS, REFERENCES, figure_of, frame, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# functions of the validation loss, which has figures of its own
DERIVED = ("validation/perplexity", "validation/bits_per_byte")
# An untrained network's loss would flatten the curves: they are framed by what follows this share of a run.
FRAMED_FROM = 0.3
SMOOTHED = 0.05
"""Share of a run over which the training loss is averaged."""


def draw(study: Study, rows: list[Row], looks: Looks) -> list[Drawing]:
    """Draw all figures that the runs have something to show in.

    Args:
        study: the runs.
        rows: the statistics of each variant.
        looks: color, marker and dashes of each variant.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError('reports need matplotlib: pip install "mm-lightning[report]"') from error

    drawings = [_losses(study, looks)]
    for metric in [name for name in study.metrics if name not in DERIVED]:
        drawings += [_curves(study, looks, metric, *against) for against in AGAINST[: 3 if metric == LOSS else 1]]
        if metric == LOSS:
            drawings.append(_final(study, rows, looks))
        for axis in numeric_axes(study):
            drawings.append(_against_axis(study, metric, axis))
    return [drawing for drawing in drawings if drawing is not None]


AGAINST: list[tuple[str, str, Callable[[Run, int], float | None]]] = [
    ("tokens", "training tokens", lambda run, step: run.tokens_at(step)),
    (
        "flops",
        "training FLOPs",
        lambda run, step: (
            tokens * run.training_flops_per_token
            if (tokens := run.tokens_at(step)) and run.training_flops_per_token
            else None
        ),
    ),
    ("seconds", "training time, seconds (validation left out)", lambda run, step: run.seconds_at(step)),
]


@dataclass
class _Curve:
    """A metric of one variant during training: mean, lowest and highest of its seeds at the steps that all have."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    late: int
    """Index of the first point that decides how much a figure shows."""


def _curve(study: Study, variant: str, metric: str, place: Callable[[Run, int], float | None]) -> _Curve | None:
    runs = [run for run in study.of(variant) if run.curve(metric) and place(run, run.step) is not None]
    curves = [run.curve(metric) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not steps:
        return None
    x = [spread({n: place(run, step) or 0.0 for n, run in enumerate(runs)}).mean for step in steps]
    values = [[curve[step] for curve in curves] for step in steps]
    late = next(n for n, step in enumerate(steps) if step >= FRAMED_FROM * steps[-1])
    return _Curve(x, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values], late)


def _losses(study: Study, looks: Looks) -> Drawing | None:
    """Draw the training loss of each variant and its validation loss against training tokens."""
    figure, axes = figure_of(8.4, 4.2)
    tokens = AGAINST[0][2]
    framed: list[float] = []
    for variant in study.variants:
        color = looks[variant]["color"]
        label = variant
        if curve := _curve(study, variant, "train/loss", tokens):
            axes.plot(curve.x, curve.mean, color=color, linewidth=0.8, alpha=0.3)
            smooth = smoothed(curve.mean)
            axes.plot(curve.x, smooth, color=color, linewidth=1.6, linestyle=looks[variant]["linestyle"], label=label)
            framed += smooth[curve.late :]
            label = "_"  # named once
        if curve := _curve(study, variant, LOSS, tokens):
            look = {"color": color, "marker": looks[variant]["marker"], "markeredgecolor": INK, "linestyle": ""}
            axes.plot(curve.x, curve.mean, markersize=6, markeredgewidth=0.8, label=label, zorder=3, **look)
            framed += curve.mean[curve.late :]
    if not framed:
        return None
    frame(axes, framed + _references(study, LOSS, axes))
    axes.plot([], [], color=GREY, label="training loss")
    axes.plot([], [], color=GREY, label="validation loss", marker="o", markeredgecolor=INK, linestyle="")
    axes.set(xlabel="training tokens", ylabel="loss, nats per token")
    axes.set_xlim(left=0)
    scale_tokens(axes)
    return drawing(
        figure,
        "loss-tokens",
        "Loss against training tokens, means over seeds. Lines: training loss of single steps (pale) and its running "
        f"mean over {SMOOTHED:.0%} of the run. Markers: validation loss. The frame leaves out what comes early and far "
        "away.",
        png=True,
    )


def smoothed(values: list[float]) -> list[float]:
    """Return running means over the last `SMOOTHED` of all values."""
    width = max(1, round(SMOOTHED * len(values)))
    return [statistics.fmean(values[max(0, n + 1 - width) : n + 1]) for n in range(len(values))]


def _curves(
    study: Study, looks: Looks, metric: str, name: str, label: str, place: Callable[[Run, int], float | None]
) -> Drawing | None:
    """Draw a metric during training: the mean over seeds in a band from the smallest to the largest."""
    figure, axes = figure_of(8.4, 4.2)
    framed: list[float] = []
    for variant in study.variants:
        if curve := _curve(study, variant, metric, place):
            axes.plot(curve.x, curve.mean, label=variant, markersize=3.5, linewidth=1.5, **looks[variant])
            axes.fill_between(curve.x, curve.low, curve.high, color=looks[variant]["color"], alpha=0.15, linewidth=0)
            framed += curve.low[curve.late :] + curve.high[curve.late :]
    if not framed:
        return None
    marks = _references(study, metric, axes) if name == "tokens" else []
    frame(axes, framed + marks)
    axes.set(xlabel=label, ylabel="validation loss, nats per token" if metric == LOSS else humanize(metric))
    axes.set_xlim(left=0)
    scale_tokens(axes)
    return drawing(
        figure,
        f"{file_name(metric)}-{name}",
        f"{humanize(metric).capitalize()} against {label}: mean over seeds, band from the lowest to the highest seed; "
        f"the frame leaves out what comes early and far away.",
    )


def _references(study: Study, metric: str, axes: Axes) -> list[float]:
    """Draw reference values of a metric that are the same for all runs as horizontal lines; return their heights."""
    references: dict[str, set[float]] = {}
    for run in study.runs:
        for name, value in run.references.get(metric, {}).items():
            references.setdefault(name, set()).add(value)
    lines = {name: values.pop() for name, values in references.items() if len(values) == 1}
    for n, (name, value) in enumerate(lines.items()):
        axes.axhline(value, color=GREY, linewidth=1, linestyle=REFERENCES[n % len(REFERENCES)], label=name, zorder=1)
    return list(lines.values())


def _final(study: Study, rows: list[Row], looks: Looks) -> Drawing | None:
    """Draw the last validation loss of each variant by seed, and differences from the baseline with intervals."""
    rows = [row for row in rows if LOSS in row.metrics]
    if not rows:
        return None
    compared = any(row.difference for row in rows)
    labels = [wrapped(row.variant, LABEL_WIDTH) for row in rows]
    heights = [max(0.34, 0.17 * (1 + label.count("\n"))) for label in labels]
    figure, axes = figure_of(8.4, 1.1 + len(rows) * max(heights), columns=2 if compared else 1)
    left, right = axes if compared else (axes, None)
    for place, row in enumerate(rows):
        look = {"color": looks[row.variant]["color"], "marker": "o", "linestyle": ""}
        values = row.metrics[LOSS]
        left.plot(list(values.values.values()), [place] * len(values.values), markersize=4.5, alpha=0.6, **look)
        left.plot([values.mean], [place], **{**look, "marker": "|"}, markersize=15, markeredgewidth=2)
        if right is not None and row.difference is not None:
            mean, by_seed = row.difference.mean, list(row.difference.values.values())
            right.plot(by_seed, [place - 0.25] * len(by_seed), markersize=3, alpha=0.6, **look)
            right.plot([mean], [place], **{**look, "marker": "D"}, markersize=5)
            if row.difference.low is not None:
                ends = [row.difference.low, row.difference.high]
                right.plot(ends, [place, place], color=look["color"], linewidth=2)
    left.set_yticks(range(len(rows)), labels)
    left.set_ylim(len(rows) - 0.5, -0.5)
    left.set_xlabel("validation loss, nats per token")
    caption = "Last validation loss: a dot is a seed, the bar their mean."
    if right is not None:
        right.sharey(left)
        right.tick_params(labelleft=False)
        right.axvline(0, color=INK, linewidth=1)
        right.set_xlabel(wrapped(f"difference from {study.reference_in_words}", LABEL_WIDTH))
        caption += f" Right: differences from {study.reference_in_words} seed by seed, their mean and its 95% interval"
        caption += _cut(right, rows) + "."
    return drawing(figure, "final", caption)


def _cut(axes: Axes, rows: list[Row]) -> str:
    """Cut the very wide intervals of two seeds, which would hide all else; return a remark where it does."""
    differences = [row.difference for row in rows if row.difference]
    dots = max(abs(value) for difference in differences for value in difference.values.values()) or 1e-4
    ends = [end for d in differences for end in (d.low, d.high) if end is not None]
    limit = 3 * dots
    if not any(abs(end) > limit for end in ends):
        return ""
    axes.set_xlim(-limit, limit)
    return " (cut where it leaves the frame)"


def number(value: Any) -> float | None:
    """Return a value of an axis as a finite number, if it is one."""
    try:
        place = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        return None
    return place if math.isfinite(place) else None


def numeric_axes(study: Study) -> list[str]:
    """Return the axes on which the runs have three or more places, all of them numbers."""
    axes = []
    for axis in study.axes:
        places = {number(run.values[axis]) for run in study.runs if axis in run.values}
        if len(places) >= 3 and None not in places:
            axes.append(axis)
    return axes


def _against_axis(study: Study, metric: str, axis: str) -> Drawing | None:
    """Draw final values against a numeric axis: a line for each combination of the other axes' values."""
    lines: dict[str, dict[float, list[float]]] = {}
    marks: dict[str, dict[float, list[float]]] = {}
    for run in study.runs:
        place, value = number(run.values.get(axis)), run.final().get(metric)
        if place is None:
            continue
        for name, mark in run.references.get(metric, {}).items():
            marks.setdefault(name, {}).setdefault(place, []).append(mark)
        if run.finished and value is not None:
            others = [str(v) for name, v in run.values.items() if name != axis]
            lines.setdefault(", ".join(others), {}).setdefault(place, []).append(value)
    if len({place for line in lines.values() for place in line}) < 2:
        return None
    figure, axes = figure_of(8.4, 4.2)
    for n, (label, line) in enumerate(lines.items()):
        places = sorted(line)
        look = {"color": COLORS[n % len(COLORS)], "marker": MARKERS[n % len(MARKERS)]}
        means = [sum(line[place]) / len(line[place]) for place in places]
        axes.plot(places, means, label=label, markersize=5, linewidth=1.5, **look)
        dots = [(place, value) for place in places for value in line[place]]
        axes.plot(*zip(*dots, strict=True), linestyle="", markersize=3, alpha=0.4, **look)
    for n, (label, line) in enumerate(marks.items()):
        places = sorted(line)
        means = [sum(line[place]) / len(line[place]) for place in places]
        axes.plot(
            places, means, label=label, color=GREY, linewidth=1, linestyle=REFERENCES[n % len(REFERENCES)], zorder=1
        )
    scale_places(axes, sorted({place for line in lines.values() for place in line}))
    axes.set(xlabel=axis, ylabel=humanize(metric))
    legend(axes)
    caption = f"Last {humanize(metric)} against {axis}: means over seeds; small dots are the seeds."
    return drawing(figure, f"{file_name(metric)}-by-{re.sub(r'[^A-Za-z0-9_]+', '-', axis)}", caption)

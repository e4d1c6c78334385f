"""Lines and axes of evaluated networks: ours filled and in color with intervals, published ones hollow and gray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mm_lightning import style
from mm_lightning.experiments.drawing import drawing
from mm_lightning.experiments.evaluated.estimates import Estimate
from mm_lightning.experiments.page import Drawing
from mm_lightning.style import GREY, MARKERS, REFERENCES, figure_of, legend_height, lengths_axis, side_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def line(axes: Axes, x: Sequence[float], values: Sequence[Estimate], label: str, look: Mapping[str, Any]) -> None:
    """Draw a line of ours with its intervals as a band."""
    style.line(axes, x, *band(values), label, look)


def band(values: Sequence[Estimate]) -> tuple[list[float], list[float], list[float]]:
    """Return the values of estimates, and the ends of their intervals."""
    return (
        [e.scale * e.value for e in values],
        [e.scale * (e.value if e.low is None else e.low) for e in values],
        [e.scale * (e.value if e.high is None else e.high) for e in values],
    )


def published_line(axes: Axes, x: Sequence[float], y: Sequence[float], label: str, number: int) -> None:
    """Draw a published line: thin, gray, with hollow markers."""
    look: dict[str, Any] = {"color": GREY, "marker": MARKERS[number % len(MARKERS)], "markerfacecolor": "none"}
    axes.plot(x, y, linestyle=REFERENCES[number % len(REFERENCES)], linewidth=1, markersize=6, label=label, **look)


def percent_axis(axes: Axes, values: Sequence[float], label: str = "accuracy, %") -> None:
    """Scale the vertical axis from 0 up, to 100 where values come near it."""
    top = max(values, default=0.0)
    axes.set_ylim(-0.02 * max(top, 1), 103 if top > 60 else max(1.15 * top, 5))
    axes.set_ylabel(label)


def by_length(
    name: str,
    caption: str,
    ours: Sequence[tuple[str, Mapping[int, Estimate], Mapping[str, Any]]],
    published: Sequence[tuple[str, Mapping[int, float]]] = (),
) -> Drawing | None:
    """Draw accuracy against length: a line for each network."""
    lengths = sorted({n for _, values, _ in ours for n in values} | {n for _, values in published for n in values})
    if not lengths:
        return None
    height = 4.0 + legend_height([*(label for label, *_ in ours), *(label for label, _ in published)])
    figure, axes = figure_of(8.4, height)
    tops = [e.scale * (e.high or e.value) for _, values, _ in ours for e in values.values()]
    for number, (label, points) in enumerate(published):
        published_line(axes, list(points), list(points.values()), label, number)
        tops += points.values()
    for label, values, look in ours:
        places = sorted(values)
        line(axes, places, [values[n] for n in places], label, look)
    lengths_axis(axes, lengths, "length, tokens")
    percent_axis(axes, tops)
    side_legend(figure, [axes])
    return drawing(figure, name, caption, png=True)

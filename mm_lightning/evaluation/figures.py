"""Figures of what tasks find: the same where `mm evaluate`, `mm report` and callbacks draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mm_lightning.style import (
    GREY,
    INK,
    REFERENCES,
    figure_of,
    frame,
    legend_height,
    lengths_axis,
    line,
    side_legend,
    tokens,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """A network's losses.

    Attributes:
        label: what it is called.
        look: colour, marker and dashes.
        bins: positions, from the first to the last.
        values: the loss in each bin.
        low: where its interval begins.
        high: where it ends.
        trained: tokens of a training sequence, if they are known.
    """

    label: str
    look: Mapping[str, Any]
    bins: Sequence[tuple[int, int]]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    trained: int | None


def loss_by_position(curves: Sequence[Curve]) -> Figure:
    """A line for each network, its intervals as a band, and training contexts as vertical lines."""
    figure, axes = figure_of(8.4, 4.2 + legend_height([curve.label for curve in curves]))
    for curve in curves:
        x = [math.sqrt(low * high) for low, high in curve.bins]
        line(axes, x, curve.values, curve.low, curve.high, curve.label, curve.look)
    for n, context in enumerate(sorted({curve.trained for curve in curves if curve.trained})):
        style = REFERENCES[n % len(REFERENCES)]
        axes.axvline(context, color=GREY, linestyle=style, linewidth=1, label=f"trained at {tokens(context)}")
    frame(axes, [end for curve in curves for end in (*curve.low, *curve.high)])
    top = max(high for curve in curves for _, high in curve.bins)
    places = [2**n for n in range(3, 40) if 2**n <= top]
    places = places[1 - len(places) % 2 :: 2] if len(places) > 12 else places
    lengths_axis(axes, places, "position: tokens read before the predicted one")
    axes.set_ylabel("loss, nats a token")
    side_legend(figure, [axes])
    return figure


def profile_axes(axes: Axes, furthest: float) -> None:
    """Names the axes of retrieval weights by distance, both logarithmic."""
    lengths_axis(axes, [4**n for n in range(20) if 4**n <= furthest], "tokens back")
    axes.set_yscale("log")
    axes.set_ylabel("mean retrieval weight of a pair")


def heat_maps(maps: Mapping[str, Mapping[tuple[int, str], float]]) -> Figure:
    """Accuracy by length (across) and depth of the answer (down), a map for each network; grey is not asked."""
    import matplotlib
    import numpy as np

    colours = matplotlib.colormaps["viridis"].resampled(40)  # few enough for a colour bar that is drawn as paths
    cells = [key for found in maps.values() for key in found]
    lengths = sorted({length for length, _ in cells})
    depths = sorted({depth for _, depth in cells}, key=lambda depth: int(depth.split("-")[0]))
    columns = min(len(maps), max(1, 9 // (2 + len(lengths) // 2)))
    lines = math.ceil(len(maps) / columns)
    figure, grid = figure_of(min(10.5, 1.6 + columns * (1.1 + 0.6 * max(len(lengths), 2))), 3.6 * lines, columns, lines)
    panels = list(np.atleast_1d(grid).flat)
    mesh: Any = None
    for axes, (title, found) in zip(panels, maps.items(), strict=False):
        values = np.array([[100 * found.get((length, depth), np.nan) for length in lengths] for depth in depths])
        axes.grid(False)
        axes.set_facecolor("#c8ccd0")
        mesh = axes.pcolormesh(values, vmin=0, vmax=100, cmap=colours, edgecolors="none")
        for (down, across), value in np.ndenumerate(values):
            if not np.isnan(value):
                look = {"color": "#000000" if value > 60 else "#ffffff", "fontsize": 8}
                axes.text(across + 0.5, down + 0.5, f"{value:.0f}", ha="center", va="center", **look)
        axes.set_xticks([n + 0.5 for n in range(len(lengths))], [tokens(n) for n in lengths])
        axes.set_yticks([n + 0.5 for n in range(len(depths))], depths)
        axes.invert_yaxis()
        axes.set_title(wrapped(title, 30), fontsize=9)
        axes.set(xlabel="length, tokens", ylabel="depth of the answer")
        axes.label_outer()
    for axes in panels[len(maps) :]:
        axes.set_visible(False)
    bar = figure.colorbar(mesh, ax=panels, shrink=0.8)
    bar.set_label("accuracy, %", color=INK)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_visible(False)
    return figure

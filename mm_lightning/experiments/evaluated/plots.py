"""How evaluated networks are drawn: ours filled and in colour with intervals, published ones hollow and grey."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mm_lightning.experiments.drawing import COLOURS, GREY, INK, MARKERS, REFERENCES, drawing, figure_of
from mm_lightning.experiments.evaluated.estimates import Estimate
from mm_lightning.experiments.evaluated.groups import Network, last_ones
from mm_lightning.experiments.page import Figure as Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = (*COLOURS, "#7b5ea7", "#8b5a2b", "#4d7c3f", "#b04a6e", "#5a7fc0")
"""Colours for more networks than can be told apart by colour alone: their markers differ too."""

Looks = Mapping[Network, dict[str, Any]]
"""Colour and marker of each network, the same in all figures."""


def looks_of(networks: Sequence[Network]) -> Looks:
    """A colour for all of the same weights: a network without long-term memory has its own, dashed."""
    ordered = [*last_ones(networks), *networks]  # earlier checkpoints take what colours are left
    weights = list(dict.fromkeys(str(n.about.get("weights", n.key)) for n in ordered))
    found = {}
    for network in networks:
        place = weights.index(str(network.about.get("weights", network.key)))
        found[network] = {
            "color": MANY[place % len(MANY)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": ("-" if place < len(MANY) else "-.") if network.long_term else "--",
        }
    return found


def line(axes: Axes, x: Sequence[float], values: Sequence[Estimate], label: str, look: Mapping[str, Any]) -> None:
    """A line of ours with its intervals as a band."""
    y = [e.scale * e.value for e in values]
    low, high = ([e.scale * (e.value if end is None else end) for e, end in pairs] for pairs in ends(values))
    axes.plot(x, y, label=label, markersize=5, linewidth=1.6, **look)
    if len(x) > 1:
        axes.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)
    else:
        axes.errorbar(x, y, [[y[0] - low[0]], [high[0] - y[0]]], color=look["color"], capsize=3, linewidth=1)


def ends(values: Sequence[Estimate]) -> tuple[list[tuple[Estimate, float | None]], list[tuple[Estimate, float | None]]]:
    """Estimates with where their intervals begin, and with where they end."""
    return [(e, e.low) for e in values], [(e, e.high) for e in values]


def published_line(axes: Axes, x: Sequence[float], y: Sequence[float], label: str, number: int) -> None:
    """A published line: thin, grey, with hollow markers."""
    look: dict[str, Any] = {"color": GREY, "marker": MARKERS[number % len(MARKERS)], "markerfacecolor": "none"}
    axes.plot(x, y, linestyle=REFERENCES[number % len(REFERENCES)], linewidth=1, markersize=6, label=label, **look)


def lengths_axis(axes: Axes, lengths: Sequence[float], label: str) -> None:
    """A logarithmic axis with the wanted places on it."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(lengths), [tokens(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel(label)


def tokens(number: float) -> str:
    """4096 -> 4k"""
    return f"{number / 1024:g}k" if number >= 1024 and number % 256 == 0 else f"{number:g}"


def percent_axis(axes: Axes, values: Sequence[float], label: str = "accuracy, %") -> None:
    """Up from 0; to 100 where values come near it."""
    top = max(values, default=0.0)
    axes.set_ylim(-0.02 * max(top, 1), 103 if top > 60 else max(1.15 * top, 5))
    axes.set_ylabel(label)


def side_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for several panels, each name once, beside or below them: where the names need less room."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    entries = dict(sorted(entries.items(), key=lambda entry: entry[0].startswith("published")))
    look = {"frameon": False, "fontsize": 9, "labelcolor": INK}
    if max(map(len, entries)) > 26:
        columns = 2 if max(map(len, entries)) < 60 and len(entries) > 2 else 1
        figure.legend(entries.values(), entries.keys(), loc="outside lower left", ncols=columns, **look)
    else:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", **look)


def legend_height(labels: Sequence[str]) -> float:
    """Inches that a legend below a figure takes."""
    if max(map(len, labels), default=0) <= 26:
        return 0.0
    columns = 2 if max(map(len, labels)) < 60 and len(labels) > 2 else 1
    return 0.22 * math.ceil(len(labels) / columns)


def by_length(
    name: str,
    caption: str,
    ours: Sequence[tuple[str, Mapping[int, Estimate], Mapping[str, Any]]],
    published: Sequence[tuple[str, Mapping[int, float]]] = (),
) -> Drawing | None:
    """Accuracy against length: a line for each network."""
    lengths = sorted({n for _, values, _ in ours for n in values} | {n for _, values in published for n in values})
    if not lengths:
        return None
    height = 4.0 + legend_height([label for label, *_ in [*ours, *published]])
    figure, axes = figure_of(8.4, height)
    tops = [e.scale * (e.high or e.value) for _, values, _ in ours for e in values.values()]
    for number, (label, found) in enumerate(published):
        published_line(axes, list(found), list(found.values()), label, number)
        tops += found.values()
    for label, values, look in ours:
        places = sorted(values)
        line(axes, places, [values[n] for n in places], label, look)
    lengths_axis(axes, lengths, "length, tokens")
    percent_axis(axes, tops)
    side_legend(figure, [axes])
    return drawing(figure, name, caption, png=True)


def heat_maps(name: str, caption: str, maps: Mapping[str, Mapping[tuple[int, str], float]]) -> Drawing | None:
    """Accuracy by length (across) and depth of the answer (down), a map for each network; grey is not asked."""
    import matplotlib
    import numpy as np

    colours = matplotlib.colormaps["viridis"].resampled(40)  # few enough for a colour bar that is drawn as paths
    cells = [key for found in maps.values() for key in found]
    if not cells:
        return None
    lengths = sorted({length for length, _ in cells})
    depths = sorted({depth for _, depth in cells}, key=lambda depth: int(depth.split("-")[0]))
    columns = min(len(maps), max(1, 9 // (2 + len(lengths) // 2)))
    lines = math.ceil(len(maps) / columns)
    figure, grid = figure_of(min(10.5, 1.6 + columns * (1.1 + 0.6 * max(len(lengths), 2))), 3.6 * lines, columns, lines)
    panels = list(np.atleast_1d(grid).flat)
    mesh = None
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
    return drawing(figure, name, caption, png=True)


def wrapped(text: str, width: int) -> str:
    """Broken into lines."""
    import textwrap

    return "\n".join(textwrap.wrap(text, width, break_long_words=True))

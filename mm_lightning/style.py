"""The style of all figures: colors, markers, fonts and legends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mm_lightning.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#808890"
INK = "#24292f"  # replaced by the page's color where the page may be dark
# After Okabe and Ito, less what is pale on white or dark on black: told apart by color-blind readers on both.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
# gray lines to hold a metric against
REFERENCES = ("--", ":", "-.", (0, (10, 2)), (0, (1, 4)), (0, (6, 2, 1, 2, 1, 2)))


def figure_of(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    """Return an empty figure, its size in inches, and its axes as `Figure.subplots` returns them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_color(INK)
        axes.tick_params(colors=INK, labelsize=9)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        axes.title.set_color(INK)
    return figure, grid


def tame(figure: Figure) -> None:
    """Show all text of a figure as it is: no formula, however many `$` a name has, and no invisible character.

    Numbers on logarithmic axes stay the formulas that Matplotlib makes of them.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    def literal(label: Any) -> str:
        return visible(str(label)).replace("$", r"\$")

    if getattr(figure, "mm_tame", False):  # twice would escape twice
        return
    figure.mm_tame = True  # type: ignore[attr-defined]
    numbers: set[Any] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for formatter in (axis.get_major_formatter(), axis.get_minor_formatter()):
                if isinstance(formatter, FixedFormatter):
                    formatter.seq = [literal(label) for label in formatter.seq]
                elif isinstance(formatter, FuncFormatter):
                    formatter.func = partial(_through, literal, formatter.func)
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            numbers.update(label for tick in ticks for label in (tick.label1, tick.label2))
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_text(visible(text.get_text()))
            text.set_parse_math(False)


def _through(literal: Callable[[Any], str], label: Callable[..., Any], *place: Any) -> str:
    return literal(label(*place))


def frame(axes: Axes, values: list[float]) -> None:
    """Set the limits of the y axis to the finite values, with a little room."""
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        room = 0.06 * (max(finite) - min(finite)) or 0.05 * abs(finite[0]) or 1.0
        axes.set_ylim(min(finite) - room, max(finite) + room)


def line(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    label: str,
    look: Mapping[str, Any],
) -> None:
    """Draw a line with its intervals as a band; a single point with a bar.

    Args:
        axes: the axes to draw in.
        x: the positions on the x axis.
        y: the values.
        low: the lower ends of their intervals.
        high: the upper ends.
        label: the name in the legend.
        look: color, marker and dashes.
    """
    axes.plot(x, y, label=label, markersize=5, linewidth=1.6, **look)
    if len(x) > 1:
        axes.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)
    else:
        axes.errorbar(x, y, [[y[0] - low[0]], [high[0] - y[0]]], color=look["color"], capsize=3, linewidth=1)


def lengths_axis(axes: Axes, lengths: Sequence[float], label: str) -> None:
    """Make the x axis logarithmic, with ticks at these lengths."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(lengths), [tokens(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlabel(label)


def profile_axes(axes: Axes, furthest: float) -> None:
    """Label the axes of retrieval weights by distance, both logarithmic."""
    lengths_axis(axes, [4**n for n in range(20) if 4**n <= furthest], "tokens back")
    axes.set_yscale("log")
    axes.set_ylabel("mean retrieval weight of a pair")


def tokens(number: float) -> str:
    """Return a number of tokens in short: 4096 -> 4k."""
    return f"{number / 1024:g}k" if number >= 1024 and number % 256 == 0 else f"{number:g}"


def side_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend for several panels, each name once, beside or below them: where the names need less room."""
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
        figure.legend(
            entries.values(),
            [wrapped(label, 100) for label in entries],
            loc="outside lower left",
            ncols=columns,
            **look,
        )
    else:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", **look)


def legend_height(labels: Sequence[str]) -> float:
    """Return the height in inches of a legend below a figure."""
    if max(map(len, labels), default=0) <= 26:
        return 0.0
    columns = 2 if max(map(len, labels)) < 60 and len(labels) > 2 else 1
    return 0.22 * math.ceil(len(labels) / columns)


def wrapped(text: str, width: int) -> str:
    """Return a text broken into lines of at most `width` characters."""
    import textwrap

    return "\n".join(textwrap.wrap(text, width, break_long_words=True))

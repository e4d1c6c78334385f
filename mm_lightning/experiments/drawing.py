"""How figures look, and how they become SVG."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

from mm_lightning.experiments.page import Figure as Drawing
from mm_lightning.experiments.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#808890"
INK = "#24292f"  # replaced by the page's colour where the page may be dark
GROUND = '<rect width="100%" height="100%" fill="#ffffff"/>'
# After Okabe and Ito, less what is pale on white or dark on black: told apart by colour-blind readers on both.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES = ("-", "--", ":", "-.")
# grey lines to hold a metric against
REFERENCES = ("--", ":", "-.", (0, (10, 2)), (0, (1, 4)), (0, (6, 2, 1, 2, 1, 2)))


def word(metric: str) -> str:
    """validation/bits_per_byte -> validation bits per byte"""
    return metric.replace("/", " ").replace("_", " ")


def short(number: float) -> str:
    """1234567 -> 1.23 M; from 1e15 on powers of ten."""
    if abs(number) >= 1e15:
        return f"{number:.2e}".replace("e+", "e")
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}" if abs(number) < 999.5 * size else f"{number / size:.0f} {unit}"
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:.0f}"


def styles(study: Study) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each variant; the baseline has the colour of the text."""
    others = [variant for variant in study.variants if variant != study.baseline]
    styles = {
        variant: {
            "color": COLOURS[n % len(COLOURS)],
            "marker": MARKERS[1 + n % (len(MARKERS) - 1)],
            "linestyle": DASHES[n // len(COLOURS) % len(DASHES)],
        }
        for n, variant in enumerate(others)
    }
    return {study.baseline or "": {"color": INK, "marker": MARKERS[0], "linestyle": "-"}, **styles}


def figure_of(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    """An empty figure, its size in inches, with one or more axes: as `Figure.subplots` gives them."""
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


def frame(axes: Axes, values: list[float]) -> None:
    """Frames what is framed with a little room."""
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        room = 0.06 * (max(finite) - min(finite)) or 0.05 * abs(finite[0]) or 1.0
        axes.set_ylim(min(finite) - room, max(finite) + room)


def scale_tokens(axes: Axes, figure: Figure) -> None:
    """Large numbers with K, M, B and T on the horizontal axis; the legend beside the axes."""
    axes.xaxis.set_major_formatter(lambda value, _: short(value).replace(" ", ""))
    legend(axes)


def legend(axes: Axes) -> None:
    """Names lines beside the axes, if there are several."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, labelcolor=INK
        )


def file_name(metric: str) -> str:
    """validation/total_variation -> validation-total-variation"""
    return re.sub(r"[^A-Za-z0-9]+", "-", metric)


def drawing(figure: Figure, name: str, caption: str, png: bool = False) -> Drawing:
    """The figure as SVG: text stays text, the same figure gives the same file, no two share an id; as PNG if wanted."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
        image = io.BytesIO()
        if png:
            figure.set_layout_engine("none")  # as it is laid out now
            figure.savefig(image, format="png", dpi=150)
    svg = buffer.getvalue()
    # names of groups, which nothing refers to, would be there twice in a page of several drawings
    svg = re.sub(r'<g id="[\w.]+_\d+"', "<g", svg)
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    end = svg.index(">", svg.index("<svg")) + 1
    return Drawing(svg[:end] + GROUND + svg[end:], name, caption, image.getvalue())

"""Style the figures of reports, and write them as SVG."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from mm_lightning.experiments.page import GROUND, Drawing
from mm_lightning.style import INK, tame, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LABEL_WIDTH = 40
"""Characters of a line of a label: longer names are broken into several."""


def humanize(metric: str) -> str:
    """Return the name of a metric in words: validation/bits_per_byte -> validation bits per byte."""
    return metric.replace("/", " ").replace("_", " ")


def si_format(number: float) -> str:
    """Return a number with an SI-like suffix: 1234567 -> 1.23 M; from 1e15 on a power of ten."""
    if abs(number) >= 1e15:
        return f"{number:.2e}".replace("e+", "e")
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}" if abs(number) < 999.5 * size else f"{number / size:.0f} {unit}"
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:.0f}"


def value_text(value: float) -> str:
    """Return a metric's value with :func:`decimals`, as in 2.4312."""
    return f"{value:.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Return the decimals of a number: five significant digits, at most four decimals."""
    size = abs(value)
    return 4 if size < 10 else 3 if size < 100 else 2 if size < 1000 else 1


def scale_places(axes: Axes, places: list[float]) -> None:
    """Put a tick at each place of a horizontal axis, which is logarithmic where they span more than 10 times."""
    if places[0] > 0 and places[-1] > 10 * places[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(places, [si_format(place).replace(" ", "") for place in places])


def scale_tokens(axes: Axes) -> None:
    """Format large numbers on the horizontal axis with K, M, B and T, and put the legend beside the axes."""
    axes.xaxis.set_major_formatter(lambda value, _: si_format(value).replace(" ", ""))
    legend(axes)


def legend(axes: Axes) -> None:
    """Put a legend beside the axes, if there are several lines."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(
            handles,
            [wrapped(label, LABEL_WIDTH) for label in labels],
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            frameon=False,
            fontsize=9,
            labelcolor=INK,
        )


def file_name(metric: str) -> str:
    """Return the name of a metric as a file name: validation/total_variation -> validation-total-variation."""
    return re.sub(r"[^A-Za-z0-9]+", "-", metric)


def enlarge(figure: Figure) -> None:
    """Make a figure as large as its labels need: none is cut off at its edges."""
    for _ in range(4):  # what is laid out anew may need a little more
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        more = [
            max(0.0, -low) + max(0.0, high - size)
            for low, high, size in ((box.x0, box.x1, width), (box.y0, box.y1, height))
        ]
        if max(more) < 0.01:
            break
        figure.set_size_inches(width + more[0], height + more[1])
    figure.set_layout_engine("none")  # as it is laid out now


def drawing(figure: Figure, name: str, caption: str, png: bool = False) -> Drawing:
    """Return the figure as SVG with text as text, reproducible and without ids that two figures share; PNG if asked."""
    from matplotlib import rc_context

    tame(figure)
    enlarge(figure)
    buffer = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
        image = io.BytesIO()
        if png:
            figure.savefig(image, format="png", dpi=150)
    svg = buffer.getvalue()
    # ids of groups, which nothing refers to, would be duplicates in a page of several drawings
    svg = re.sub(r'<g id="[\w.]+_\d+"', "<g", svg)
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    end = svg.index(">", svg.index("<svg")) + 1
    return Drawing(svg[:end] + GROUND + svg[end:], name, caption, image.getvalue(), figure)

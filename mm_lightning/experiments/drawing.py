"""Style the figures of reports, and write them as SVG."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from mm_lightning.experiments.page import GROUND, Drawing
from mm_lightning.experiments.study import Study
from mm_lightning.style import COLORS, INK, MARKERS, tame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":", "-.")


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


def styles(study: Study) -> dict[str, dict[str, Any]]:
    """Return color, marker and dashes of each variant; the baseline has the color of the text."""
    others = [variant for variant in study.variants if variant != study.baseline]
    styles = {
        variant: {
            "color": COLORS[n % len(COLORS)],
            "marker": MARKERS[1 + n % (len(MARKERS) - 1)],
            "linestyle": DASHES[n // len(COLORS) % len(DASHES)],
        }
        for n, variant in enumerate(others)
    }
    return {study.baseline or "": {"color": INK, "marker": MARKERS[0], "linestyle": "-"}, **styles}


def scale_tokens(axes: Axes) -> None:
    """Format large numbers on the horizontal axis with K, M, B and T, and put the legend beside the axes."""
    axes.xaxis.set_major_formatter(lambda value, _: si_format(value).replace(" ", ""))
    legend(axes)


def legend(axes: Axes) -> None:
    """Put a legend beside the axes, if there are several lines."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        axes.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9, labelcolor=INK
        )


def file_name(metric: str) -> str:
    """Return the name of a metric as a file name: validation/total_variation -> validation-total-variation."""
    return re.sub(r"[^A-Za-z0-9]+", "-", metric)


def drawing(figure: Figure, name: str, caption: str, png: bool = False) -> Drawing:
    """Return the figure as SVG with text as text, reproducible and without ids that two figures share; PNG if asked."""
    from matplotlib import rc_context

    tame(figure)
    buffer = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
        image = io.BytesIO()
        if png:
            figure.set_layout_engine("none")  # keeps the layout of the SVG
            figure.savefig(image, format="png", dpi=150)
    svg = buffer.getvalue()
    # ids of groups, which nothing refers to, would be duplicates in a page of several drawings
    svg = re.sub(r'<g id="[\w.]+_\d+"', "<g", svg)
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    end = svg.index(">", svg.index("<svg")) + 1
    return Drawing(svg[:end] + GROUND + svg[end:], name, caption, image.getvalue(), figure)

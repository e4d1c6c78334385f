"""How the figures of reports look, and how they become SVG."""

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
    """validation/bits_per_byte -> validation bits per byte"""
    return metric.replace("/", " ").replace("_", " ")


def si_format(number: float) -> str:
    """1234567 -> 1.23 M; from 1e15 on powers of ten."""
    if abs(number) >= 1e15:
        return f"{number:.2e}".replace("e+", "e")
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}" if abs(number) < 999.5 * size else f"{number / size:.0f} {unit}"
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:.0f}"


def styles(study: Study) -> dict[str, dict[str, Any]]:
    """Color, marker and dashes of each variant; the baseline has the color of the text."""
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
    """Large numbers with K, M, B and T on the horizontal axis; the legend beside the axes."""
    axes.xaxis.set_major_formatter(lambda value, _: si_format(value).replace(" ", ""))
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

    tame(figure)
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
    return Drawing(svg[:end] + GROUND + svg[end:], name, caption, image.getvalue(), figure)

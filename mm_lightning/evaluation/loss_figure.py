"""The figure of loss against position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mm_lightning.evaluation.task import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# After Okabe and Ito: told apart by colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(curves: Mapping[str, Sequence[tuple[tuple[int, int], Row]]], trained: Mapping[str, int | None]) -> Figure:
    """A line for each network, its standard error as a band, and its training context as a vertical line.

    Args:
        curves: of each network, its bins of positions and their losses.
        trained: of each network, the tokens of a training sequence.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for n, (run, points) in enumerate(curves.items()):
        colour = COLOURS[n % len(COLOURS)]
        x = [math.sqrt((low + 1) * high) for (low, high), _ in points]
        y = [row.value for _, row in points]
        error = [row.stderr or 0.0 for _, row in points]
        axes.plot(x, y, color=colour, marker=MARKERS[n % len(MARKERS)], markersize=4, linewidth=1.5, label=run)
        axes.fill_between(
            x,
            [a - b for a, b in zip(y, error, strict=True)],
            [a + b for a, b in zip(y, error, strict=True)],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    for n, context in enumerate(sorted({context for context in trained.values() if context})):
        label = f"training context {context:,}"
        axes.axvline(context, color="#808890", linestyle=DASHES[n % len(DASHES)], linewidth=1, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
    axes.set_xlabel("position: tokens read before the predicted one")
    axes.set_ylabel("loss, nats a token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#808890", alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    return figure

"""Accuracy by length and depth of the answer, as heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm_lightning.evaluation.new_knowledge.long_text_task import TENTHS
from mm_lightning.style import INK, figure_of, tokens, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_ASKED = "#c8ccd0"


def heat_maps(maps: Mapping[str, Mapping[tuple[int, str], float]]) -> Figure:
    """Draw accuracy by length (across) and depth of the answer (down), a map for each network; gray is not asked."""
    import matplotlib
    import numpy as np
    from matplotlib.patches import Rectangle

    colors = matplotlib.colormaps["viridis"].resampled(40)  # few enough for a color bar that is drawn as paths
    cells = [key for values in maps.values() for key in values]
    lengths = sorted({length for length, _ in cells})
    depths = TENTHS  # also those that were never asked
    columns = min(len(maps), max(1, 9 // (2 + len(lengths) // 2)))
    lines = math.ceil(len(maps) / columns)
    figure, grid = figure_of(min(10.5, 1.6 + columns * (1.1 + 0.6 * max(len(lengths), 2))), 3.6 * lines, columns, lines)
    panels = list(np.atleast_1d(grid).flat)
    mesh: Any = None
    for axes, (title, accuracy) in zip(panels, maps.items(), strict=False):
        values = np.array([[100 * accuracy.get((length, depth), np.nan) for length in lengths] for depth in depths])
        axes.grid(False)
        # drawn, because the ground of axes is transparent in pages
        axes.add_patch(Rectangle((0, 0), len(lengths), len(depths), facecolor=NOT_ASKED, zorder=0))
        mesh = axes.pcolormesh(values, vmin=0, vmax=100, cmap=colors, edgecolors="none")
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

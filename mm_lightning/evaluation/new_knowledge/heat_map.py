"""The heat map of a task about long texts: length across, depth of the answer down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm_lightning.evaluation.task import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat_maps(title: str, results: Sequence[Result], depths: Sequence[str]) -> Figure:
    """One map a network, side by side; cells without a question are grey.

    Args:
        title: over all.
        results: of networks, with rows by length and depth.
        depths: names of the lines, from the text's beginning to its end.
    """
    import numpy as np
    from matplotlib.figure import Figure

    cells = [
        {(row.group["length"], row.group["depth"]): row.value for row in result.rows if "depth" in row.group}
        for result in results
    ]
    lengths = sorted({length for cell in cells for length, _ in cell})
    width = 1.6 + 0.7 * max(len(lengths), 2)
    figure = Figure(figsize=(width * len(results) + 1, 4.2), layout="constrained")
    figure.suptitle(title)
    drawn = None
    for axes, result, cell in zip(figure.subplots(1, len(results), squeeze=False)[0], results, cells, strict=True):
        values = np.array([[cell.get((length, depth), np.nan) for length in lengths] for depth in depths])
        axes.set_facecolor("lightgrey")
        drawn = axes.imshow(values.reshape(len(depths), len(lengths)), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (line, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                color = "black" if value > 0.6 else "white"
                axes.text(column, line, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(range(len(lengths)), [f"{n >> 10}k" if n % 1024 == 0 else str(n) for n in lengths])
        axes.set_yticks(range(len(depths)), depths)
        axes.set(title=result.run, xlabel="tokens", ylabel="depth of the answer")
    if drawn is not None:
        figure.colorbar(drawn, ax=figure.axes, label="accuracy")
    return figure

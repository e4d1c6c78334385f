"""What is drawn against positions: loss, and the weight with which memories are read."""

from __future__ import annotations

import math

from mm_lightning.evaluation.figures import Curve, loss_by_position, profile_axes
from mm_lightning.evaluation.task import Row
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import drawing
from mm_lightning.experiments.evaluated import plots, published
from mm_lightning.experiments.evaluated.estimates import Estimate, quantity
from mm_lightning.experiments.evaluated.grid import Grid
from mm_lightning.experiments.evaluated.groups import Group, Network, last_ones
from mm_lightning.experiments.evaluated.report_section import Form, Part, counts
from mm_lightning.style import figure_of, legend_height, side_legend, tokens


def _bounds(place: str | int) -> tuple[int, int]:
    """129-256 -> (129, 256)"""
    low, _, high = str(place).partition("-")
    return int(low), int(high or low)


def _curve(group: Group, network: Network, key: str, metric: str) -> dict[tuple[int, int], Estimate]:
    rows = [row for e in group.of(network) for row in e.rows if row.group.keys() == {key} and row.metric == metric]
    return {_bounds(row.group[key]): quantity(row) for row in rows}


def loss(group: Group, looks: plots.Looks) -> list[Part | None]:
    """Loss by context, and the curve by position."""
    by_context = {network: _curve(group, network, "context", "loss") for network in group.networks}
    contexts = sorted({n for found in by_context.values() for n in found})
    heads = ["network", "trained at", "sequences", *(tokens(high) for _, high in contexts)]
    grid = Grid(f"loss-by-position{group.suffix}", heads, 3)
    for network, found in by_context.items():
        trained = network.about.get("context_length")
        asked = counts([e.count for e in found.values()])
        grid.add(group.label(network), tokens(trained) if trained else "unknown", asked, *map(found.get, contexts))
    text = "Mean loss over a context, in nats a token, with 95% intervals (Student) over sequences. Lower is better."
    return [page.Text(text), grid, _loss_figure(group, looks)]


def _loss_figure(group: Group, looks: plots.Looks) -> page.Drawing | None:
    curves = {network: _curve(group, network, "position", "loss") for network in group.networks}
    curves = {network: curves[network] for network in last_ones(list(curves)) if curves[network]}
    if not curves:
        return None
    figure = loss_by_position(
        [
            Curve(
                group.label(network),
                looks[network],
                list(found),
                *plots.band(list(found.values())),
                network.about.get("context_length"),
            )
            for network, found in curves.items()
        ]
    )
    caption = "Loss by position, with 95% intervals; vertical: training contexts."
    return drawing(figure, f"loss-by-position{group.suffix}", caption, png=True)


def profile(group: Group, looks: plots.Looks) -> list[Part | None]:
    """The mean retrieval weight of queries over distances: a panel for each context and level of memory."""
    rows: dict[tuple[int, str], dict[Network, list[Row]]] = {}
    for network in group.networks:
        for row in (row for e in group.of(network) for row in e.rows if _of_profile(row)):
            rows.setdefault((row.group["context"], row.group["level"]), {}).setdefault(network, []).append(row)
    labels = [group.label(network) for network in group.networks]
    figure, _ = figure_of(3.2 + 3 * len(rows), 3.6 + legend_height(labels), len(rows))
    heights = [row.value for found in rows.values() for own in found.values() for row in own if row.value > 0]
    for axes, ((context, level), found) in zip(figure.axes, rows.items(), strict=True):
        tops = []
        for network, own in found.items():
            # a distance that no query may read has no place on the axis of logarithms
            own = sorted((row for row in own if row.value > 0), key=lambda row: _bounds(row.group["distance"]))
            x = [math.sqrt(low * high) for low, high in (_bounds(row.group["distance"]) for row in own)]
            plots.line(axes, x, [quantity(row) for row in own], group.label(network), looks[network])
            tops += x
        profile_axes(axes, max(tops))
        axes.set_ylim(0.7 * min(heights, default=0.7), 1.4 * max(heights, default=1.0))
        name = {"full": "all pairs (level full)"}.get(level, f"{level}-term")
        axes.set_title(f"{name}, {tokens(context)} tokens", fontsize=10)
        axes.label_outer()
    side_legend(figure, figure.axes)
    caption = "Mean weight with which the last tokens read a pair, by how far back it lies; over blocks and heads."
    shown = drawing(figure, f"retrieval-profile{group.suffix}", caption, png=True)
    return [page.Text(published.RETRIEVAL_PROFILE), shown]


def _of_profile(row: Row) -> bool:
    return row.metric == "weight" and row.group.keys() == {"context", "level", "distance"}


FORMS = (
    Form("Loss by position", lambda e: e.task == "loss_by_position", loss),
    Form("Retrieval profile (Figure 1)", lambda e: any(map(_of_profile, e.rows)), profile),
)

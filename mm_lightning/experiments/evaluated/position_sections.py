"""Sections of the loss by position, and of the weight with which memories are read by distance."""

from __future__ import annotations

import math
from typing import Any

from mm_lightning.evaluation.loss_by_position import RISE
from mm_lightning.evaluation.measurement import Row
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import drawing
from mm_lightning.experiments.evaluated import plots, published
from mm_lightning.experiments.evaluated.differences import paired
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import Estimate, estimate
from mm_lightning.experiments.evaluated.evaluations import Group, Network, last_ones
from mm_lightning.experiments.evaluated.report_section import Part, ReportSection, counts
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.style import (
    GREY,
    REFERENCES,
    figure_of,
    frame,
    legend_height,
    lengths_axis,
    profile_axes,
    side_legend,
    tokens,
)

BREAKS = 0.1
"""Nats above the loss at the training context from which on a network counts as broken."""


def _bounds(place: str | int) -> tuple[int, int]:
    """Return the ends of an interval: 129-256 -> (129, 256)."""
    low, _, high = str(place).partition("-")
    return int(low), int(high or low)


def _curve(group: Group, network: Network, key: str, metric: str) -> dict[tuple[int, int], Estimate]:
    rows = [row for e in group.of(network) for row in e.rows if row.group.keys() == {key} and row.metric == metric]
    return {_bounds(row.group[key]): estimate(row) for row in rows}


def loss(group: Group, looks: Looks) -> list[Part | None]:
    """Return the loss by context, and the curve by position."""
    by_context = {network: _curve(group, network, "context", "loss") for network in group.networks}
    contexts = sorted({n for losses in by_context.values() for n in losses})
    heads = ["network", "trained at", "sequences", *(tokens(high) for _, high in contexts)]
    table = EstimateTable(f"loss-by-position{group.suffix}", heads, 3)
    for network, losses in by_context.items():
        trained = network.about.get("context_length")
        asked = counts([e.count for e in losses.values()])
        table.add(group.label(network), tokens(trained) if trained else "unknown", asked, *map(losses.get, contexts))
    text = (
        "Mean loss over a context, in nats a token, with 95% intervals (Student) over sequences. Lower is better. A "
        "sequence is one document: the beginning of one that is as long as the longest context or, where there are not "
        "enough of them, neighboring shorter ones joined without anything between."
    )
    return [page.Text(text), table, _breaks(group), _loss_figure(group, looks), _difference_figure(group, looks)]


def _breaks(group: Group) -> EstimateTable:
    """Return a table of where networks break: the first positions whose loss is much above that up to the context."""
    heads = ["network", "sequences", "joined", "training context C", "loss from C/2 to C", f"first {BREAKS} nats above"]
    table = EstimateTable(f"loss-by-position-breaks{group.suffix}", heads)
    for network in group.networks:
        rows = [row for e in group.of(network) for row in e.rows]
        joined = [f"{row.value:.0%}" for row in rows if "sequences" in row.group]
        base = [row for row in rows if "training context" in row.group]
        ends = [_bounds(row.group["position"])[1] for row in rows if "position" in row.group]
        risen = [row for row in rows if row.metric == RISE and row.value > BREAKS]
        counted = counts([row.count for row in rows if "context" in row.group])
        line: list[Any] = [group.label(network), counted, joined[0] if joined else None]
        if not base or not ends:
            trained = network.about.get("context_length")
            table.add(*line, "longer" if trained else "unknown")
            continue
        where = f"not up to {max(ends):,}"
        if risen:
            where = f"{_bounds(risen[0].group['position'])[0]:,} (+{risen[0].value:.2f})"
        table.add(*line, f"{base[0].group['training context']:,}", estimate(base[0]), where)
    return table


def _loss_figure(group: Group, looks: Looks) -> page.Drawing | None:
    curves = {network: _curve(group, network, "position", "loss") for network in group.networks}
    curves = {network: curves[network] for network in last_ones(list(curves)) if curves[network]}
    if not curves:
        return None
    figure, axes = figure_of(8.4, 4.2 + legend_height([group.label(network) for network in curves]))
    ends: list[float] = []
    for network, curve in curves.items():
        values = list(curve.values())
        plots.line(axes, [math.sqrt(low * high) for low, high in curve], values, group.label(network), looks[network])
        ends += [end for edges in plots.band(values)[1:] for end in edges]
    contexts = {c for network in curves if (c := network.about.get("context_length"))}
    for n, context in enumerate(sorted(contexts)):
        style = REFERENCES[n % len(REFERENCES)]
        axes.axvline(context, color=GREY, linestyle=style, linewidth=1, label=f"trained at {tokens(context)}")
    frame(axes, ends)
    top = max(high for curve in curves.values() for _, high in curve)
    places = [2**n for n in range(3, 40) if 2**n <= top]
    places = places[1 - len(places) % 2 :: 2] if len(places) > 12 else places
    lengths_axis(axes, places, "position: tokens read before the predicted one")
    axes.set_ylabel("loss, nats a token")
    side_legend(figure, [axes])
    caption = "Loss by position, with 95% intervals" + ("; vertical: training contexts." if contexts else ".")
    return drawing(figure, f"loss_by_position{group.suffix}", caption, png=True)


def _difference_figure(group: Group, looks: Looks) -> page.Drawing | None:
    """Draw how much the loss of each network is above that of the first, on the same sequences."""
    curves: dict[Network, dict[tuple[int, int], Estimate]] = {}
    first: Network | None = None
    for task in group.tasks:
        for first, other, row in paired(group, task):  # noqa: B007
            if row.group.keys() == {"position"} and row.metric == "loss":
                curves.setdefault(other, {})[_bounds(row.group["position"])] = estimate(row, signed=True)
    if first is None or not curves:
        return None
    figure, axes = figure_of(8.4, 3.6 + legend_height([group.label(network) for network in curves]))
    ends = [0.0]
    for network, points in curves.items():
        curve = dict(sorted(points.items()))
        values = list(curve.values())
        plots.line(axes, [math.sqrt(low * high) for low, high in curve], values, group.label(network), looks[network])
        ends += [e.value for e in values]  # the intervals of two documents would leave nothing to see
    axes.axhline(0, color=GREY, linewidth=1, label=group.label(first))
    frame(axes, ends)
    top = max(high for curve in curves.values() for _, high in curve)
    lengths_axis(axes, [4**n for n in range(1, 20) if 4**n <= top], "position: tokens read before the predicted one")
    axes.set_ylabel("difference of loss, nats a token")
    side_legend(figure, [axes])
    caption = f"Loss above that of {group.label(first)} on the same sequences, with paired 95% intervals."
    return drawing(figure, f"loss_by_position-differences{group.suffix}", caption, png=True)


def profile(group: Group, looks: Looks) -> list[Part | None]:
    """Draw the mean retrieval weight of queries over distances: a panel for each context and level of memory."""
    rows: dict[tuple[int, str], dict[Network, list[Row]]] = {}
    for network in group.networks:
        for row in (row for e in group.of(network) for row in e.rows if _of_profile(row)):
            rows.setdefault((row.group["context"], row.group["level"]), {}).setdefault(network, []).append(row)
    labels = [group.label(network) for network in group.networks]
    figure, _ = figure_of(3.2 + 3 * len(rows), 3.6 + legend_height(labels), len(rows))
    heights = [row.value for panel in rows.values() for some in panel.values() for row in some]
    for axes, ((context, level), panel) in zip(figure.axes, rows.items(), strict=True):
        tops = []
        for network, some in panel.items():
            some = sorted(some, key=lambda row: _bounds(row.group["distance"]))
            x = [math.sqrt(low * high) for low, high in (_bounds(row.group["distance"]) for row in some)]
            plots.line(axes, x, [estimate(row) for row in some], group.label(network), looks[network])
            tops += x
        profile_axes(axes, max(tops))
        axes.set_ylim(0.7 * min(heights), 1.4 * max(heights))
        name = {"full": "all pairs (level full)"}.get(level, f"{level}-term")
        axes.set_title(f"{name}, {tokens(context)} tokens", fontsize=10)
        axes.label_outer()
    side_legend(figure, figure.axes)
    caption = "Mean weight with which the last tokens read a pair, by how far back it lies; over blocks and heads."
    shown = drawing(figure, f"retrieval-profile{group.suffix}", caption, png=True)
    return [page.Text(published.RETRIEVAL_PROFILE), shown]


def _of_profile(row: Row) -> bool:
    """Return whether a row is a weight by distance; one that no query may read has no place on axes of logarithms."""
    return row.metric == "weight" and row.group.keys() == {"context", "level", "distance"} and row.value > 0


SECTIONS = (
    ReportSection("Loss by position", lambda e: e.task == "loss_by_position", loss),
    ReportSection("Retrieval profile (Figure 1)", lambda e: any(map(_of_profile, e.rows)), profile),
)

"""Single numbers of networks against size, training and step of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_lightning.experiments.drawing import drawing, si_format
from mm_lightning.experiments.evaluated import plots
from mm_lightning.experiments.evaluated.estimates import Estimate
from mm_lightning.experiments.evaluated.evaluations import Network, last_ones
from mm_lightning.experiments.evaluated.published import PublishedNetwork
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.experiments.page import Drawing
from mm_lightning.style import COLORS, GREY, INK, MARKERS, figure_of, legend_height, side_legend, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Horizontal axes: name in results.json, label, name of the published number, and the number that is equal along a line.
AXES = (
    ("training_tokens", "training tokens", "tokens", "parameters"),
    ("forward_flops_per_token", "forward FLOPs per token at context 256", "forward_flops_per_token", "training_tokens"),
    ("parameters", "parameters", "parameters", "training_tokens"),
)
ALIKE = 1.05
"""Factor by which numbers may differ that count as equal along a line."""


@dataclass(frozen=True)
class Measure:
    """A number that a section computes for each network.

    Attributes:
        name: in words, e.g. `mean of qa_1 and qa_2 at 4k`.
        values: of our networks.
        published: of the paper's, in percent.
    """

    name: str
    values: dict[Network, Estimate]
    published: list[tuple[PublishedNetwork, float]] = field(default_factory=list)


def scaling(name: str, what: str, measures: Sequence[Measure], looks: Looks) -> Drawing | None:
    """Draw measures against training tokens, FLOPs per token and parameters, where several of our networks differ."""
    networks = last_ones(list(dict.fromkeys(network for measure in measures for network in measure.values)))
    measures = [replace(m, values={n: e for n, e in m.values.items() if n in networks}) for m in measures]
    measures = [measure for measure in measures if measure.values]
    chosen = []
    for axis in AXES:
        places = {network.number(axis[0]) for measure in measures for network in measure.values} - {None}
        if len(places) > 1:
            chosen.append(axis)
    if not chosen:
        return None
    labels = [network.name for network in networks] + [measure.name for measure in measures]
    height = 3.6 + legend_height(labels)
    figure, grid = figure_of(3.4 + 2.6 * len(chosen), height, len(chosen))
    panels = [grid] if len(chosen) == 1 else list(grid)
    tops: list[float] = []
    lines = False
    for axes, (ours, label, theirs, alike) in zip(panels, chosen, strict=True):
        for number, measure in enumerate(measures):
            heights, joined = _panel(axes, measure, MARKERS[number % len(MARKERS)], ours, theirs, alike, looks)
            tops, lines = tops + heights, lines or joined
        _log_axis(axes)
        axes.xaxis.set_major_formatter(lambda value, _: si_format(value).replace(" ", ""))
        axes.set_xlabel(label)
    for axes, (_, _, theirs, _) in zip(panels, chosen, strict=True):
        plots.percent_axis(axes, tops)
        axes.label_outer()
        _names(axes, measures[0], theirs)
    _keys(panels[0], networks, measures, looks)
    side_legend(figure, panels)
    caption = f"{what} against what the networks are. Bars: 95% intervals."
    caption += " Lines join networks that differ in this only." if lines else ""
    if any(measure.published for measure in measures):
        caption += " Hollow and gray: published."
    return drawing(figure, name, caption, png=True)


def _panel(
    axes: Axes, measure: Measure, marker: str, ours: str, theirs: str, alike: str, looks: Looks
) -> tuple[list[float], bool]:
    """Draw one measure in one panel; return the heights to frame, and whether a line joins networks."""
    points = [(network.number(ours), network, e) for network, e in measure.values.items()]
    known = sorted(((x, network, e) for x, network, e in points if x), key=lambda point: point[0])
    lines: list[list[tuple[float, Network, Estimate]]] = []
    for point in known:
        for line in lines:
            if _joined(line[-1][1], point[1], alike):
                line.append(point)
                break
        else:
            lines.append([point])
    for line in lines:
        axes.plot([p[0] for p in line], [p[2].scale * p[2].value for p in line], color=GREY, linewidth=0.8, zorder=1)
    for x, network, e in known:
        y = e.scale * e.value
        bars = [[y - e.scale * e.low], [e.scale * e.high - y]] if e.low is not None and e.high is not None else None
        color = looks[network]["color"]
        face = color if network.long_term else "none"
        axes.errorbar(
            x, y, bars, color=color, marker=marker, markerfacecolor=face, capsize=2, linewidth=1, markersize=5
        )
    tops = [e.scale * (e.high or e.value) for _, _, e in known]
    for other, value in measure.published:
        x = getattr(other, theirs)
        if x is not None and other.long_term:
            axes.plot([x], [value], color=GREY, marker=marker, markerfacecolor="none", linestyle="", markersize=6)
            tops.append(value)
    return tops, any(len(line) > 1 for line in lines)


def _log_axis(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with room at its ends and a few numbers on it, however short it is."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.margins(x=0.15)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 20 else (1,), numticks=7))
    axes.minorticks_off()


def _names(axes: Axes, measure: Measure, theirs: str) -> None:
    """Write the names of the published networks left of the points of one measure, apart from each other."""
    known = [(v, x, n.name.split(" (")[0]) for n, v in measure.published if n.long_term and (x := getattr(n, theirs))]
    gap, below = 0.045 * axes.get_ylim()[1], float("-inf")
    for value, x, name in sorted(known):
        below = max(value, below + gap)
        look: dict[str, Any] = {"fontsize": 7, "color": GREY, "ha": "right", "va": "center"}
        axes.annotate(name, (x, below), (-7, 0), textcoords="offset points", **look)


def _joined(one: Network, other: Network, alike: str) -> bool:
    """Return whether two networks differ in nothing that counts but the horizontal axis."""
    a, b = one.number(alike), other.number(alike)
    alike_otherwise = one.kind == other.kind and one.number("context_length") == other.number("context_length")
    return alike_otherwise and a is not None and b is not None and 1 / ALIKE < a / b < ALIKE


def _keys(axes: Axes, networks: Sequence[Network], measures: Sequence[Measure], looks: Looks) -> None:
    """Add entries to the legend: colors are networks, markers are measures."""
    for network in networks:
        color = looks[network]["color"]
        face = color if network.long_term else "none"
        axes.plot([], [], "s", color=color, markerfacecolor=face, label=network.name, markersize=7)
    for number, measure in enumerate(measures):
        axes.plot([], [], MARKERS[number % len(MARKERS)], color=INK, linestyle="", label=measure.name, markersize=5)


def by_step(
    name: str, what: str, measures: Sequence[Measure], networks: Sequence[Network], note: str
) -> Drawing | None:
    """Draw measures against steps of training, where several checkpoints of a run were asked."""
    runs: dict[tuple[Any, ...], list[Network]] = {}
    for network in networks:
        if network.about.get("run_folder") and network.number("step") is not None:
            runs.setdefault(network.run, []).append(network)
    several = {key: same for key, same in runs.items() if len({network.number("step") for network in same}) > 1}
    if not several:
        return None
    titles = {
        key: Path(key[0]).as_posix() + ("" if checkpoints[0].long_term else ", long-term memory removed")
        for key, checkpoints in several.items()
    }
    columns = min(3, len(several))
    lines = -(-len(several) // columns)
    height = 3.5 * lines + legend_height([measure.name for measure in measures])
    figure, _ = figure_of(min(10.5, 4.4 + 3 * columns), height, columns, lines)
    panels = figure.axes[:]
    tops: list[float] = []
    for axes, (key, checkpoints) in zip(panels, several.items(), strict=False):
        points = _with_base(checkpoints, networks)
        for number, measure in enumerate(measures):
            steps = [(step, measure.values[n]) for step, n in points if n in measure.values]
            if steps:
                look = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
                plots.line(axes, [step for step, _ in steps], [e for _, e in steps], measure.name, look)
                tops += [e.scale * (e.high or e.value) for _, e in steps]
        places = sorted({step for step, _ in points})
        if places[-1] > 8 * max(places[1], 1):
            axes.set_xscale("symlog", linthresh=max(1, min(place for place in places if place)))
            axes.minorticks_off()
        axes.set_xticks(places, [si_format(place).replace(" ", "") for place in places])
        axes.set_title(wrapped(titles[key], 40), fontsize=9)
        axes.set_xlabel("optimization steps")
    for axes in panels[len(several) :]:
        axes.set_visible(False)
    for axes in panels:
        plots.percent_axis(axes, tops)
        axes.label_outer()
    side_legend(figure, panels)
    return drawing(figure, name, f"{what} by checkpoint, 95% intervals. {note}".strip(), png=True)


def _with_base(checkpoints: Sequence[Network], networks: Sequence[Network]) -> list[tuple[float, Network]]:
    """Return checkpoints of a run by step; at step 0 the one that it was fine-tuned from, if that was asked."""
    points = [(network.number("step") or 0, network) for network in checkpoints]
    base, kind = checkpoints[0].about.get("fine_tuned_from"), checkpoints[0].kind
    points += [(0, n) for n in networks if base and n.about.get("checkpoint") == base and n.kind == kind]
    return sorted(points, key=lambda point: point[0])

"""In-context learning: accuracy by shots, of every prompt strategy and of the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import linear_regression

import numpy as np

from mm_lightning.evaluation.in_context.accuracy import BEST, LONGEST
from mm_lightning.evaluation.measurement import Row
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import drawing
from mm_lightning.experiments.evaluated import plots, published
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import Estimate, estimate
from mm_lightning.experiments.evaluated.evaluations import Evaluation, Group, Network, last_ones
from mm_lightning.experiments.evaluated.report_section import Part, ReportSection, counts
from mm_lightning.experiments.evaluated.scaling_plots import Measure, by_step, scaling
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.style import GREY, figure_of, legend_height, side_legend

WAYS = {
    "greedy": "exact match of greedy decoding",
    "likelihood": "most likely label",
    "likelihood_by_length": "most likely label by token",
}
CLASSES = {"banking77": 77, "goemotions": 28, "tacred": 41, "semeval2010_task8": 18, "redocred": 41}
"""Classes of the data sets that come with `mm evaluate`: one in so many is right by chance."""

Key = tuple[str, str, int, str]
"""Score, kind of labels, shots and strategy."""

Accuracies = Mapping[Network, Mapping[Key, Estimate]]
"""Micro accuracies by network."""


def takes(evaluation: Evaluation) -> bool:
    """Return whether an evaluation has rows by shots and strategy."""
    return any({"shots", "strategy"} <= row.group.keys() for row in evaluation.rows)


def micro_accuracies(evaluation: Evaluation) -> dict[Key, Estimate]:
    """Return micro accuracies; the best strategy at each number of shots is chosen among those that are there."""
    seeds = evaluation.settings.get("demonstration_seeds") or 1
    by_key: dict[Key, Estimate] = {}
    for row in evaluation.rows:
        if is_micro_accuracy(row):
            labels, shots = row.group.get("labels", "semantic"), row.group["shots"]
            by_key[row.metric, labels, shots, row.group["strategy"]] = estimate(row, seeds)
    for way, labels, shots in dict.fromkeys(key[:3] for key in list(by_key)):
        same = [e for key, e in by_key.items() if key[:3] == (way, labels, shots)]
        by_key[way, labels, shots, BEST] = max(same, key=lambda e: e.value)
    return by_key


def is_micro_accuracy(row: Row) -> bool:
    """Return whether a row is the micro accuracy of a strategy."""
    return {"shots", "strategy"} <= row.group.keys() and row.group["strategy"] != BEST and row.metric in WAYS


def parts(group: Group, looks: Looks) -> list[Part | None]:
    """Return a subsection for each data set."""
    text = (
        "A shot is one example of every class. Percent, with 95% score intervals that cover other questions and other "
        "sets of demonstrations. The best strategy is chosen for each number of shots on the questions that it is "
        "scored on, as in the paper: it is a little too good, and its interval does not know of the choice. "
        + published.IN_CONTEXT
    )
    shown: list[Part | None] = [page.Text(text)]
    for task in group.tasks:
        values = {e.network: micro_accuracies(e) for e in group.evaluations if e.task == task}
        shown += [page.Heading(task, 3), *_best(task, group, values), *_prompts(task, group)]
        shown += [_figure(task, group, values, looks)]
        shown += [*_against(task, group, values, looks), *_strategies(task, group, values)]
    return shown


def _axis(values: Accuracies, place: int) -> list:
    return list(dict.fromkeys(key[place] for by_key in values.values() for key in by_key))


def _best(task: str, group: Group, values: Accuracies) -> list[Part | None]:
    shots = sorted(_axis(values, 2))
    heads = ["labels", "scored by", "network", "answers", *map(_shots, shots)]
    table = EstimateTable(f"{task}{group.suffix}", heads, 4)
    for labels in _axis(values, 1):
        for way in (way for way in WAYS if way in _axis(values, 0)):
            for network, by_key in values.items():
                cells = [by_key.get((way, labels, n, BEST)) for n in shots]
                asked = counts([e.count for e in cells if e is not None])
                if asked:
                    table.add(labels, WAYS[way], group.label(network), asked, *cells)
    return [page.Text("The best of the prompt strategies at each number of shots."), table]


def _prompts(task: str, group: Group) -> list[Part | None]:
    """Return a table of the tokens of the longest prompts beside the training context."""
    longest: dict[Network, dict[int, int]] = {}
    for e in (e for e in group.evaluations if e.task == task):
        for row in e.rows:
            if row.metric == LONGEST:
                by_shots = longest.setdefault(e.network, {})
                by_shots[row.group["shots"]] = max(by_shots.get(row.group["shots"], 0), round(row.value))
    if not longest:
        return []
    shots = sorted({n for by_shots in longest.values() for n in by_shots})
    table = EstimateTable(f"{task}-prompts{group.suffix}", ["network", "trained at", *map(_shots, shots)], 2)
    for network, by_shots in longest.items():
        trained = network.about.get("context_length")
        cells = [None if n not in by_shots else f"{by_shots[n]:,}" for n in shots]
        table.add(group.label(network), f"{trained:,}" if trained else "unknown", *cells)
    return [page.Text("Tokens of the longest prompt, beside those of a training sequence."), table]


def _shots(number: int) -> str:
    return f"{number} shots" if number > 1 else "1 shot"


def _strategies(task: str, group: Group, values: Accuracies) -> list[Part | None]:
    names = [name for name in _axis(values, 3) if name != BEST]
    table = EstimateTable(f"{task}-strategies{group.suffix}", ["labels", "scored by", "network", "shots", *names], 4)
    for labels in _axis(values, 1):
        for way in (way for way in ("greedy", "likelihood") if way in _axis(values, 0)):
            for network, by_key in values.items():
                for n in sorted({key[2] for key in by_key if key[:2] == (way, labels)}):
                    table.add(
                        labels, WAYS[way], group.label(network), n, *(by_key.get((way, labels, n, s)) for s in names)
                    )
    return [page.Text("All prompt strategies: what separates the parts, and whether examples are shuffled."), table]


def _figure(task: str, group: Group, values: Accuracies, looks: Looks) -> page.Drawing | None:
    """Draw a panel for each kind of labels and each of two ways to score."""
    kinds = _axis(values, 1)
    ways = [way for way in ("greedy", "likelihood") if way in _axis(values, 0)]
    if not kinds or not ways:
        return None
    values = {network: values[network] for network in last_ones(list(values))}
    height = 0.4 + 3.2 * len(ways) + legend_height([group.label(network) for network in values])
    figure, grid = figure_of(4.2 + 3 * len(kinds), height, len(kinds), len(ways))
    panels = np.reshape(grid, (len(ways), len(kinds)))
    tops = []
    for across, labels in enumerate(kinds):
        for down, way in enumerate(ways):
            tops += _panel(panels[down, across], task, group, values, looks, way, labels)
            panels[down, across].set_title(f"{labels} labels\n{WAYS[way]}", fontsize=9)
    for axes in panels.flat:
        plots.percent_axis(axes, tops)
        axes.label_outer()
    side_legend(figure, figure.axes)
    strategies = [name for name in _axis(values, 3) if name != BEST]
    caption = (
        f"{task}: accuracy by shots. Small dots: the prompt strategies ({', '.join(strategies)}); line: the best of "
        "them, with its 95% interval"
    )
    fitted = any(
        len({key[2] for key in by_key if key[:2] == (way, labels)}) > 2
        for by_key in values.values()
        for way in ways
        for labels in kinds
    )
    caption += "; dashed: its straight line over the logarithm of shots." if fitted else "."
    return drawing(figure, f"{task}{group.suffix}", caption, png=True)


def _panel(
    axes,
    task: str,
    group: Group,
    values: Accuracies,
    looks: Looks,
    way: str,
    labels: str,
) -> list[float]:
    """Draw one panel; return the heights to frame."""
    tops, places = [], set()
    for number, (network, by_key) in enumerate(values.items()):
        best = {key[2]: e for key, e in sorted(by_key.items()) if key[:2] == (way, labels) and key[3] == BEST}
        dots = [(key[2], e.value) for key, e in by_key.items() if key[:2] == (way, labels) and key[3] != BEST]
        if not best:
            continue
        shift = 1 + 0.02 * (number - (len(values) - 1) / 2)  # so that dots of networks do not hide each other
        look = looks[network]
        axes.plot(
            [n * shift for n, _ in dots],
            [100 * value for _, value in dots],
            color=look["color"],
            marker=look["marker"],
            linestyle="",
            markersize=4.5,
            alpha=0.5,
            markeredgewidth=0,
        )
        plots.line(axes, list(best), list(best.values()), group.label(network), look)
        if len(best) > 2:
            fitted = fit(list(best), [100 * e.value for e in best.values()])
            axes.plot(list(best), fitted, color=look["color"], linestyle="--", linewidth=0.9, zorder=1)
        places |= set(best)
        tops += [100 * (e.high or e.value) for e in best.values()]
    if task in CLASSES and places:
        chance = 100 / CLASSES[task]
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=":", label=f"chance, 1 in {CLASSES[task]}", zorder=1)
    axes.set_xscale("log", base=2)
    ticks = sorted(places)
    crowded = [n for i, n in enumerate(ticks) if i == 0 or n == ticks[-1] or n & (n - 1) == 0]
    axes.set_xticks(ticks if len(ticks) < 8 else crowded, [str(n) for n in (ticks if len(ticks) < 8 else crowded)])
    axes.minorticks_off()
    axes.set_xlabel("shots")
    return tops


def fit(shots: Sequence[int], accuracy: Sequence[float]) -> list[float]:
    """Return the least-squares line of accuracy over the logarithm of shots, at each of them."""
    slope, offset = linear_regression([math.log2(n) for n in shots], accuracy)
    return [offset + slope * math.log2(n) for n in shots]


def _against(task: str, group: Group, values: Accuracies, looks: Looks) -> list[Part | None]:
    """Draw the best at the most shots that all networks have, against training, size and steps."""
    common = set.intersection(*({key[2] for key in by_key} for by_key in values.values()))
    if not common:
        return []
    n, way = max(common), "greedy" if "greedy" in _axis(values, 0) else "likelihood"
    measures = []
    for labels in _axis(values, 1):
        key = way, labels, n, BEST
        measures.append(
            Measure(f"{labels}, {n} shots", {net: by_key[key] for net, by_key in values.items() if key in by_key})
        )
    what = f"{task}, {WAYS[way]}"
    return [
        scaling(f"{task}-scaling{group.suffix}", what, measures, looks),
        by_step(f"{task}-steps{group.suffix}", what, measures, group.networks, ""),
    ]


SECTION = ReportSection("In-context learning: classification by shots", takes, parts)

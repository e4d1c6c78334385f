"""Persistent knowledge: the 19 benchmarks, with and without long-term memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mm_lightning.evaluation.persistent.benchmark_task import CUT
from mm_lightning.evaluation.persistent.definitions import DEFINITIONS, VARIANTS
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import drawing
from mm_lightning.experiments.evaluated import plots, published
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import Estimate, estimate, mean_of_shares
from mm_lightning.experiments.evaluated.evaluations import Group, Network
from mm_lightning.experiments.evaluated.published import MEAN_6, MEAN_13, MEAN_19, NETWORKS, OTHER_6, PERSISTENT_13
from mm_lightning.experiments.evaluated.report_section import Part, ReportSection
from mm_lightning.experiments.evaluated.scaling_plots import Measure, scaling
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.style import GREY, INK, MARKERS, figure_of, legend_height, side_legend

# By the paper's name of a benchmark, the task that stands for it and the one score that counts.
BENCHMARKS: dict[str, tuple[str, str]] = {
    definition.label: (task, definition.score) for task, definition in DEFINITIONS.items() if definition.label
}
# Other readings of the paper's names: shown, and in no mean.
OTHERS: dict[str, tuple[str, str]] = {task: (task, DEFINITIONS[task].score) for task in VARIANTS}
TASKS = {task for task, _ in (BENCHMARKS | OTHERS).values()}


def scores(group: Group, network: Network) -> dict[str, Estimate]:
    """Return a network's score by benchmark."""
    by_name: dict[str, Estimate] = {}
    for name, (task, metric) in (BENCHMARKS | OTHERS).items():
        rows = [row for evaluation in group.of(network, task) for row in evaluation.rows if not row.group]
        for row in rows:
            if row.metric.removesuffix(",none") == metric:  # the filter may be left out
                by_name.setdefault(name, estimate(row))
    return by_name


def _asked(group: Group, name: str) -> str:
    """Return task, score and shots of a benchmark: arc_easy acc_norm, 0-shot."""
    task, metric = (BENCHMARKS | OTHERS)[name]
    shots = dict.fromkeys(e.settings.get("fewshot") for e in group.evaluations if e.task == task)
    return ", ".join([f"{task} {metric}", *(f"{n}-shot" for n in shots if n is not None)])


def _cut(group: Group) -> list[str]:
    """Return which prompts did not fit, in sentences."""
    rows = [(e, row) for e in group.evaluations for row in e.rows if row.metric == CUT and not row.group and row.value]
    return [f"{e.task} of {e.label}: the beginning of {row.value:.0%} of the prompts was cut off." for e, row in rows]


def parts(group: Group, looks: Looks) -> list[Part | None]:
    """Return the table with its means, and the figures."""
    networks = group.networks
    ours = {network: scores(group, network) for network in networks}
    heads = ["benchmark", *map(group.label, networks), *(n.label for n in NETWORKS), "our task and score"]
    table = EstimateTable(f"persistent{group.suffix}", heads)
    table.published_columns = {1 + len(networks) + n for n in range(len(NETWORKS))}
    empty = (None,) * len(NETWORKS)
    means = {}
    blocks = ((PERSISTENT_13, MEAN_13, "mean of these 13"), (OTHER_6, MEAN_6, "mean of these 6"))
    for names, printed, title in blocks:
        for name in names:
            table.add(name, *(ours[network].get(name) for network in networks), *names[name], _asked(group, name))
        means[title] = {network: _mean(ours[network], names) for network in networks}
        table.add(title, *means[title].values(), *printed, "")
    means["mean of 19"] = {network: _mean(ours[network], BENCHMARKS) for network in networks}
    table.add("mean of 19", *means["mean of 19"].values(), *MEAN_19, "")
    for name in OTHERS:
        if any(name in by_name for by_name in ours.values()):
            cells = (ours[network].get(name) for network in networks)
            table.add(f"{name} (in no mean)", *cells, *empty, _asked(group, name))
    measures = [
        Measure(title, {n: e for n, e in values.items() if e is not None and not e.note}, _published(title))
        for title, values in means.items()
    ]
    text = (
        "Percent, with 95% score intervals over questions. Means are unweighted; one that lacks benchmarks says how "
        "many it has, and does not compare with the others. The paper does not give its shots and prompts: ours are "
        "those of the named tasks of lm-evaluation-harness. Of tasks with several scores, the one named stands here."
    )
    cut = _cut(group)
    return [
        page.Text(text),
        table,
        page.Points(cut) if cut else None,
        _dots(f"persistent{group.suffix}", group, ours, looks),
        scaling(f"persistent-scaling{group.suffix}", "Means of benchmarks", measures, looks),
    ]


def _mean(by_name: Mapping[str, Estimate], names: Mapping[str, object]) -> Estimate | None:
    chosen = [by_name[name] for name in names if name in by_name]
    return mean_of_shares(chosen, len(names)) if chosen else None


def _published(title: str) -> list[tuple[published.PublishedNetwork, float]]:
    printed = {"mean of these 13": MEAN_13, "mean of these 6": MEAN_6, "mean of 19": MEAN_19}[title]
    return [(network, value) for network, value in zip(NETWORKS, printed, strict=True) if value is not None]


def _dots(name: str, group: Group, ours: Mapping[Network, Mapping[str, Estimate]], looks: Looks) -> page.Drawing | None:
    """Draw a line for each benchmark, a dot for each network, the paper's large networks hollow."""
    lines = [benchmark for benchmark in BENCHMARKS if any(benchmark in by_name for by_name in ours.values())]
    if not lines:
        return None
    labels = [group.label(network) for network in ours] + [network.label for network in NETWORKS[2:]]
    figure, axes = figure_of(8.4, 1.2 + 0.3 * len(lines) + legend_height(labels))
    step = 0.5 / max(len(ours), 2)
    for number, (network, by_name) in enumerate(ours.items()):
        dots = [(place, by_name[line]) for place, line in enumerate(lines) if line in by_name]
        _row_of_dots(axes, dots, (number - (len(ours) - 1) / 2) * step, looks[network], group.label(network), network)
    for number, theirs in enumerate(NETWORKS[2:]):
        values = [{**PERSISTENT_13, **OTHER_6}[line][2 + number] for line in lines]
        look = {"color": GREY, "marker": MARKERS[number], "markerfacecolor": "none", "linestyle": ""}
        axes.plot(values, range(len(lines)), label=theirs.label, markersize=6, **look)
    edge = sum(line in PERSISTENT_13 for line in lines) - 0.5
    both = 0 < edge < len(lines) - 1
    if both:
        axes.axhline(edge, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("score, %")
    side_legend(figure, [axes])
    caption = "The benchmarks with 95% intervals"
    caption += "; above the line those of the 13 that measure persistent knowledge. " if both else ". "
    return drawing(figure, name, caption + "Hollow and gray: published, large networks.", png=True)


def _row_of_dots(
    axes, dots: Sequence[tuple[int, Estimate]], shift: float, look: Mapping, label: str, network: Network
) -> None:
    x, low, high = plots.band([e for _, e in dots])
    widths = [[a - b for a, b in zip(x, low, strict=True)], [b - a for a, b in zip(x, high, strict=True)]]
    face = look["color"] if network.long_term else "none"
    options = {"color": look["color"], "marker": look["marker"], "markerfacecolor": face, "linestyle": ""}
    y = [place + shift for place, _ in dots]
    axes.errorbar(x, y, xerr=widths, label=label, markersize=5, linewidth=1, **options)


SECTION = ReportSection("Persistent knowledge: 19 benchmarks", lambda e: e.task in TASKS, parts)

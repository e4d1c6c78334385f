"""Persistent knowledge: the 19 benchmarks, with and without long-term memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mm_lightning.evaluation.task import Row
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import GREY, INK, MARKERS, drawing, figure_of
from mm_lightning.experiments.evaluated import plots, published
from mm_lightning.experiments.evaluated.estimates import Estimate, mean_of_shares, share
from mm_lightning.experiments.evaluated.forms import Form, Part
from mm_lightning.experiments.evaluated.grid import Grid
from mm_lightning.experiments.evaluated.groups import Evaluation, Group, Network
from mm_lightning.experiments.evaluated.measures import Measure, scaling
from mm_lightning.experiments.evaluated.published import MEAN_6, MEAN_13, MEAN_19, NETWORKS, OTHER_6, PERSISTENT_13

# By the paper's name of a benchmark: tasks that stand for it, and their scores; the first that is there counts.
BENCHMARKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "obqa": (("openbookqa",), ("acc_norm", "acc")),
    "arc easy": (("arc_easy",), ("acc_norm", "acc")),
    "winogrande": (("winogrande",), ("acc",)),
    "arc challenge": (("arc_challenge",), ("acc_norm", "acc")),
    "piqa": (("piqa",), ("acc_norm", "acc")),
    "boolq": (("boolq",), ("acc",)),
    "hellaswag": (("hellaswag",), ("acc_norm", "acc")),
    "nq": (("nq_open",), ("exact_match",)),
    "siqa": (("social_iqa", "siqa"), ("acc",)),
    "tqa": (("triviaqa",), ("exact_match",)),
    "gsm8k": (("gsm8k",), ("exact_match",)),
    "mmlu alt": (("mmlu_continuation", "mmlu"), ("acc",)),
    "human eval+": (("humaneval_plus", "mm_humaneval_plus"), ("pass@1", "pass_at_1")),
    "squad": (("squad_completion", "squadv2"), ("contains", "f1", "exact")),
    "bbh": (("bbh", "bbh_fewshot", "bbh_cot_fewshot"), ("exact_match",)),
    "math": (("minerva_math",), ("math_verify", "exact_match")),
    "mbpp": (("mbpp",), ("pass@1", "pass_at_1")),
    "race middle": (("race_middle", "mm_race_middle"), ("acc",)),
    "race high": (("race_high", "race"), ("acc",)),
}
OF_TASK = {task: name for name, (tasks, _) in BENCHMARKS.items() for task in tasks}


def benchmark_of(evaluation: Evaluation, row: Row) -> str | None:
    """The task of the harness that a row is of, if it is one of the 19."""
    name = str(row.group.get("benchmark") or row.group.get("task") or evaluation.task)
    return name if name in OF_TASK and not row.group.keys() - {"benchmark", "task", "filter"} else None


def takes(evaluation: Evaluation) -> bool:
    """Whether an evaluation has any of the 19."""
    return any(benchmark_of(evaluation, row) for row in evaluation.rows)


def scores(group: Group, network: Network) -> dict[str, tuple[Estimate, str]]:
    """By benchmark, a network's score and what it is: task and metric."""
    found: dict[tuple[str, str], list[Row]] = {}
    for evaluation in group.of(network):
        for row in evaluation.rows:
            task = benchmark_of(evaluation, row)
            if task is not None:
                found.setdefault((task, row.metric.split(",")[0]), []).append(row)
    chosen = {}
    for name, (tasks, metrics) in BENCHMARKS.items():
        there = [(task, metric) for task in tasks for metric in metrics if (task, metric) in found]
        if there:
            task, metric = there[0]
            chosen[name] = share(found[there[0]][0]), f"{task} {metric}"
    return chosen


def parts(group: Group, looks: plots.Looks) -> list[Part | None]:
    """Table, means and figures."""
    networks = group.networks
    ours = {network: scores(group, network) for network in networks}
    metrics = {name: list(dict.fromkeys(s[name][1] for s in ours.values() if name in s)) for name in BENCHMARKS}
    heads = ["benchmark", "our task and score", *map(group.label, networks), *(n.label for n in NETWORKS)]
    grid = Grid(f"persistent{group.suffix}", heads, 2)
    grid.published_columns = set(range(len(heads) - len(NETWORKS), len(heads)))
    means = {}
    blocks = ((PERSISTENT_13, MEAN_13, "mean of these 13"), (OTHER_6, MEAN_6, "mean of these 6"))
    for names, printed, title in blocks:
        for name in names:
            cells = [ours[network][name][0] if name in ours[network] else None for network in networks]
            grid.add(name, ", ".join(metrics[name]), *cells, *names[name])
        means[title] = {network: _mean(ours[network], names) for network in networks}
        grid.add(title, "", *means[title].values(), *printed)
    means["mean of 19"] = {network: _mean(ours[network], BENCHMARKS) for network in networks}
    grid.add("mean of 19", "", *means["mean of 19"].values(), *MEAN_19)
    measures = [
        Measure(title, {n: e for n, e in found.items() if e is not None and not e.note}, _published(title))
        for title, found in means.items()
    ]
    text = (
        "Percent, with 95% intervals (Wilson) over questions. Means are unweighted; one that lacks benchmarks says how "
        "many it has, and does not compare with the others. The paper does not give its shots and prompts: ours are "
        "those of the named tasks of lm-evaluation-harness. Of tasks with several scores, the one named stands here."
    )
    return [
        page.Text(text),
        grid,
        _dots(f"persistent{group.suffix}", group, ours, looks),
        scaling(f"persistent-scaling{group.suffix}", "Means of benchmarks", measures, looks),
    ]


def _mean(found: Mapping[str, tuple[Estimate, str]], names: Mapping[str, object]) -> Estimate | None:
    chosen = [found[name][0] for name in names if name in found]
    return mean_of_shares(chosen, len(names)) if chosen else None


def _published(title: str) -> list[tuple[published.PublishedNetwork, float]]:
    printed = {"mean of these 13": MEAN_13, "mean of these 6": MEAN_6, "mean of 19": MEAN_19}[title]
    return [(network, value) for network, value in zip(NETWORKS, printed, strict=True) if value is not None]


def _dots(
    name: str, group: Group, ours: Mapping[Network, Mapping[str, tuple[Estimate, str]]], looks: plots.Looks
) -> page.Figure | None:
    """A line for each benchmark, a dot for each network, the paper's large networks hollow."""
    lines = [benchmark for benchmark in BENCHMARKS if any(benchmark in found for found in ours.values())]
    if not lines:
        return None
    labels = [group.label(network) for network in ours] + [network.label for network in NETWORKS[2:]]
    figure, axes = figure_of(8.4, 1.2 + 0.3 * len(lines) + plots.legend_height(labels))
    step = 0.5 / max(len(ours), 2)
    for number, (network, found) in enumerate(ours.items()):
        there = [(place, found[line][0]) for place, line in enumerate(lines) if line in found]
        _row_of_dots(axes, there, (number - (len(ours) - 1) / 2) * step, looks[network], group.label(network), network)
    for number, network in enumerate(NETWORKS[2:]):
        values = [{**PERSISTENT_13, **OTHER_6}[line][2 + number] for line in lines]
        look = {"color": GREY, "marker": MARKERS[number], "markerfacecolor": "none", "linestyle": ""}
        axes.plot(values, range(len(lines)), label=network.label, markersize=6, **look)
    edge = sum(line in PERSISTENT_13 for line in lines) - 0.5
    if 0 < edge < len(lines) - 1:
        axes.axhline(edge, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("score, %")
    plots.side_legend(figure, [axes])
    caption = "The benchmarks with 95% intervals; above the line the 13 that measure persistent knowledge. "
    return drawing(figure, name, caption + "Hollow and grey: published, large networks.", png=True)


def _row_of_dots(
    axes, there: Sequence[tuple[int, Estimate]], shift: float, look: Mapping, label: str, network: Network
) -> None:
    x = [100 * e.value for _, e in there]
    low = [100 * (e.value - (e.value if e.low is None else e.low)) for _, e in there]
    high = [100 * ((e.value if e.high is None else e.high) - e.value) for _, e in there]
    face = look["color"] if network.long_term else "none"
    options = {"color": look["color"], "marker": look["marker"], "markerfacecolor": face, "linestyle": ""}
    y = [place + shift for place, _ in there]
    axes.errorbar(x, y, xerr=[low, high], label=label, markersize=5, linewidth=1, **options)


FORM = Form("Persistent knowledge: 19 benchmarks", takes, parts)

"""New knowledge by length: RULER's question answering and needles, generated facts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.new_knowledge.long_text_task import TENTHS
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import drawing
from mm_lightning.experiments.evaluated import plots, published
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.estimates import Estimate, estimate, mean_of_shares
from mm_lightning.experiments.evaluated.evaluations import Evaluation, Group, Network, last_ones
from mm_lightning.experiments.evaluated.heat_maps import heat_maps
from mm_lightning.experiments.evaluated.published import NEW_KNOWLEDGE, SINGLE_NEEDLE, ByLength
from mm_lightning.experiments.evaluated.report_section import Part, ReportSection, counts
from mm_lightning.experiments.evaluated.scaling_plots import Measure, by_step, scaling
from mm_lightning.experiments.network_looks import Looks
from mm_lightning.style import tokens

QA = ("qa_1", "qa_2")
MEAN = "mean of qa_1 and qa_2"
IN_FIGURE = ("transformer small", "v2 small", "transformer large", "v2 large")
"""Published networks that figures show; tables have them all."""


def accuracy(group: Group, network: Network, task: str) -> dict[int, Estimate]:
    """Return a network's accuracy in a task by length."""
    rows = [row for e in group.of(network, task) for row in e.rows if _is_by_length(row)]
    return {row.group["length"]: estimate(row) for row in sorted(rows, key=lambda row: row.group["length"])}


def mean(group: Group, network: Network) -> dict[int, Estimate]:
    """Return the mean of both question answering tasks at the lengths at which both were asked."""
    one, two = (accuracy(group, network, task) for task in QA)
    return {n: mean_of_shares([one[n], two[n]], 2) for n in one if n in two}


def by_depth(group: Group, network: Network, task: str) -> dict[tuple[int, str], float]:
    """Return accuracy by length and depth."""
    rows = (row for evaluation in group.of(network, task) for row in evaluation.rows)
    return {(r.group["length"], r.group["depth"]): r.value for r in rows if r.group.keys() == {"length", "depth"}}


def excluded(group: Group, network: Network, name: str) -> str:
    """Return the number of questions that do not fit: those of a task, or of all tasks of `new-knowledge`."""
    rows = [row for e in group.of(network) if name in (e.task, "new-knowledge") for row in e.rows]
    return counts([round(row.value) for row in rows if row.metric == "excluded_questions"]) or "0"


def length_table(
    name: str, group: Group, values: dict[Network, dict[int, Estimate]], printed: Sequence[ByLength] = ()
) -> EstimateTable | None:
    """Return a table: a line for each network, a column for each length."""
    lengths = sorted({n for by_length in values.values() for n in by_length})
    if not lengths:
        return None
    columns = sorted({*lengths, *(n for row in printed for n in row.accuracy)})
    heads = ["network", "trained at", "questions", "do not fit", *map(tokens, columns)]
    table = EstimateTable(f"{name}{group.suffix}", heads, 4)
    for network, by_length in values.items():
        context = network.about.get("context_length")
        asked = [counts([e.count for e in by_length.values()]), excluded(group, network, name)]
        table.add(group.label(network), tokens(context) if context else "unknown", *asked, *map(by_length.get, columns))
    for row in printed:
        context = tokens(row.network.context) if row.network.context else ""
        table.add(row.network.label, context, "", "", *map(row.accuracy.get, columns), published=True)
    return table


def measures(
    what: str, values: dict[Network, dict[int, Estimate]], printed: Sequence[ByLength] = (), most: int = 4
) -> list[Measure]:
    """Return the accuracy at some lengths, the shortest and the longest among them."""
    lengths = sorted({n for by_length in values.values() for n in by_length})
    if len(lengths) > most:
        lengths = [lengths[round(i * (len(lengths) - 1) / (most - 1))] for i in range(most)]
    chosen = []
    for n in lengths:
        theirs = [(row.network, value) for row in printed if isinstance(value := row.accuracy.get(n), float)]
        ours = {network: values[network][n] for network in values if n in values[network]}
        chosen.append(Measure(f"{what} at {tokens(n)}", ours, theirs))
    return chosen


def figures(
    name: str,
    what: str,
    group: Group,
    values: dict,
    looks: Looks,
    printed: Sequence[ByLength] = (),
    note: str = "",
) -> list[Part | None]:
    """Draw accuracy by length, by size and training, and by step."""
    suffix = group.suffix
    lines = [
        (row.network.label, {n: v for n, v in row.accuracy.items() if isinstance(v, float)})
        for row in printed
        if row.network.name in IN_FIGURE
    ]
    drawn = last_ones([network for network, by_length in values.items() if by_length])
    ours = [(group.label(network), values[network], looks[network]) for network in drawn]
    lengths = f"{what[0].upper()}{what[1:]} by length, with 95% intervals."
    lengths += " Hollow and gray: published, trained at 32k (the transformers fail at 64k)." if lines else ""
    trained = [row for row in printed if row.network.context == 32768]
    return [
        plots.by_length(f"{name}{suffix}", lengths, ours, lines),
        scaling(f"{name}-scaling{suffix}", what, measures(what, values, trained, most=2), looks),
        by_step(f"{name}-steps{suffix}", what, measures(what, values, most=6), group.networks, note),
    ]


def heat_map(group: Group, task: str) -> page.Drawing | None:
    """Draw accuracy by length and depth, a map for each network."""
    maps = {group.label(network): by_depth(group, network, task) for network in last_ones(group.networks)}
    caption = f"{task}: accuracy by length and depth of the answer, in percent."
    maps = {name: accuracies for name, accuracies in maps.items() if accuracies}
    if any(len(accuracies) < len(TENTHS) * len({n for n, _ in accuracies}) for accuracies in maps.values()):
        caption += " Gray: not asked."
    return drawing(heat_maps(maps), f"{task}-depth{group.suffix}", caption, png=True) if maps else None


def new_knowledge(group: Group, looks: Looks) -> list[Part | None]:
    """Return the mean of qa_1 and qa_2 as the paper has it, then each."""
    means = {network: mean(group, network) for network in group.networks}
    shown: list[Part | None] = [page.Text(_READING.format(which="RULER's two question answering tasks"))]
    if any(means.values()):
        text = f"{MEAN[0].upper()}{MEAN[1:]}. The paper's networks answered its texts, tokenized by its tokenizer."
        shown += [page.Text(text), length_table("new-knowledge", group, means, NEW_KNOWLEDGE)]
        shown += figures("new-knowledge", MEAN, group, means, looks, NEW_KNOWLEDGE, published.FINE_TUNING)
    else:
        shown.append(
            page.Text("No network answered both at the same length: there is no mean to hold against the paper.")
        )
    for task in group.tasks:
        values = {network: accuracy(group, network, task) for network in group.networks}
        values = {network: by for network, by in values.items() if by}
        shown += [page.Heading(task, 3), length_table(task, group, values)]
        if not any(means.values()):
            shown += figures(task, f"accuracy of {task}", group, values, looks)
        shown.append(heat_map(group, task))
    return shown


def needles(group: Group, looks: Looks) -> list[Part | None]:
    """Return a table: a line for each network and task; and heat maps."""
    values = {(n, t): accuracy(group, n, t) for t in group.tasks for n in group.networks}
    values = {key: by_length for key, by_length in values.items() if by_length}
    lengths = sorted({n for by_length in values.values() for n in by_length})
    columns = sorted({*lengths, *(n for row in SINGLE_NEEDLE for n in row.accuracy)})
    table = EstimateTable(f"needles{group.suffix}", ["task", "network", "questions", *map(tokens, columns)], 3)
    for (network, task), by_length in values.items():
        table.add(
            task, group.label(network), counts([e.count for e in by_length.values()]), *map(by_length.get, columns)
        )
    for row in SINGLE_NEEDLE:
        table.add(
            "single needle (which is not known)", row.network.label, "", *map(row.accuracy.get, columns), published=True
        )
    quoted = EstimateTable(f"needles-quoted{group.suffix}", ["network", "1k", "2k", "4k"])
    for name, numbers in published.QUOTED_RULER.items():
        quoted.add(f"published: {name}", *numbers, published=True)
    text = (
        "Quoted by the paper (Tables 7 and 8): networks that compress what they read, beside one that does not. Which "
        "of RULER's tasks these are is not known."
    )
    shown: list[Part | None] = [page.Text(_READING.format(which="RULER's needles in a haystack")), table]
    shown += [page.Text(text), quoted]
    return [*shown, *(heat_map(group, task) for task in group.tasks)]


def one_task(group: Group, looks: Looks) -> list[Part | None]:
    """Return tables and figures of any other task by length, such as generated facts."""
    shown: list[Part | None] = []
    for task in group.tasks:
        values = {n: by for n in group.networks if (by := accuracy(group, n, task))}
        text = f"{_READING.format(which=task)} The paper has no such numbers."
        shown += [page.Text(text), length_table(task, group, values)]
        shown += figures(task, f"accuracy of {task}", group, values, looks)
        shown.append(heat_map(group, task))
    return shown


_READING = "{which}: percent, with 95% score intervals over questions."


def _is_by_length(row: Row) -> bool:
    return row.metric == "accuracy" and row.group.keys() == {"length"}


def _by_length(evaluation: Evaluation) -> bool:
    return any(map(_is_by_length, evaluation.rows))


def _named(names: Sequence[str], evaluation: Evaluation) -> bool:
    return evaluation.task in names and _by_length(evaluation)


SECTIONS = (
    ReportSection("New knowledge: question answering over long texts", partial(_named, QA), new_knowledge),
    ReportSection("Needles in a haystack", lambda e: e.task.startswith("niah_") and _by_length(e), needles),
    ReportSection(
        "Questions about long texts",
        lambda e: e.task not in QA and not e.task.startswith("niah_") and _by_length(e),
        one_task,
    ),
)

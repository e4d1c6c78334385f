"""What a task is: its questions, how a network is asked, and the numbers that come of it.

A task is a dataclass. Its fields are its settings, and what `mm evaluate` fills from options of the same names:

    @dataclass
    class Capitals(Task):
        name: ClassVar[str] = "capitals"
        limit: int | None = None

        def items(self, model): return [Item("france", {"continent": "Europe"}, ("The capital of France is", "Paris"))]

        def ask(self, model, items):
            prompts = [[model.bos, *model.encode(item.content[0])] for item in items]
            for item, text in zip(items, model.greedy(prompts, 8), strict=True):
                yield item.record({"exact_match": text.strip() == item.content[1]}, answer=text)

Modules of tasks import torch and other heavy packages where they use them.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.intervals import Ends, independent, mean_interval, paired_interval, share_interval
from mm_lightning.evaluation.metrics import Metric, find_metric
from mm_lightning.evaluation.persistent.definitions import BENCHMARK_GROUPS, DEFINITIONS
from mm_lightning.options import nearest

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model

Record = dict[str, Any]
"""The answer to an item, one JSON line: `key`, `group`, `scores`, and whatever is needed to check them."""

_IN_CONTEXT = "mm_lightning.evaluation.in_context.in_context_task"

# name: ("module:class", what it measures)
TASKS: dict[str, tuple[str, str]] = {
    "loss_by_position": (
        "mm_lightning.evaluation.loss_by_position:LossByPosition",
        "loss against position in the context, beyond the training context too",
    ),
    "retrieval_profile": (
        "mm_lightning.evaluation.retrieval_profile:RetrievalProfile",
        "with what weight the last token reads each pair before it, by distance (Figure 1)",
    ),
    "qa_1": (
        "mm_lightning.evaluation.new_knowledge.question_answering:Squad",
        "questions about one of many paragraphs of SQuAD (RULER)",
    ),
    "qa_2": (
        "mm_lightning.evaluation.new_knowledge.question_answering:Hotpot",
        "questions about two of many paragraphs of HotpotQA (RULER)",
    ),
    "niah_single_1": ("mm_lightning.evaluation.new_knowledge.needles:Single1", "a number hidden in noise (RULER)"),
    "niah_single_2": ("mm_lightning.evaluation.new_knowledge.needles:Single2", "a number hidden in prose (RULER)"),
    "niah_single_3": ("mm_lightning.evaluation.new_knowledge.needles:Single3", "a uuid hidden in prose (RULER)"),
    "niah_multikey_1": (
        "mm_lightning.evaluation.new_knowledge.needles:MultiKey1",
        "one of four numbers hidden in prose (RULER)",
    ),
    "niah_multikey_2": ("mm_lightning.evaluation.new_knowledge.needles:MultiKey2", "one of very many numbers (RULER)"),
    "niah_multikey_3": ("mm_lightning.evaluation.new_knowledge.needles:MultiKey3", "one of very many uuids (RULER)"),
    "niah_multivalue": (
        "mm_lightning.evaluation.new_knowledge.needles:MultiValue",
        "all four numbers of a key hidden in prose (RULER)",
    ),
    "niah_multiquery": (
        "mm_lightning.evaluation.new_knowledge.needles:MultiQuery",
        "the numbers of four keys hidden in prose (RULER)",
    ),
    "regbench": (
        "mm_lightning.evaluation.regbench:RegBench",
        "languages of random automata learned in context, for networks trained on them",
    ),
    "generated_facts": (
        "mm_lightning.evaluation.new_knowledge.generated_facts:GeneratedFacts",
        "questions about made-up facts, for small networks",
    ),
    "banking77": (f"{_IN_CONTEXT}:Banking77", "77 intents from demonstrations"),
    "goemotions": (f"{_IN_CONTEXT}:GoEmotions", "28 emotions from demonstrations"),
    "tacred": (
        f"{_IN_CONTEXT}:Tacred",
        "41 relations from demonstrations, licensed data",
    ),
    "semeval2010_task8": (
        f"{_IN_CONTEXT}:SemEval",
        "18 relations from demonstrations",
    ),
    "redocred": (f"{_IN_CONTEXT}:ReDocRED", "41 relations from demonstrations"),
    "classification": (
        f"{_IN_CONTEXT}:Classification",
        "classes of your own data set",
    ),
}

TASKS |= {
    name: (
        f"mm_lightning.evaluation.persistent.benchmark_task:{name}",
        f"{definition.label or name}, of lm-evaluation-harness",
    )
    for name, definition in DEFINITIONS.items()
}

# several tasks by one name
GROUPS: dict[str, tuple[str, ...]] = {
    "new_knowledge": ("qa_1", "qa_2"),
    "needles": (needles := tuple(name for name in TASKS if name.startswith("niah_"))),
    "ruler": ("qa_1", "qa_2", *needles),
    "in_context": ("banking77", "goemotions", "tacred"),
    "in_context_free": ("banking77", "goemotions", "semeval2010_task8", "redocred"),
    **BENCHMARK_GROUPS,
}


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        key: names it for ever (length, seed, number of the question, ...): interrupted runs are continued by it.
        group: the line of the table that it belongs to, e.g. {"length": 4096}.
        content: whatever the task needs to ask it.
    """

    key: str
    group: dict[str, Any]
    content: Any = None

    def record(self, scores: dict[str, Any], **more: Any) -> Record:
        """The record of its answer: numbers by metric (True is 1), and what explains them."""
        return {"key": self.key, "group": self.group, "scores": scores, **more}


@dataclass(frozen=True)
class Row:
    """One number of a table.

    Attributes:
        group: what it is of.
        metric: what it is.
        value: the number.
        stderr: its standard error over items; None where there is none.
        count: items behind it.
        unit: of the metric (:mod:`~mm_lightning.evaluation.metrics`); empty in results of earlier versions.
        low: where its 95% interval begins; None where there is none.
        high: where it ends.
    """

    group: dict[str, Any]
    metric: str
    value: float
    stderr: float | None
    count: int
    unit: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measurement:
    """A number of a table as the values of the items that it is the mean of.

    Attributes:
        group: what it is of.
        metric: what it is.
        values: by item; the same items have the same names for all networks.
        weights: of the items in the mean; None for equal ones.
        classes: of the items, where the mean is that of the classes' means.
        count: answers behind it, where an item was answered several times.
        extra_variance: variance of the mean that is not one over items.
        extra_half: half of the 95% interval that covers it.
    """

    group: dict[str, Any]
    metric: Metric
    values: Mapping[str, float]
    weights: Mapping[str, float] | None = None
    classes: Mapping[str, str] | None = None
    count: int | None = None
    extra_variance: float = 0.0
    extra_half: float = 0.0

    def row(self) -> Row:
        """Return the mean with its standard error and its interval."""
        number = len(self.values)
        if self.classes is None:
            weights = dict.fromkeys(self.values, 1.0) if self.weights is None else self.weights
            total = math.fsum(weights.values())
            value = math.fsum(weights[key] * x for key, x in self.values.items()) / total
            squares = math.fsum((weights[key] * (x - value)) ** 2 for key, x in self.values.items())
            variance = squares * number / (number - 1) / total**2 if number > 1 else None
            counts = None
        else:
            by_class: dict[str, list[float]] = {}
            for key, x in self.values.items():
                by_class.setdefault(self.classes[key], []).append(x)
            value, variance = _mean_of_means(list(by_class.values()))
            counts = [len(members) for members in by_class.values()]
        items_error = None if variance is None else math.sqrt(variance)
        stderr = None if variance is None else math.sqrt(variance + self.extra_variance)
        ends = interval(self.metric.unit, value, items_error, number, counts, self.extra_half)
        low, high = ends or (None, None)
        count = number if self.count is None else self.count
        return Row(self.group, self.metric.name, value, stderr, count, self.metric.unit, low, high)

    def difference(self, other: Measurement) -> Row | None:
        """Return the mean difference from another network's on the items that both have; None without such items."""
        common = [key for key in self.values if key in other.values]
        if not common:
            return None
        weights = dict.fromkeys(common, 1.0) if self.weights is None else {key: self.weights[key] for key in common}
        mean_weight = math.fsum(weights.values()) / len(common)
        size = 100.0 if self.metric.unit == "percent" else 1.0
        pairs = [weights[key] / mean_weight * (self.values[key] - other.values[key]) / size for key in common]
        ends = paired_interval(pairs, self.metric.unit in ("share", "percent"))
        low, high = (None, None) if ends is None else (size * ends[0], size * ends[1])
        value = size * math.fsum(pairs) / len(pairs)
        return Row(self.group, self.metric.name, value, None, len(common), self.metric.unit, low, high)


def _mean_of_means(classes: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """Return the mean of the means of classes and its variance; a class of one member has that of the others."""
    means = [math.fsum(members) / len(members) for members in classes]
    value = math.fsum(means) / len(means)
    squares = [math.fsum((x - mean) ** 2 for x in members) for members, mean in zip(classes, means, strict=True)]
    spare = sum(len(members) - 1 for members in classes)
    if spare:
        pooled = sum(squares) / spare
    elif len(means) > 1:  # no class has two members
        pooled = math.fsum((mean - value) ** 2 for mean in means) / (len(means) - 1)
    else:
        return value, None
    variances = [
        (square / (len(members) - 1) if len(members) > 1 else pooled) / len(members)
        for members, square in zip(classes, squares, strict=True)
    ]
    return value, math.fsum(variances) / len(means) ** 2


def interval(
    unit: str,
    value: float,
    stderr: float | None,
    count: int,
    classes: Sequence[float] | None = None,
    extra: float = 0.0,
) -> Ends | None:
    """Return the 95% interval of a mean (docs/evaluation.md): a score interval of shares, else Student's.

    Args:
        unit: of the metric.
        value: the mean, in this unit.
        stderr: its standard error over items.
        count: items.
        classes: items of each class, where it is the mean of the classes' means.
        extra: half of an interval that covers what is no variance over items.
    """
    if unit == "count":
        return None
    size = 100.0 if unit == "percent" else 1.0
    if unit not in ("share", "percent") or not 0 <= value <= size:
        return mean_interval(value, stderr, count)
    error = None if stderr is None else stderr / size
    low, high = share_interval(value / size, classes or [independent(value / size, error, count)], extra / size)
    return size * low, size * high


class Task(ABC):
    """Something that networks are asked. Subclasses are dataclasses of plain settings.

    Attributes:
        name: as in `mm evaluate --tasks`.
        version: raised when the same settings come to mean other questions or scores.
        metrics: the task's own, by name, besides :data:`~mm_lightning.evaluation.metrics.METRICS`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, Metric]] = {}

    @abstractmethod
    def items(self, model: Model) -> list[Item]:
        """All questions, their keys distinct; the same in every process."""

    @abstractmethod
    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Asks some of the items, in any order, and yields each record as soon as it is known."""

    @classmethod
    def metric(cls, name: str) -> Metric:
        """Return one of the task's metrics; a plain number where it is not known."""
        return cls.metrics.get(name) or find_metric(name)

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """The numbers that are means over items, by default each score in each group."""
        return means(self, records)

    def rows(self, records: list[Record]) -> list[Row]:
        """The table, from all records in the order of the items."""
        return [measurement.row() for measurement in self.measurements(records)]

    @property
    def title(self) -> str:
        """What results are called: the name, of a user's data set with that of the data set."""
        return self.name

    def settings(self) -> dict[str, Any]:
        """All that decides what is asked and how it is scored, in plain types; other settings are other results."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return json.loads(json.dumps({"version": self.version, **fields}))

    def settings_for(self, checkpoint: Path | None) -> dict[str, Any]:
        """The settings, with `data_hash`, the hash of what is read, where that depends on the network.

        Args:
            checkpoint: the network that is asked; tasks find its own data beside it.
        """
        return self.settings()

    def headline(self, rows: list[Row]) -> list[Row]:
        """The rows of short tables, on the terminal and of differences: by default all."""
        return rows

    def references(self) -> dict[str, dict[str, float]]:
        """Numbers to hold metrics against, by the name of what reaches them and by metric."""
        return {}


def title_of(task: str, settings: Mapping[str, Any]) -> str:
    """Return what results of a task are called: its name and, of a user's data set, that of the data set."""
    dataset = re.sub(r"[^\w.\-]+", "-", str(settings.get("dataset") or "")).strip("-.")
    return f"{task}-{dataset}" if dataset else task


def restore_task(name: str, settings: Mapping[str, Any]) -> Task:
    """Return the task with the settings that its results have."""
    return find_task(name)(**{key: value for key, value in settings.items() if key != "version"})


def means(task: Task, records: Iterable[Record]) -> list[Measurement]:
    """Return the mean of each score in each group, groups and metrics in the order in which they appear."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    groups: dict[str, dict[str, Any]] = {}
    truths: set[str] = set()
    for record in records:
        group = json.dumps(record["group"], sort_keys=True)
        groups.setdefault(group, record["group"])
        for name, score in record["scores"].items():
            values.setdefault(group, {}).setdefault(name, {})[record["key"]] = float(score)
            if isinstance(score, bool):
                truths.add(name)
    return [
        Measurement(groups[group], _told(task.metric(name), name in truths), by_item)
        for group, by_name in values.items()
        for name, by_item in by_name.items()
    ]


def _told(metric: Metric, truth: bool) -> Metric:
    """Return the metric; one that nothing is known of but that its scores are true or false is a share."""
    unknown = metric.unit == "number" and metric.higher_is_better is None
    return Metric(metric.name, "share") if truth and unknown else metric


def task_names(words: Iterable[str]) -> list[str]:
    """The names that some words stand for: tasks and groups, separated by commas too; each once."""
    names = [name for word in words for name in word.split(",") if name]
    return list(dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,))))


def find_task(name: str) -> type[Task]:
    """The task of a name.

    Raises:
        UserError: there is none; it names the nearest.
    """
    if name not in TASKS:
        word = name.lower()
        about = [task for task, (_, text) in TASKS.items() if word in re.findall(r"\w+", text.lower())]
        near = nearest(name, [*TASKS, *GROUPS], 0.6)
        meant = list(dict.fromkeys([*([near] if near else []), *about]))
        hint = f"did you mean {' or '.join(meant[:4])}?" if meant else f"there are {', '.join([*TASKS, *GROUPS])}"
        raise UserError(f"there is no task {name!r}: {hint}")
    module, kind = TASKS[name][0].split(":")
    return getattr(importlib.import_module(module), kind)

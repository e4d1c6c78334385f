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
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.definitions import BENCHMARK_GROUPS, DEFINITIONS
from mm_lightning.markdown import markdown_table
from mm_lightning.options import nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    "needles": tuple(name for name in TASKS if name.startswith("niah_")),
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
    """

    group: dict[str, Any]
    metric: str
    value: float
    stderr: float | None
    count: int


@dataclass(frozen=True)
class Result:
    """What a task found about a network.

    Attributes:
        run: what the network is called.
        rows: the numbers.
        about: the network: architecture, parameters, context_length (of its training), checkpoint, ...
    """

    run: str
    rows: list[Row]
    about: dict[str, Any]


class Task(ABC):
    """Something that networks are asked. Subclasses are dataclasses of plain settings.

    Attributes:
        name: as in `mm evaluate --tasks`.
        version: raised when the same settings come to mean other questions or scores.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def items(self, model: Model) -> list[Item]:
        """All questions, their keys distinct; the same in every process."""

    @abstractmethod
    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Asks some of the items, in any order, and yields each record as soon as it is known."""

    def rows(self, records: list[Record]) -> list[Row]:
        """The table, from all records in the order of the items: by default the mean of each score in each group."""
        return mean_rows(records)

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
        """The rows of short tables, on the terminal and in results.md: by default all. results.csv has all."""
        return rows

    def markdown(self, results: Sequence[Result]) -> str:
        """The table of several networks: by default a line for each headline number, a column for each network."""
        return table([dataclasses.replace(result, rows=self.headline(result.rows)) for result in results])

    def figures(self, results: Sequence[Result]) -> dict[str, Figure]:
        """Figures of several networks by file name; by default none."""
        return {}


def mean_row(group: dict[str, Any], metric: str, values: Sequence[float]) -> Row:
    """The mean of some items' values, and its standard error."""
    count = len(values)
    mean = math.fsum(values) / count
    error = None
    if count > 1:
        error = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (count - 1) / count)
    return Row(group, metric, mean, error, count)


def mean_rows(records: Iterable[Record]) -> list[Row]:
    """The mean of each score in each group, groups and metrics in the order in which they appear."""
    values: dict[tuple[str, str], list[float]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for record in records:
        group = json.dumps(record["group"], sort_keys=True)
        groups.setdefault(group, record["group"])
        for metric, score in record["scores"].items():
            values.setdefault((group, metric), []).append(float(score))
    order = {group: n for n, group in enumerate(groups)}
    return [
        mean_row(groups[group], metric, found)
        for (group, metric), found in sorted(values.items(), key=lambda entry: order[entry[0][0]])
    ]


def table(results: Sequence[Result]) -> str:
    """Markdown: a line for each group and metric, a column for each network; value, standard error and items."""
    lines: dict[str, tuple[dict[str, Any], str]] = {}
    cells: dict[tuple[str, int], str] = {}
    for n, result in enumerate(results):
        for row in result.rows:
            line = json.dumps([row.group, row.metric], sort_keys=True)
            lines.setdefault(line, (row.group, row.metric))
            error = "" if row.stderr is None else f" ± {row.stderr:.4f}"
            cells[line, n] = f"{row.value:.4f}{error} ({row.count:,})"
    names = list(dict.fromkeys(name for group, _ in lines.values() for name in group))
    head = [*names, "metric", *(result.run for result in results)]
    rows = [
        [
            *(str(group.get(name, "")) for name in names),
            metric,
            *(cells.get((line, n), "") for n in range(len(results))),
        ]
        for line, (group, metric) in lines.items()
    ]
    return markdown_table(head, rows, len(names) + 1) + "\n"


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
        near = nearest(name, [*TASKS, *GROUPS], 0.4)
        hint = f"did you mean {near}?" if near else f"there are {', '.join([*TASKS, *GROUPS])}"
        raise UserError(f"there is no task {name!r}: {hint}")
    module, kind = TASKS[name][0].split(":")
    return getattr(importlib.import_module(module), kind)

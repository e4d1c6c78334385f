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
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.metrics import Metric, find_metric

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model

Record = dict[str, Any]
"""The answer to an item, one JSON line: `key`, `group`, `scores`, and whatever is needed to check them."""


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

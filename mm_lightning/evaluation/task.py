"""The base class of evaluation tasks: their questions, how a network is asked, and the numbers that come of it.

docs/extending.md has one in a module of a user's own. Modules of tasks import torch and other heavy packages where they
use them.
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
    """A question.

    Attributes:
        key: names it for ever (length, seed, number of the question, ...): interrupted runs are continued by it.
        group: the line of the table that it belongs to, e.g. {"length": 4096}.
        content: whatever the task needs to ask it.
    """

    key: str
    group: dict[str, Any]
    content: Any = None

    def record(self, scores: dict[str, Any], **more: Any) -> Record:
        """Return the record of its answer: numbers by metric (True is 1), and what explains them."""
        return {"key": self.key, "group": self.group, "scores": scores, **more}


class Task(ABC):
    """Questions to networks and the scores of their answers.

    Subclasses are dataclasses. Their fields are options of `mm evaluate` and of the callback Evaluation, and what the
    class's docstring says of a field is the option's help. Options that several tasks have are described here:

    Args:
        contexts: lengths in tokens, those of the answer included; 4k is 4,096.
        limit: questions of each length at most, or of the whole task where there are no lengths.
        seed: of the questions and of what is drawn for them.
        data_dir: folder of the data sets: squad/*.json, hotpotqa/*.json, text/novels/*.txt, banking77/*.csv, ...
        data_hash: refuse other data than those of this hash, as results.json gives it.

    Attributes:
        name: as in `mm evaluate --tasks`; of a class in a user's own module it is module.Class.
        version: raised when the same settings come to mean other questions or scores.
        metrics: the task's own, by name, besides :data:`~mm_lightning.evaluation.metrics.METRICS`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, Metric]] = {}

    def __init_subclass__(cls) -> None:
        """Name a class that has no name of its own by its module, by which it is found again."""
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}.{cls.__qualname__}"

    @abstractmethod
    def items(self, model: Model) -> list[Item]:
        """Return all questions, their keys distinct; the same in every process."""

    @abstractmethod
    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Ask some of the items, in any order, and yield each record as soon as it is known."""

    @classmethod
    def metric(cls, name: str) -> Metric:
        """Return one of the task's metrics; a plain number where it is not known."""
        return cls.metrics.get(name) or find_metric(name)

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """Return the numbers that are means over items, by default each score in each group."""
        return means(self, records)

    def rows(self, records: list[Record]) -> list[Row]:
        """Return the table, from all records in the order of the items."""
        return [measurement.row() for measurement in self.measurements(records)]

    @property
    def title(self) -> str:
        """The name of the results: that of the task, of a user's data set with that of the data set."""
        return self.name

    def settings(self) -> dict[str, Any]:
        """Return all that decides what is asked and how it is scored, in plain types: other settings, other results."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return json.loads(json.dumps({"version": self.version, **fields}))

    def settings_for(self, checkpoint: Path | None) -> dict[str, Any]:
        """Return the settings, with `data_hash`, the hash of what is read, where that depends on the network.

        Args:
            checkpoint: the network that is asked; tasks find its own data beside it.
        """
        return self.settings()

    def headline(self, rows: list[Row]) -> list[Row]:
        """Return the rows of short tables, as on the terminal: by default all."""
        return rows

    def compared(self, rows: list[Row]) -> list[Row]:
        """Return the means over items of which reports show paired differences: by default those of short tables."""
        return self.headline(rows)

    def references(self) -> dict[str, dict[str, float]]:
        """Return numbers to hold metrics against, by the name of what reaches them and by metric."""
        return {}


def title_of(task: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a task's results: its name and, of a user's data set, that of the data set."""
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
        Measurement(groups[group], _as_share(task.metric(name), name in truths), by_item)
        for group, by_name in values.items()
        for name, by_item in by_name.items()
    ]


def _as_share(metric: Metric, truth: bool) -> Metric:
    """Return the metric; an unknown one whose scores are true or false is a share."""
    unknown = metric.unit == "number" and metric.higher_is_better is None
    return Metric(metric.name, "share") if truth and unknown else metric

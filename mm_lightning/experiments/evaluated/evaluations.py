"""Evaluated networks, results of tasks, and groups of results that compare."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.samples import Samples

LOSS_TASKS = "long_ppl", "loss_by_position"
"""Tasks whose numbers are losses of the tokens of long texts."""


@dataclass(frozen=True)
class Network:
    """A network as it was asked: the same weights without long-term memory, with another m or in another precision are
    another network.

    Attributes:
        key: of its weights and options.
        name: its name in tables.
        about: its description in results.json.
    """

    key: str
    name: str
    about: dict[str, Any] = field(compare=False, hash=False)

    @property
    def long_term(self) -> bool:
        """Whether its long-term memory is there."""
        return self.about.get("long_term", True)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Architecture, levels, delay, presence of long-term memory, settings, precision: equal along a line."""
        levels = tuple(self.about.get("levels") or ())
        settings = json.dumps(self.about.get("settings"))
        names = "architecture", "inference_delay", "precision"
        return levels, self.long_term, settings, *map(self.about.get, names)

    @property
    def run(self) -> tuple[Any, ...]:
        """The run folder and :attr:`kind`: equal for checkpoints of one run that were asked in the same way."""
        return self.about.get("run_folder") or self.key, *self.kind

    def number(self, name: str) -> float | None:
        """Return parameters, training tokens, step, ... if they are known."""
        return self.about.get(name)


@dataclass(frozen=True)
class Evaluation:
    """The results of one task for one network.

    Attributes:
        task: its title: the task's name and, of a user's data set, that of the data set.
        settings: all that decided what was asked.
        network: who was asked.
        rows: the numbers.
        answers: so far, where not all questions were answered; None where they were.
        path: the folder.
        sessions: date, code and hardware of each sitting.
        source: the text that was read, where the settings do not say it.
        kind: the task's name.
    """

    task: str
    settings: dict[str, Any]
    network: Network
    rows: list[Row]
    answers: int | None
    path: Path
    sessions: list[dict[str, Any]]
    source: str | None = None
    kind: str = ""

    def records(self) -> list[dict[str, Any]]:
        """Return all answers without the long texts in them; none where there are no samples."""
        return _records(self.path)

    @property
    def label(self) -> str:
        """The network's name, marked if this is only a part."""
        part = "" if self.answers is None else f" (partial: {self.answers:,} answers)"
        return self.network.name + part

    def asked(self) -> dict[str, Any]:
        """Return the settings that decide what is asked in a cell of a table, not which cells there are."""
        free = {"data_dir", "version"}
        if "shots" in self.settings:
            free |= {"shots", "labels"}
        elif self.task not in LOSS_TASKS:
            free |= {"contexts"}
        asked = {name: value for name, value in self.settings.items() if name not in free and value is not None}
        if self.settings.get("version", 1) != 1:
            asked["version"] = self.settings["version"]
        if self.task in LOSS_TASKS:  # in nats a token: of these texts, in these tokens
            asked |= {"text": self.settings.get("text") or self.source, "tokenizer": self.tokenizer}
            if self.settings.get("data_hash"):  # the text itself: what it is called or where it lies does not matter
                del asked["text"]
        return asked

    @property
    def tokenizer(self) -> str:
        """The beginning of the tokenizer's hash."""
        return str(self.network.about.get("tokenizer") or "unknown")[:8]


@functools.lru_cache(maxsize=64)
def _records(path: Path) -> list[dict[str, Any]]:
    long = {"prompt", "prompts", "before", "document", "log_likelihoods", "answers"}
    return [{k: v for k, v in record.items() if k not in long} for record in Samples(path).read().values()]


def items_asked(evaluation: Evaluation) -> dict[str, set[str]]:
    """Return the keys of the items of each group."""
    keys: dict[str, set[str]] = {}
    for record in evaluation.records():
        keys.setdefault(json.dumps(record["group"], sort_keys=True), set()).add(record["key"])
    return keys


def in_common(one: Evaluation, other: Evaluation) -> tuple[int, int] | None:
    """Return the items that both were asked and all, of the first group in which they were asked different ones.

    Only other tokenizers make different items of the same settings, because other questions fit into a length.
    """
    if one.tokenizer == other.tokenizer or one.task != other.task or one.network == other.network:
        return None
    if one.answers is not None or other.answers is not None:
        return None
    other_items = items_asked(other)
    for group, items in items_asked(one).items():
        others = other_items.get(group, items)
        if items != others:
            return len(items & others), len(items | others)
    return None


DATA_SETTINGS = ("data_hash", "dataset", "fewshot", "run_code", "tacred")
"""Settings that tasks of a family differ in, because each has its own data and its own number of examples."""


@dataclass(frozen=True)
class Group:
    """Evaluations of one or several tasks under the same settings.

    Attributes:
        settings: what they have in common.
        evaluations: in order.
        number: number of the group among those of these tasks, from 1.
        groups: number of groups of these tasks.
    """

    settings: dict[str, Any]
    evaluations: list[Evaluation]
    number: int = 1
    groups: int = 1

    @property
    def networks(self) -> list[Network]:
        """The networks, each once."""
        return list(dict.fromkeys(e.network for e in self.evaluations))

    @property
    def tasks(self) -> list[str]:
        """The tasks, each once."""
        return list(dict.fromkeys(e.task for e in self.evaluations))

    def of(self, network: Network, task: str | None = None) -> list[Evaluation]:
        """Return the evaluations of a network, and of a task if one is named."""
        return [e for e in self.evaluations if e.network == network and task in (None, e.task)]

    def label(self, network: Network) -> str:
        """Return the network's name, marked if something is missing."""
        answers = [f"{e.task} {e.answers:,}" for e in self.of(network) if e.answers is not None]
        if not answers:
            return network.name
        counts = answers[0].split()[-1] if len(self.of(network)) == 1 else ", ".join(answers)
        return f"{network.name} (partial: {counts} answers)"

    @property
    def suffix(self) -> str:
        """The end of names of files: empty for the first group."""
        return "" if self.number == 1 else f"-{self.number}"

    def in_words(self) -> str:
        """Return the settings for a reader."""
        words = ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in self.settings.items())
        return words or "the task's own"


def plain(value: Any) -> str:
    """Return a value as text, a list as words: [1, 2] -> 1 2."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def last_ones(networks: Sequence[Network]) -> list[Network]:
    """Leave out the earlier checkpoints of runs, which figures by step show."""
    last: dict[tuple[Any, ...], float] = {}
    for network in networks:
        last[network.run] = max(last.get(network.run, 0), network.number("step") or 0)
    return [network for network in networks if (network.number("step") or 0) == last[network.run]]


@dataclass
class EvaluationResults:
    """The evaluations of a report.

    Attributes:
        evaluations: in the order of networks, then tasks.
        notes: remarks for the reader, such as what does not compare.
    """

    evaluations: list[Evaluation]
    notes: list[str]

    @property
    def networks(self) -> list[Network]:
        """The networks, each once."""
        return list(dict.fromkeys(e.network for e in self.evaluations))

    def find(self, name: str) -> Network | None:
        """Return the network of a name, or of a folder of results."""
        return next((e.network for e in self.evaluations if name in (e.network.name, e.path.parent.name)), None)

    def put_first(self, network: Network) -> None:
        """Make a network the one that others are compared with; other forms of its weights follow."""
        weights = network.about.get("weights")
        self.evaluations.sort(key=lambda e: (e.network != network, e.network.about.get("weights") != weights))

    def groups(self, evaluations: Sequence[Evaluation] | None = None) -> list[Group]:
        """Group some evaluations, or all, by their settings; tasks that share them, data aside, stand together."""
        chosen = self.evaluations if evaluations is None else evaluations
        data: dict[tuple[str, str], set[str]] = {}  # by settings and task
        for e in chosen:
            data.setdefault((_common(e), e.task), set()).add(data_of(e))
        by_settings: dict[str, list[Evaluation]] = {}
        for e in chosen:
            several = len(data[_common(e), e.task]) > 1
            by_settings.setdefault(_common(e) + (e.task + data_of(e) if several else ""), []).append(e)
        apart = [part for same in by_settings.values() for part in _apart(same)]
        return [Group(_shared([e.asked() for e in same]), same, n, len(apart)) for n, same in enumerate(apart, 1)]


def _apart(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Split evaluations of the same settings by the items that networks were asked."""
    parts: list[list[Evaluation]] = []
    for network in dict.fromkeys(e.network for e in evaluations):
        asked = [e for e in evaluations if e.network == network]
        for part in parts:
            if not any(in_common(one, other) for one in asked for other in part):
                part += asked
                break
        else:
            parts.append(asked)
    return parts


def _common(e: Evaluation) -> str:
    return json.dumps({k: v for k, v in e.asked().items() if k not in DATA_SETTINGS}, sort_keys=True, default=str)


def data_of(e: Evaluation) -> str:
    """Return the settings of a task alone: its data, and the number of shown examples."""
    return json.dumps([e.settings.get(name) for name in DATA_SETTINGS])


def _shared(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = settings[0]
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in settings)}

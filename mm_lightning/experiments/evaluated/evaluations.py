"""Evaluations, and which of them may stand beside each other."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
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
        name: what it is called in tables.
        about: what results.json says of it.
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
        """What points of figures that a line connects have in common, size and training aside."""
        levels = tuple(self.about.get("levels") or ())
        settings = json.dumps(self.about.get("settings"))
        return self.about.get("architecture"), levels, self.about.get("inference_delay"), self.long_term, settings

    @property
    def run(self) -> tuple[Any, ...]:
        """What checkpoints of one training run, asked in the same way, have in common."""
        return self.about.get("run_folder") or self.key, *self.kind

    def number(self, name: str) -> float | None:
        """Parameters, training tokens, step, ... if they are known."""
        return self.about.get(name)


@dataclass(frozen=True)
class Evaluation:
    """The results of one task for one network.

    Attributes:
        task: what it is called: its name and, of a user's data set, that of the data set.
        settings: all that decided what was asked.
        network: who was asked.
        rows: the numbers.
        answers: so far, where not all questions were answered; None where they were.
        path: the folder.
        sessions: when, with which code and on what it was asked.
        source: which text was read, where the settings do not say it.
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
        """All answers, without the long texts in them; none where there are no samples."""
        return _records(self.path)

    @property
    def label(self) -> str:
        """The network's name, and whether this is only a part."""
        part = "" if self.answers is None else f" (partial: {self.answers:,} answers)"
        return self.network.name + part

    def asked(self) -> dict[str, Any]:
        """The settings that decide what is asked in each cell of a table: which cells there are does not matter."""
        free = {"data_dir", "version"} & self.settings.keys()
        if "shots" in self.settings:
            free |= {"shots", "labels"}
        elif self.task not in LOSS_TASKS:
            free |= {"contexts"}
        kept = {name: value for name, value in self.settings.items() if name not in free and value is not None}
        if self.settings.get("version", 1) != 1:
            kept["version"] = self.settings["version"]
        if self.task in LOSS_TASKS:  # in nats a token: of these texts, in these tokens
            kept |= {"text": self.settings.get("text") or self.source, "tokenizer": self.tokenizer}
            if self.settings.get("data_hash"):  # the text itself: what it is called or where it lies does not matter
                del kept["text"]
        return kept

    @property
    def tokenizer(self) -> str:
        """The beginning of its hash."""
        return str(self.network.about.get("tokenizer") or "unknown")[:8]


@functools.lru_cache(maxsize=64)
def _records(path: Path) -> list[dict[str, Any]]:
    long = {"prompt", "prompts", "before", "document", "log_likelihoods", "answers"}
    return [{k: v for k, v in record.items() if k not in long} for record in Samples(path).read().values()]


def items_asked(evaluation: Evaluation) -> dict[str, set[str]]:
    """Return the keys of the items of each group."""
    found: dict[str, set[str]] = {}
    for record in evaluation.records():
        found.setdefault(json.dumps(record["group"], sort_keys=True), set()).add(record["key"])
    return found


def in_common(one: Evaluation, other: Evaluation) -> tuple[int, int] | None:
    """Return the items that both were asked and all, of the first group in which they were asked different ones.

    Only other tokenizers make different items of the same settings, because other questions fit into a length.
    """
    if one.tokenizer == other.tokenizer or one.task != other.task or one.network == other.network:
        return None
    mine, theirs = items_asked(one), items_asked(other)
    for group in mine:
        if group in theirs and mine[group] != theirs[group] and one.answers is None and other.answers is None:
            return len(mine[group] & theirs[group]), len(mine[group] | theirs[group])
    return None


OWN = ("data_hash", "dataset", "fewshot", "run_code", "tacred")
"""Settings that tasks of a family differ in, because each has its own data and its own number of examples."""


@dataclass(frozen=True)
class Group:
    """Evaluations of one or several tasks under the same settings.

    Attributes:
        settings: what they have in common.
        evaluations: in order.
        number: which of the groups of these tasks this is, from 1.
        groups: how many there are.
    """

    settings: dict[str, Any]
    evaluations: list[Evaluation]
    number: int = 1
    groups: int = 1

    @property
    def networks(self) -> list[Network]:
        """Each once."""
        return list(dict.fromkeys(e.network for e in self.evaluations))

    @property
    def tasks(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(e.task for e in self.evaluations))

    def of(self, network: Network, task: str | None = None) -> list[Evaluation]:
        """Those of a network, and of a task if one is named."""
        return [e for e in self.evaluations if e.network == network and task in (None, e.task)]

    def label(self, network: Network) -> str:
        """The network's name, and whether something is missing."""
        answers = [f"{e.task} {e.answers:,}" for e in self.of(network) if e.answers is not None]
        if not answers:
            return network.name
        said = answers[0].split()[-1] if len(self.of(network)) == 1 else ", ".join(answers)
        return f"{network.name} (partial: {said} answers)"

    @property
    def suffix(self) -> str:
        """For names of files."""
        return "" if self.number == 1 else f"-{self.number}"

    def in_words(self) -> str:
        """The settings, for a reader."""
        said = ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in self.settings.items())
        return said or "the task's own"


def plain(value: Any) -> str:
    """[1, 2] -> 1 2"""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def last_ones(networks: Sequence[Network]) -> list[Network]:
    """Networks without the earlier checkpoints of their runs, which figures by step show."""
    last: dict[tuple[Any, ...], float] = {}
    for network in networks:
        last[network.run] = max(last.get(network.run, 0), network.number("step") or 0)
    return [network for network in networks if (network.number("step") or 0) == last[network.run]]


@dataclass
class EvaluationResults:
    """All that was found.

    Attributes:
        evaluations: in the order of networks, then tasks.
        notes: what a reader has to know.
    """

    evaluations: list[Evaluation]
    notes: list[str]

    @property
    def networks(self) -> list[Network]:
        """Each once."""
        return list(dict.fromkeys(e.network for e in self.evaluations))

    def find(self, name: str) -> Network | None:
        """Return the network of a name, or of a folder of results."""
        return next((e.network for e in self.evaluations if name in (e.network.name, e.path.parent.name)), None)

    def put_first(self, network: Network) -> None:
        """Make a network the one that others are compared with; other forms of its weights follow."""
        weights = network.about.get("weights")
        self.evaluations.sort(key=lambda e: (e.network != network, e.network.about.get("weights") != weights))

    def groups(self, wanted: Callable[[Evaluation], bool]) -> list[Group]:
        """The wanted evaluations by their settings; those of tasks that share their settings, data aside, together."""
        chosen = [e for e in self.evaluations if wanted(e)]
        data: dict[tuple[str, str], set[str]] = {}  # by settings and task: on which data it was asked
        for e in chosen:
            data.setdefault((_common(e), e.task), set()).add(data_of(e))
        found: dict[str, list[Evaluation]] = {}
        for e in chosen:
            several = len(data[_common(e), e.task]) > 1
            found.setdefault(_common(e) + (e.task + data_of(e) if several else ""), []).append(e)
        apart = [part for same in found.values() for part in _apart(same)]
        return [Group(_shared([e.asked() for e in same]), same, n, len(apart)) for n, same in enumerate(apart, 1)]


def _apart(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Evaluations of the same settings, those of networks that were asked different items apart."""
    parts: list[list[Evaluation]] = []
    for network in dict.fromkeys(e.network for e in evaluations):
        own = [e for e in evaluations if e.network == network]
        for part in parts:
            if not any(in_common(one, other) for one in own for other in part):
                part += own
                break
        else:
            parts.append(own)
    return parts


def _common(e: Evaluation) -> str:
    return json.dumps({k: v for k, v in e.asked().items() if k not in OWN}, sort_keys=True, default=str)


def data_of(e: Evaluation) -> str:
    """Return the settings of a task alone: its data, and the number of shown examples."""
    return json.dumps([e.settings.get(name) for name in OWN])


def _shared(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = settings[0]
    return {k: v for k, v in first.items() if all(k in other and other[k] == v for other in settings)}

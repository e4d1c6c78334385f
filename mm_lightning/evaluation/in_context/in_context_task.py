"""In-context classification as tasks of `mm evaluate`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.in_context.accuracy import BEST, LONGEST, WAYS, accuracies, longest_prompts
from mm_lightning.evaluation.in_context.custom import read_dataset
from mm_lightning.evaluation.in_context.datasets import READERS, Dataset
from mm_lightning.evaluation.in_context.prompts import (
    STRATEGIES,
    Labels,
    Strategy,
    Style,
    digest,
    draw_shots,
)
from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.task import Item, Record, Task, title_of
from mm_lightning.ranges import Count, Place, Seed, check_fields

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model


@dataclass
class InContext(Task):
    """Classification from demonstrations: n shots are n examples of every class.

    Every question follows the same demonstrations, once for each set of them (seed), number of shots, kind of labels
    and prompt strategy. It is answered in two ways: by greedy decoding to the end of the label, an exact match being
    right; and by the most likely label, the sum of log p over its tokens and its terminator (also divided by how many
    tokens these are).

    Args:
        shots: how many examples of every class are shown.
        labels: the classes' own names (semantic), class_00, class_01, ... (anonymous), or both.
        strategies: ways to write prompts: parts on lines of their own (newline) or behind spaces, the examples of each
            shot in the order of the classes or shuffled.
        demonstration_seeds: sets of examples to draw, at least 3 for a standard error that means something.
        longest_prompt: refuse prompts of more tokens.
    """

    data_dir: Place = "data"
    shots: list[Count] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    labels: list[Labels] = field(default_factory=lambda: ["semantic", "anonymous"])
    strategies: list[Strategy] = field(default_factory=lambda: list(STRATEGIES))
    demonstration_seeds: Count = 3
    limit: Count | None = 500
    seed: Seed = 0
    longest_prompt: Count | None = None
    data_hash: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, allowed in (("labels", ("semantic", "anonymous")), ("strategies", STRATEGIES)):
            for value in getattr(self, name):
                if value not in allowed:
                    raise UserError(f"{name}: there is no {value!r}, only {', '.join(allowed)}")
        for name in ("shots", "labels", "strategies"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UserError(f"{name} must name one or more values, each once, got {values}")

    def read(self) -> Dataset:
        """Read the data set."""
        return READERS[self.name](Path(self.data_dir).expanduser() / self.name)

    @cached_property
    def data(self) -> Dataset:
        """The data set, read once."""
        data = self.read()
        if self.data_hash not in (None, digest(repr(data))):
            raise UserError(f"{data.name}: its hash is {digest(repr(data))}, not data_hash {self.data_hash}")
        return data

    def queries(self) -> list[int]:
        """Return the numbers of the test examples that are asked."""
        numbers = range(len(self.data.test))
        if self.limit is None or self.limit >= len(numbers):
            return list(numbers)
        draw = random.Random(f"questions of {self.data.name}, seed {self.seed}")
        return sorted(draw.sample(numbers, self.limit))

    def settings(self) -> dict[str, Any]:
        """Return the settings; the data count by their content, not by their place."""
        return {**super().settings(), "data_dir": self.data.name, "data_hash": digest(repr(self.data))}

    def items(self, model: Model) -> list[Item]:
        """Return every question after every set of demonstrations.

        Raises:
            UserError: the data set cannot be read, a class has too few examples, or a prompt is too long.
        """
        queries = self.queries()
        draw_shots(self.data, max(self.shots), 0)  # says at once what is missing
        if self.longest_prompt is not None:
            self._check_lengths(model, queries, self.longest_prompt)
        items = []
        for labels, strategy in product(self.labels, self.strategies):
            for seed, shots in product(range(self.demonstration_seeds), sorted(self.shots)):
                group = {"labels": labels, "strategy": strategy, "shots": shots, "seed": seed}
                key = "/".join(map(str, group.values()))
                items += [Item(f"{key}/{number}", group, (number, number == queries[0])) for number in queries]
        return items

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Asks items sorted by demonstrations, so that more shots go on from fewer."""
        from mm_lightning.evaluation.in_context.answer import ask_style

        by_style: dict[tuple[Labels, Strategy], list[Item]] = {}
        for item in items:
            by_style.setdefault((item.group["labels"], item.group["strategy"]), []).append(item)
        for (labels, strategy), group in by_style.items():
            yield from ask_style(model, Style(self.data, labels, strategy), group)

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """See :func:`~mm_lightning.evaluation.in_context.accuracy.accuracies`."""
        return accuracies(records)

    def rows(self, records: list[Record]) -> list[Row]:
        """The same, and the tokens of the longest prompts."""
        names = ("labels", "shots", "strategy")
        prompts = [
            Row(dict(zip(names, key, strict=True)), LONGEST, tokens, None, 1, self.metric(LONGEST).unit)
            for key, tokens in longest_prompts(records).items()
        ]
        return [*super().rows(records), *prompts]

    def headline(self, rows: list[Row]) -> list[Row]:
        """The micro accuracies of the best strategy."""
        return [row for row in rows if row.group["strategy"] == BEST and row.metric in WAYS]

    def _check_lengths(self, model: Model, queries: list[int], longest: int) -> None:
        fit = 0
        for shots in sorted(self.shots):
            for labels, strategy in product(self.labels, self.strategies):
                style = Style(self.data, labels, strategy)
                after = model.tokenizer.encode_batch([style.query(self.data.test[number]) for number in queries])
                answers = model.tokenizer.encode_batch(style.answers)
                for seed in range(self.demonstration_seeds):
                    length = 1 + len(model.encode(style.demonstrations(shots, seed)))
                    length += max(map(len, after)) + max(map(len, answers))
                    if length > longest:
                        raise UserError(
                            f"{self.data.name} with {shots} shots ({labels} labels, {strategy}, seed {seed}): a prompt "
                            f"has {length:,} tokens, more than longest_prompt {longest:,}: "
                            + (f"at most --shots {fit} fits" if fit else "not even the fewest shots fit")
                        )
            fit = shots


@dataclass
class Banking77(InContext):
    """Bank customers' queries: 77 intents."""

    name: ClassVar[str] = "banking77"


@dataclass
class GoEmotions(InContext):
    """Comments with one emotion of 28."""

    name: ClassVar[str] = "goemotions"


@dataclass
class Tacred(InContext):
    """The relation between two entities of a sentence: 41 relations. The data need a license (LDC2018T24).

    Args:
        tacred: folder of your copy, with train.json, dev.json and test.json; by default tacred in data_dir.
    """

    name: ClassVar[str] = "tacred"
    shots: list[Count] = field(default_factory=lambda: [2, 4, 6, 8, 10])
    tacred: Place | None = None

    def read(self) -> Dataset:
        folder = Path(self.tacred or Path(self.data_dir) / self.name).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"there is no TACRED at {folder}: it is not free to redistribute, so name the folder of your licensed "
                f"copy with --tacred, or choose the tasks in_context_free, where SemEval-2010 task 8 and Re-DocRED "
                f"stand in for it"
            )
        return READERS[self.name](folder)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "tacred": None}


@dataclass
class SemEval(InContext):
    """The relation between two nominals of a sentence: 18 directed relations."""

    name: ClassVar[str] = "semeval2010_task8"


@dataclass
class ReDocRED(InContext):
    """The relation between two entities of a sentence of Wikipedia: the 41 most frequent relations."""

    name: ClassVar[str] = "redocred"


@dataclass
class Classification(InContext):
    """A classification data set of your own.

    Args:
        dataset: a file that describes it in five lines of YAML: `name: questions`, `train: train.csv`,
            `test: test.csv`, `columns: {text: question, label: kind}`,
            `prompt: {instruction: "Given a question, please predict its kind.", text: "question:", label: "kind:"}`.
            Files are .csv or .tsv with a header, or .jsonl, beside it.
    """

    name: ClassVar[str] = "classification"
    dataset: Place | None = None

    @property
    def title(self) -> str:
        return title_of(self.name, {"dataset": self.data.name})

    def read(self) -> Dataset:
        if self.dataset is None:
            raise UserError("classification needs --dataset FILE.yaml, the description of a data set")
        return read_dataset(self.dataset)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "dataset": self.data.name}

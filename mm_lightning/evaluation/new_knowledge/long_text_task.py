"""The tasks that ask about long texts: which questions at which length, and the tables and heat maps of the answers."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Measurement, Row
from mm_lightning.evaluation.new_knowledge.question_source import DEFAULT_LIMIT, Sample, Source, share_found, spread
from mm_lightning.evaluation.task import Item, Record, Task, means
from mm_lightning.ranges import Count, Seed, check_fields

if TYPE_CHECKING:
    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.evaluation.model import Model

log = logging.getLogger("mm_lightning.evaluation")

BINS = 10
TENTHS = tuple(f"{place * 100 // BINS}-{(place + 1) * 100 // BINS}%" for place in range(BINS))
"""Depths that the heat map tells apart."""

ACCURACY, ALONE = "accuracy", "accuracy_gold_alone"


@dataclass
class LongTextTask(Task):
    """Questions about texts of several lengths, the answer at depths that are evenly spread."""

    # tokens that are written, and what ends an answer earlier than the end of the document does
    new_tokens: ClassVar[int] = 32
    stop: ClassVar[tuple[str, ...]] = ()

    contexts: list[Count] = field(default_factory=lambda: [4096, 8192, 16384, 32768])
    limit: Count | None = DEFAULT_LIMIT
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, f"{self.name}: ")
        self.contexts = sorted(set(self.contexts))
        if not self.contexts:
            raise UserError(f"{self.name}: contexts must be one or more numbers of tokens, got {self.contexts}")
        self._made: tuple[str, Source] | None = None

    @abstractmethod
    def make_source(self, tokenizer: Tokenizer) -> Source:
        """Make the source of the questions."""

    def source(self, tokenizer: Tokenizer) -> Source:
        """Return the source, made once for a tokenizer."""
        if self._made is None or self._made[0] != tokenizer.sha256:
            self._made = tokenizer.sha256, self.make_source(tokenizer)
        return self._made[1]

    def items(self, model: Model) -> list[Item]:
        """Return the questions of each length; their texts are made when they are asked.

        Raises:
            UserError: data are missing, or no question fits into a length.
        """
        items = []
        for length in self.contexts:
            questions, excluded = self.source(model.tokenizer).questions(length, self.limit)
            if excluded:
                log.info(
                    f"{self.name} at {length:,} tokens: {len(questions):,} questions, {excluded:,} left out because "
                    "their documents do not fit"
                )
            depths = spread(len(questions), Random(f"{self.name}:{self.seed}:{length}:depths"))
            items += [
                Item(f"{self.seed}:{length}:{question}", {"length": length}, (question, depth, excluded))
                for question, depth in zip(questions, depths, strict=True)
            ]
        return items

    def build(self, model: Model, item: Item) -> Sample:
        """Return the text and the question of an item."""
        question, depth, _ = item.content
        return self.source(model.tokenizer).sample(question, item.group["length"], depth)

    def ask(self, model: Model, items: list[Item]) -> Iterator[Record]:
        """Ask length by length, as many side by side as the model takes."""
        for _, group in groupby(items, key=lambda item: item.group["length"]):
            same = list(group)
            size = model.rows_of(same[0].group["length"])
            for at in range(0, len(same), size):
                batch = same[at : at + size]
                samples = [self.build(model, item) for item in batch]
                answers = model.greedy([sample.tokens for sample in samples], self.new_tokens, self.stop)
                for item, sample, answer in zip(batch, samples, answers, strict=True):
                    yield self.record(item, sample, answer)

    def gold_scores(self, answer: str, sample: Sample) -> list[float]:
        """Return the score of each piece of gold: by default 1 if it stands in the answer, else 0."""
        return [share_found(answer, gold) for gold in sample.gold]

    def record(self, item: Item, sample: Sample, answer: str) -> Record:
        """Return the record of an answer."""
        gold_scores = self.gold_scores(answer, sample)
        scores = {ACCURACY: sum(gold_scores) / len(gold_scores)}
        if sample.alone:
            scores[ALONE] = scores[ACCURACY]
        return item.record(
            scores,
            prompt=sample.prompt,
            answer=answer,
            references=[reference for gold in sample.gold for reference in gold.references],
            depth=round(sample.gold[0].depth, 6),
            gold=[
                {"references": gold.references, "depth": round(gold.depth, 6), "found": score}
                for gold, score in zip(sample.gold, gold_scores, strict=True)
            ],
            tokens=len(sample.tokens) + self.new_tokens,
            excluded=item.content[2],
            **({} if sample.alone is None else {"answer_elsewhere": not sample.alone}),
            **sample.about,
        )

    def measurements(self, records: Sequence[Record]) -> list[Measurement]:
        """Return accuracy by length, then by length and depth."""
        measurements = means(self, records)
        by_depth: dict[int, dict[int, dict[str, float]]] = {}
        for record in records:
            places = by_depth.setdefault(record["group"]["length"], {})
            for number, gold in enumerate(record["gold"]):
                place = min(int(gold["depth"] * BINS), BINS - 1)
                places.setdefault(place, {})[f"{record['key']}#{number}"] = gold["found"]
        for length, places in by_depth.items():
            for place, values in sorted(places.items()):
                measurements.append(
                    Measurement({"length": length, "depth": TENTHS[place]}, self.metric(ACCURACY), values)
                )
        return measurements

    def rows(self, records: list[Record]) -> list[Row]:
        """Return also, by length, the mean number of tokens and the questions left out because they do not fit."""
        by_length: dict[int, list[Record]] = {}
        for record in records:
            by_length.setdefault(record["group"]["length"], []).append(record)
        rows = super().rows(records)
        for length, same in by_length.items():
            values = {record["key"]: float(record["tokens"]) for record in same}
            rows.append(Measurement({"length": length}, self.metric("tokens"), values).row())
            if excluded := max(record["excluded"] for record in same):
                rows.append(Row({"length": length}, "excluded_questions", excluded, None, len(same), "count"))
        return rows

    def headline(self, rows: list[Row]) -> list[Row]:
        """Return the numbers by length; depths are in the heat maps of the report."""
        return [row for row in rows if "depth" not in row.group]

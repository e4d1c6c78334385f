"""Questions about documents of generated facts, for networks too small to read English."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

from mm_lightning.data.facts import WORDS, draw_documents
from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.new_knowledge.long_text_task import LongTextTask
from mm_lightning.evaluation.new_knowledge.question_source import (
    DEFAULT_LIMIT,
    Gold,
    Sample,
    Source,
    depth_of,
    encoded,
    fullest,
)
from mm_lightning.ranges import Count


class FactSource(Source):
    """Texts of as many documents as fit, and a question about one of their facts."""

    def __init__(self, tokenizer: Tokenizer, seed: int, new_tokens: int) -> None:
        self.tokenizer, self.seed, self.new_tokens = tokenizer, seed, new_tokens
        (some,) = draw_documents(Random(0), 1)
        self._line = max(len(tokenizer.encode(some.text)), 1)

    def questions(self, length: int, limit: int | None) -> tuple[list[str], int]:
        """See :meth:`Source.questions`: there are as many as wanted.

        Raises:
            UserError: the length is too short for a document and a question, or longer than the language can fill.
        """
        self.sample("0", length, 0.0)
        if length > WORDS // 2 * self._line:
            raise UserError(f"generated_facts: the language has too few names for contexts of {length:,} tokens")
        return [str(number) for number in range(DEFAULT_LIMIT if limit is None else limit)], 0

    def sample(self, question: str, length: int, depth: float) -> Sample:
        """See :meth:`Source.sample`."""
        name = f"{self.seed}:{length}:{question}"
        guess = max((length - self.new_tokens) // self._line, 1)
        gold, *others = draw_documents(Random(name), min(2 * guess + 2, WORDS))
        attribute = Random(f"{name}:attribute").choice(list(gold.facts))

        def build(count: int) -> Sample:
            documents = others[:count]
            place = int(depth * (count + 1))
            documents.insert(place, gold)
            lines = [document.text for document in documents]
            prompt = "".join(lines) + gold.question(attribute)
            where = depth_of(lines, place)
            alone = not any(gold.facts[attribute] in document.facts.values() for document in others[:count])
            about = {"question": gold.question(attribute), "documents": count + 1}
            tokens = encoded(self.tokenizer, prompt)
            return Sample(prompt, tokens, [Gold(where, [gold.facts[attribute]])], about, alone)

        sample = fullest(build, length - self.new_tokens, guess, self._line, len(others))
        if sample is None:
            raise UserError(f"generated_facts: {length:,} tokens are too few for a document and a question")
        return sample


@dataclass
class GeneratedFacts(LongTextTask):
    """The value of a fact about a made-up name, as `mm data facts` teaches it.

    The first word of the answer must be the value. A network that always answers with some value of the text is right
    once in as many times as the text has facts.
    """

    name: ClassVar[str] = "generated_facts"
    new_tokens: ClassVar[int] = 8
    stop: ClassVar[tuple[str, ...]] = (" .", "\n")

    contexts: list[Count] = field(default_factory=lambda: [256, 512, 1024, 2048])

    def make_source(self, tokenizer: Tokenizer) -> Source:
        """See :meth:`LongTextTask.make_source`."""
        return FactSource(tokenizer, self.seed, self.new_tokens)

    def gold_scores(self, answer: str, sample: Sample) -> list[float]:
        """Return 1 if the first word is the value, else 0."""
        (gold,) = sample.gold
        return [float(answer.split()[:1] == gold.references)]

"""RULER's question answering: `qa_1` over paragraphs of SQuAD, `qa_2` over paragraphs of HotpotQA.

The prompts are the published ones. Texts are filled by tokens, not in steps of ten documents, and the answer stands at
depths that are evenly spread: the published script shuffles each text with the same seed, so that the place of the
answer follows from the number of documents alone, and length and depth are confounded.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.new_knowledge.long_text_task import LongTextTask
from mm_lightning.evaluation.new_knowledge.question_files import Collection, Question, read_hotpot, read_squad
from mm_lightning.evaluation.new_knowledge.question_source import (
    Gold,
    Sample,
    Source,
    contains,
    depth_of,
    encoded,
    fingerprint,
)
from mm_lightning.ranges import Place

GoldPosition = Literal["even", "published"]

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
PUBLISHED_SEED = 42
"""With which the published script shuffles the documents of every text."""
PUBLISHED_STEP = 10
"""Documents by which the published script lengthens a text."""

FILLED = 0.9
"""Share of a length that must be filled: the data are too few otherwise."""
_PASSED_OVER = 500  # documents that are tried once one does not fit


def qa_prompt(documents: Sequence[str], question: str) -> str:
    """Return the published prompt."""
    context = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(documents, 1))
    return (
        f"{INSTRUCTION}\n\nThe following are given documents.\n\n{context}\n\n{INSTRUCTION}\n\nQuestion: {question} "
        "Answer:"
    )


class QuestionSource(Source):
    """Questions of a collection with distractors up to the length.

    Args:
        collection: questions and documents.
        tokenizer: of the model.
        seed: of everything that is drawn.
        new_tokens: room for the answer.
        gold_position: even spreads the answer evenly over the text; published is the published script's.
    """

    def __init__(
        self, collection: Collection, tokenizer: Tokenizer, seed: int, new_tokens: int, gold_position: GoldPosition
    ) -> None:
        self.collection, self.tokenizer = collection, tokenizer
        self.seed, self.new_tokens, self.gold_position = seed, new_tokens, gold_position
        self._questions = {question.id: question for question in collection.questions}
        self._order = Random(f"{seed}").sample(list(self._questions), len(self._questions))
        pieces = tokenizer.encode_batch([f"Document 100:\n{text}\n\n" for text in collection.documents])
        self._needs: dict[str, int] = {}
        self._costs = {text: len(ids) for text, ids in zip(collection.documents, pieces, strict=True)}

    def questions(self, length: int, limit: int | None) -> tuple[list[str], int]:
        """See :meth:`Source.questions`.

        Raises:
            UserError: no question fits.
        """
        fitting: list[str] = []
        shortest = None
        for seen, key in enumerate(self._order):
            if len(fitting) == limit:
                return fitting, seen - limit
            question = self._questions[key]
            needed = self._needed(question)
            shortest = needed if shortest is None else min(needed, shortest)
            if needed <= length:
                fitting.append(key)
        if not fitting:
            raise UserError(
                f"no question of {self.collection.path} fits into {length:,} tokens with its documents: the shortest "
                f"needs {shortest:,}"
            )
        return fitting, len(self._order) - len(fitting)

    def _needed(self, question: Question) -> int:
        """Return the tokens of a question with the documents that it cannot do without, and of its answer."""
        if question.id not in self._needs:
            prompt = qa_prompt(question.required, question.text)
            self._needs[question.id] = len(encoded(self.tokenizer, prompt)) + self.new_tokens
        return self._needs[question.id]

    def sample(self, question: str, length: int, depth: float) -> Sample:
        """See :meth:`Source.sample`.

        Raises:
            UserError: there are too few documents for the length.
        """
        asked = self._questions[question]
        random = Random(f"{self.seed}:{length}:{question}")
        distractors, exhausted = self._distractors(asked, random, length - self._needed(asked))
        while True:
            documents = self._arranged(asked, distractors, random, depth)
            prompt = qa_prompt(documents, asked.text)
            tokens = encoded(self.tokenizer, prompt)
            if len(tokens) + self.new_tokens <= length:
                break
            # A tokenizer may join tokens differently in the whole text, so that the parts' sum is too low.
            if distractors:
                distractors.pop()
            else:
                documents, prompt = asked.required, qa_prompt(asked.required, asked.text)
                tokens = encoded(self.tokenizer, prompt)
                break
        if exhausted and len(tokens) + self.new_tokens < FILLED * length:
            raise UserError(
                f"all {len(self.collection.documents):,} documents of {self.collection.path} make only {len(tokens):,} "
                f"tokens, too few for contexts of {length:,}: put more files there, or leave that length out"
            )
        return self._describe(asked, documents, prompt, tokens)

    def _distractors(self, asked: Question, random: Random, room: int) -> tuple[list[str], bool]:
        """Documents that fill the room, near ones first; and whether there are no more."""
        excluded = {*asked.required, *asked.near}
        near = random.sample(asked.near, len(asked.near))
        far = random.sample(self.collection.documents, len(self.collection.documents))
        distractors: list[str] = []
        passed = 0
        for text in [*near, *(text for text in far if text not in excluded)]:
            cost = self._costs[text]
            if cost <= room:
                distractors.append(text)
                room -= cost
            else:
                passed += 1
                if passed > _PASSED_OVER:
                    break
        return distractors, not passed

    def _arranged(self, asked: Question, distractors: list[str], random: Random, depth: float) -> list[str]:
        """Return the documents of a text in their order; in the published one only as many as make whole steps."""
        documents = [*asked.required, *distractors]
        if self.gold_position == "published":
            whole = len(documents) // PUBLISHED_STEP * PUBLISHED_STEP
            documents = documents[: max(whole, len(asked.required))] if whole else documents
            Random(PUBLISHED_SEED).shuffle(documents)
            return documents
        gold = asked.gold[0]
        rest = [text for text in documents if text != gold]
        random.shuffle(rest)
        rest.insert(int(depth * len(documents)), gold)
        return rest

    def _describe(self, asked: Question, documents: list[str], prompt: str, tokens: list[int]) -> Sample:
        place = documents.index(asked.gold[0])
        elsewhere = any(
            contains(text, answer) for text in documents if text not in asked.gold for answer in asked.answers
        )
        about: dict[str, Any] = {
            "question": asked.id,
            "position": place,
            "documents": len(documents),
        }
        if len(asked.gold) > 1:
            about["supporting_depths"] = [round(depth_of(documents, documents.index(t)), 6) for t in asked.gold]
        return Sample(prompt, tokens, [Gold(depth_of(documents, place), asked.answers)], about, not elsewhere)


@dataclass
class QuestionAnswering(LongTextTask):
    """Questions about one of many documents.

    Args:
        gold_position: even spreads answers evenly over the text; published puts them where the published script does,
            which follows from the number of documents.
    """

    folder: ClassVar[str]

    gold_position: GoldPosition = "even"
    data_dir: Place = "data"
    data_hash: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gold_position not in ("even", "published"):
            raise UserError(f"{self.name}: gold_position {self.gold_position!r} is neither even nor published")

    @abstractmethod
    def read(self, folder: Path) -> Collection:
        """Return the data set in `data_dir`."""

    def make_source(self, tokenizer: Tokenizer) -> Source:
        """See :meth:`LongTextTask.make_source`."""
        collection = self.read(Path(self.data_dir).expanduser())
        if self.data_hash not in (None, self._found_hash):
            raise UserError(f"{collection.path}: its hash is {self._found_hash}, not data_hash {self.data_hash}")
        return QuestionSource(collection, tokenizer, self.seed, self.new_tokens, self.gold_position)

    @cached_property
    def _found_hash(self) -> str:
        return fingerprint(sorted((Path(self.data_dir).expanduser() / self.folder).glob("*.json")))

    def settings(self) -> dict[str, Any]:
        """The data count by their content, not by their place."""
        return {**super().settings(), "data_dir": self.folder, "data_hash": self._found_hash}


@dataclass
class Squad(QuestionAnswering):
    """`qa_1`: other paragraphs of the same article are the first distractors."""

    name: ClassVar[str] = "qa_1"
    folder: ClassVar[str] = "squad"

    def read(self, folder: Path) -> Collection:
        """See :func:`read_squad`."""
        return read_squad(folder)


@dataclass
class Hotpot(QuestionAnswering):
    """`qa_2`: the answer needs two of a question's own ten paragraphs; paragraphs of other questions fill the text.

    The depth is that of the first supporting paragraph that holds the answer (of the first one where the answer is
    yes or no); the other one stands anywhere.
    """

    name: ClassVar[str] = "qa_2"
    folder: ClassVar[str] = "hotpotqa"

    def read(self, folder: Path) -> Collection:
        """See :func:`read_hotpot`."""
        return read_hotpot(folder)

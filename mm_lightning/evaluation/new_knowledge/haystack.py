"""Haystacks with needles, as RULER defines them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Literal

from mm_lightning.data.source_files import ReadSettings, list_files
from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.new_knowledge.question_source import DEFAULT_LIMIT, Gold, Sample, Source, encoded, fullest
from mm_lightning.evaluation.new_knowledge.words import ADJECTIVES, NOUNS
from mm_lightning.text_files import read_text

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = [round(100 * n / 39) for n in range(40)]
"""Where the published script inserts needles into prose, in percent of its sentences."""

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]”’]* ")


@dataclass(frozen=True)
class NeedleKind:
    """One of the published tasks.

    Attributes:
        haystack: what needles are hidden in: a repeated noise sentence, prose, or other needles.
        key: what keys are: words (an adjective and a noun) or uuids.
        value: what values are: numbers of seven digits or uuids.
        keys: different keys in the text.
        values: of each key.
        queries: keys that are asked for.
    """

    haystack: Literal["noise", "essay", "needle"]
    key: Literal["words", "uuids"] = "words"
    value: Literal["numbers", "uuids"] = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


def needle(kind: str, key: str, value: str) -> str:
    """Return the published sentence; `kind` is numbers or uuids."""
    return f"One of the special magic {kind} for {key} is: {value}."


def needle_prompt(context: str, kind: str, keys: Sequence[str], answers: int) -> str:
    """Return the published prompt, singular where one answer is asked for.

    Args:
        context: the haystack with its needles.
        kind: what values are, in the plural.
        keys: those asked for.
        answers: how many values there are to tell.
    """
    query = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + ", and " + keys[-1]
    one = answers == 1
    kind = kind.removesuffix("s") if one else kind
    what = f"special magic {kind} for {query} mentioned in the provided text"
    return (
        f"{'A' if one else 'Some'} special magic {kind} {'is' if one else 'are'} hidden within the following text. "
        f"Make sure to memorize it. I will quiz you about the {kind} afterwards.\n{context}\n"
        f"What {'is' if one else 'are all'} the {what}? The {what} {'is' if one else 'are'}"
    )


def prose(place: str) -> list[Path]:
    """Return a .txt file, or those of a folder or a glob, in the order of their names.

    Raises:
        UserError: there is none.
    """
    try:
        return [Path(file.url) for file in list_files([place], ReadSettings(suffixes=(".txt",)))]
    except UserError as error:
        raise UserError(f"{error}: put books or essays there, or name other .txt files (--essays)") from error


class Essays:
    """Prose as sentences, from .txt files one after the other."""

    def __init__(self, place: str, tokenizer: Tokenizer) -> None:
        self.sentences: list[str] = []
        for path in prose(place):
            self.sentences += [s for s in _SENTENCE_END.split(" ".join(read_text(path).split())) if s]
        if not self.sentences:
            raise UserError(f"there is no text in {place}")
        some = self.sentences[:: max(len(self.sentences) // 1000, 1)]
        self.unit = sum(len(ids) for ids in tokenizer.encode_batch(some)) / len(some)

    def take(self, start: int, count: int) -> list[str]:
        """So many sentences from some place on; behind the last comes the first again."""
        whole = len(self.sentences)
        return [self.sentences[(start + n) % whole] for n in range(count)]


class NeedleSource(Source):
    """Haystacks as long as fits.

    Args:
        kind: which task.
        tokenizer: of the model.
        seed: of everything that is drawn.
        new_tokens: room for the answer.
        essays: .txt files of prose, a folder of them or a glob; read only where the haystack is prose.
    """

    def __init__(self, kind: NeedleKind, tokenizer: Tokenizer, seed: int, new_tokens: int, essays: str) -> None:
        self.kind, self.tokenizer, self.seed, self.new_tokens, self._place = kind, tokenizer, seed, new_tokens, essays

    @cached_property
    def _essays(self) -> Essays:
        return Essays(self._place, self.tokenizer)

    @cached_property
    def _unit(self) -> float:
        """Return about how many tokens a piece of the haystack has."""
        if self.kind.haystack == "essay":
            return self._essays.unit
        text = NOISE if self.kind.haystack == "noise" else self._filler(Random(0), set())
        return len(self.tokenizer.encode(text + "\n"))

    def questions(self, length: int, limit: int | None) -> tuple[list[str], int]:
        """See :meth:`Source.questions`: there are as many as wanted.

        Raises:
            UserError: the length is too short.
        """
        self.sample("0", length, 0.0)
        return [str(number) for number in range(DEFAULT_LIMIT if limit is None else limit)], 0

    def sample(self, question: str, length: int, depth: float) -> Sample:
        """See :meth:`Source.sample`."""
        name = f"{self.seed}:{length}:{question}"
        random = Random(name)
        taken: set[str] = set()
        pairs = [
            (key, self._value(random))
            for key in (self._key(random, taken) for _ in range(self.kind.keys))
            for _ in range(self.kind.values)
        ]
        asked = random.sample(list(dict.fromkeys(key for key, _ in pairs)), self.kind.queries)
        first = next(pair for pair in pairs if pair[0] == asked[0])  # stands at the depth that is wanted
        others = [pair for pair in pairs if pair != first]
        random.shuffle(others)

        def build(count: int) -> Sample:
            hay, placed = self._hidden(count, first, others, depth, Random(f"{name}:haystack"), set(taken))
            context = (" " if self.kind.haystack == "essay" else "\n").join(hay)
            values = [value for key in asked for k, value in pairs if k == key]
            prompt = needle_prompt(context, self.kind.value, asked, len(values))
            gold = [Gold(placed[value], [value]) for value in values]
            return Sample(prompt, encoded(self.tokenizer, prompt), gold, {"question": asked})

        room = length - self.new_tokens
        sample = fullest(build, room, int(room / self._unit), self._unit, int(2 * room / self._unit) + 10)
        if sample is None:
            raise UserError(f"{length:,} tokens are too few for needles and an answer of {self.new_tokens} tokens")
        return sample

    def _hidden(
        self,
        count: int,
        first: tuple[str, str],
        others: list[tuple[str, str]],
        depth: float,
        random: Random,
        taken: set[str],
    ) -> tuple[list[str], dict[str, float]]:
        """`count` pieces of haystack with the needles among them, and the depth of each needle by its value."""
        if self.kind.haystack == "essay":
            start = random.randrange(len(self._essays.sentences))
            hay = self._essays.take(start, count)
            points = [DEPTHS[int(depth * len(DEPTHS))]]
            points += random.sample([point for point in DEPTHS if point not in points], len(others))
            places = [count * point // 100 for point in points]
        else:
            noise = self.kind.haystack == "noise"
            hay = [NOISE if noise else self._filler(random, taken) for _ in range(count)]
            places = [int(depth * (count + 1)), *(random.randrange(count + 1) for _ in others)]
        # Inserted from the end, so that the places before stay what they are.
        for place, (key, value) in sorted(zip(places, [first, *others], strict=True), key=lambda p: -p[0]):
            hay.insert(place, needle(self.kind.value, key, value))
        depths = [place / count if count else 0.0 for place in places]
        return hay, {value: x for x, (_, value) in zip(depths, [first, *others], strict=True)}

    def _filler(self, random: Random, taken: set[str]) -> str:
        return needle(self.kind.value, self._key(random, taken), self._value(random))

    def _key(self, random: Random, taken: set[str]) -> str:
        """Return a key that was not taken, which it then is."""
        while True:
            if self.kind.key == "uuids":
                key = _uuid(random)
            elif len(taken) < len(ADJECTIVES) * len(NOUNS):
                key = f"{random.choice(ADJECTIVES)}-{random.choice(NOUNS)}"
            else:
                raise UserError(f"there are only {len(taken):,} different keys of two words: a shorter context")
            if key not in taken:
                taken.add(key)
                return key

    def _value(self, random: Random) -> str:
        return _uuid(random) if self.kind.value == "uuids" else str(random.randint(10**6, 10**7 - 1))


def _uuid(random: Random) -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))

"""The parts of a question about a long text: its length, where the answer stands, the score."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from mm_lightning.data.tokenizer import Tokenizer

DEFAULT_LIMIT = 500
"""Questions of each length, as many as are published, where there could be any number."""

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Gold:
    """A piece of the text that holds an answer.

    Attributes:
        depth: share of the text before its middle, 0 to 1.
        references: what of it counts as found, any of them.
    """

    depth: float
    references: list[str]


@dataclass(frozen=True)
class Sample:
    """A question about a text.

    Attributes:
        prompt: the text and the question, up to where the answer begins.
        tokens: of the prompt, with the token that begins a document.
        gold: what must be found; the first of it is what was put at the depth that was wanted.
        about: more for the record.
        alone: whether the answer stands nowhere else in the text; None where that is not asked.
    """

    prompt: str
    tokens: list[int]
    gold: list[Gold]
    about: dict[str, Any] = field(default_factory=dict)
    alone: bool | None = None


class Source(ABC):
    """The source of the questions of a task, for one tokenizer."""

    @abstractmethod
    def questions(self, length: int, limit: int | None) -> tuple[list[str], int]:
        """Questions that can be asked within `length` tokens.

        Returns:
            the ids of `limit` of them, or of all there are, in an order drawn by the seed, and how many before the last
            of them were left out because what they need does not fit.
        """

    @abstractmethod
    def sample(self, question: str, length: int, depth: float) -> Sample:
        """A question by its id.

        Args:
            question: its id.
            length: tokens that there are, those of the answer included.
            depth: share of the text, 0 to 1, that is to stand before the answer.
        """


def fingerprint(files: Iterable[Path]) -> str:
    """Return a hash of the names and the contents of some files."""
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def spread(count: int, random: Random) -> list[float]:
    """Return numbers in [0, 1), each beginning evenly spread: multiples of the golden ratio from a drawn start.

    That more samples only add to fewer is why they are not simply `count` equal steps.
    """
    start = random.random()
    return [(start + n * _GOLDEN) % 1 for n in range(count)]


def fullest(build: Callable[[int], Sample], length: int, guess: int, unit: float, limit: int) -> Sample | None:
    """Return the longest sample that fits, of those made of 0, 1, ... `limit` pieces; None if none does.

    Args:
        build: makes it of so many pieces.
        length: tokens of a prompt that there is room for, the one that begins a document included.
        guess: about how many pieces fit.
        unit: about how many tokens a piece has.
        limit: pieces that there are.
    """
    best, low, high = None, -1, limit + 1
    n = min(max(guess, 0), limit)
    measured: list[tuple[int, int]] = []
    while high - low > 1:
        sample = build(n)
        used = len(sample.tokens)
        if used <= length:
            best, low = sample, n
        else:
            high = n
        if measured and measured[-1][0] != n:
            last, used_then = measured[-1]
            unit = max((used - used_then) / (n - last), 1.0)
        measured.append((n, used))
        n = min(max(n + math.floor((length - used) / unit), low + 1), high - 1)
    return best


def contains(text: str, reference: str) -> bool:
    """Return whether a reference stands in a text, in any case of letters: the published rule."""
    return reference.lower() in text.lower()


def share_found(answer: str, gold: Gold) -> float:
    """1 if any reference of a piece stands in the answer, else 0."""
    return float(any(contains(answer, reference) for reference in gold.references))


def encoded(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens of a prompt, with the one that begins a document."""
    return [tokenizer.bos, *tokenizer.encode(prompt)]


def depth_of(parts: Sequence[str], place: int) -> float:
    """Share of the characters of some parts that stand before the middle of one of them."""
    before, whole = sum(map(len, parts[:place])), sum(map(len, parts))
    return (before + len(parts[place]) / 2) / whole

"""Prompts of demonstrations: which examples, in which order, with which labels, joined how."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mm_lightning.errors import UserError

if TYPE_CHECKING:
    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.evaluation.in_context.datasets import Dataset, Example

Labels = Literal["semantic", "anonymous"]

Strategy = Literal["newline", "newline-shuffled", "space", "space-shuffled"]
"""The delimiter between the parts of a prompt, and whether the examples of each shot are shuffled."""

STRATEGIES: tuple[Strategy, ...] = ("newline", "newline-shuffled", "space", "space-shuffled")


def shown_labels(dataset: Dataset, labels: Labels) -> dict[str, str]:
    """Return the label shown for each class: its name, or `class_00`, `class_01`, ... in the order of the data set."""
    if labels == "semantic":
        return {name: name for name in dataset.labels}
    width = max(2, len(str(len(dataset.labels) - 1)))
    return {name: f"class_{number:0{width}}" for number, name in enumerate(dataset.labels)}


def draw_shots(dataset: Dataset, shots: int, seed: int) -> list[list[Example]]:
    """Return demonstrations: one example of every class in each shot, in the order of the classes.

    The first shots of a seed are the same whatever their number, so that more shots only add examples.

    Raises:
        UserError: a class has too few examples; it is named.
    """
    by_class: dict[str, list[Example]] = {name: [] for name in dataset.labels}
    for example in dataset.train:
        by_class[example.label].append(example)
    for name, examples in by_class.items():
        if len(examples) < shots:
            raise UserError(
                f"{dataset.name}: class {name!r} has {len(examples)} examples to show, {shots} shots need {shots} of "
                f"each: ask for fewer --shots"
            )
        random.Random(f"demonstrations of {name} in {dataset.name}, seed {seed}").shuffle(examples)
    return [[by_class[name][shot] for name in dataset.labels] for shot in range(shots)]


@dataclass(frozen=True)
class Style:
    """The form of prompts.

    The parts of a prompt - the instruction, and of each example its question and its answer - are joined by one
    delimiter. A text is cut into segments where a tokenizer sees a boundary anyway: behind a line end, before a space.

    Args:
        dataset: of the examples.
        labels: semantic or anonymous.
        strategy: the delimiter, and the order within shots.
    """

    dataset: Dataset
    labels: Labels
    strategy: Strategy

    @property
    def delimiter(self) -> str:
        """The text between all parts."""
        return "\n" if self.strategy.startswith("newline") else " "

    @property
    def names(self) -> dict[str, str]:
        """The labels by class, as shown."""
        return shown_labels(self.dataset, self.labels)

    def demonstrations(self, shots: int, seed: int) -> str:
        """Return the instruction and the examples, the beginning of the prompts of all queries."""
        parts = [self.dataset.instruction]
        names = self.names
        for number, examples in enumerate(draw_shots(self.dataset, shots, seed)):
            if self.strategy.endswith("shuffled"):
                random.Random(f"order of shot {number}, seed {seed}").shuffle(examples)
            for example in examples:
                parts += [example.question, f"{example.lead} {names[example.label]}"]
        return self.delimiter.join(parts) + self.delimiter.strip(" ")

    def query(self, example: Example) -> str:
        """Return the text behind the demonstrations: the question, up to where the label is due."""
        return self.delimiter.strip("\n") + example.question + self.delimiter + example.lead

    @property
    def terminator(self) -> str:
        """The text that ends a label: the line end, or the beginning of the next example."""
        if self.delimiter == "\n":
            return "\n"
        word = re.match(r"\w*", self.dataset.asks)
        begin = f" {word.group() if word else ''}"
        inside = begin == " " or any(begin in name for name in self.names.values())
        return f" {self.dataset.asks}" if inside else begin

    @property
    def answers(self) -> list[str]:
        """The possible answers in the order of the classes: ` label` and the terminator."""
        return [f" {name}{self.terminator}" for name in self.names.values()]


def digest(text: str) -> str:
    """Return a hash of a text, by which records name the demonstrations before them."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode_after(tokenizer: Tokenizer, before: str, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts that follow another one.

    Args:
        tokenizer: of them.
        before: the end of what stands before them, enough of it to decide how they are cut into tokens.
        texts: of which none may change the tokens of what is before it.

    Raises:
        UserError: the tokenizer joins the end of one text and the beginning of the other in one token.
    """
    head = tokenizer.encode(before)
    whole = tokenizer.encode_batch([before + text for text in texts])
    for text, ids in zip(texts, whole, strict=True):
        if ids[: len(head)] != head:
            raise UserError(
                f"the tokenizer {tokenizer.name} joins {before[-20:]!r} and {text[:20]!r} in one token: "
                f"demonstrations cannot be read apart from the question"
            )
    return [ids[len(head) :] for ids in whole]

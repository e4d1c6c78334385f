"""Multi-query associative recall (Zoology, arXiv 2312.04927): key-value pairs, then some of the keys again.

An example of N pairs and length L, which is the context of a row, is

    k1 v1 k2 v2 ... kN vN   . .  k2 v2  . .  . .  k1 v1 ...

Each key is asked for once. The gaps between the pairs and their questions, counted in slots of two tokens, follow a
power law: slot g = 1, 2, ... is drawn with a probability that falls as g^(power - 1), without replacement. Only the
answers are predicted; in training and validation all other tokens are marked as read alone.

In Zoology a question is followed by filling and its answer is a label beside the text. Here the answer stands in the
text, where a network that predicts the next token has it; no key is asked for twice, so that no answer helps another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, ClassVar

import numpy as np

from mm_lightning.data.generator import SPLITS, Generator
from mm_lightning.data.manifest import Split
from mm_lightning.data.packing import write_split
from mm_lightning.data.progress import PrepareProgress
from mm_lightning.data.tokenizer import BEGIN, END, Tokenizer, load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.ranges import Count, Portion, Range, Seed, check_fields

FILLING = 0
Vocabulary = Annotated[int, Range(8, 2**24)]


@dataclass(frozen=True)
class RecallExample:
    """An example of associative recall.

    Attributes:
        tokens: the example, without the token that begins a document.
        answers: the places of the answers in it.
    """

    tokens: list[int]
    answers: list[int]


def draw_example(random: Random, vocabulary: int, length: int, pairs: int, power: float, fill: bool) -> RecallExample:
    """Return an example; of the vocabulary, 0 is filling, the lower half are keys and the upper half are values.

    Args:
        random: where it comes from.
        vocabulary: V, tokens of the task.
        length: L, an even number of at least four times the pairs.
        pairs: N, fewer than half the vocabulary.
        power: exponent of the gaps; 1 makes all equally probable.
        fill: fill with random tokens instead of 0.
    """
    half, slots = vocabulary // 2, length // 2 - pairs
    keys, values = random.sample(range(1, half), pairs), random.sample(range(half, vocabulary), pairs)
    tokens = [token for pair in zip(keys, values, strict=True) for token in pair]
    tokens += [random.randrange(vocabulary) if fill else FILLING for _ in range(2 * slots)]
    # the first arrivals of exponential clocks are draws without replacement, with probabilities as their rates
    arrivals = [random.expovariate(gap ** (power - 1)) for gap in range(1, slots + 1)]
    chosen = sorted(range(slots), key=arrivals.__getitem__)[:pairs]
    for key, value, slot in zip(keys, values, chosen, strict=True):
        at = 2 * (pairs + slot)
        tokens[at : at + 2] = key, value
    return RecallExample(tokens, sorted(2 * (pairs + slot) + 1 for slot in chosen))


@dataclass
class MQARConfig(Generator):
    """Multi-query associative recall (Zoology): values are recalled by their keys, which are given once.

    The length of an example is the context of a row, at least four times the pairs. The task `mqar` of `mm evaluate`
    asks at other lengths and numbers of pairs.

    Args:
        pairs: of keys and values in an example.
        vocabulary: tokens of the task; those that begin and end a document come on top.
        power: exponent of the gaps between a pair and its question, 1 for any gap alike.
        random_fill: fill with random tokens between the questions.
        train_examples: for training.
        test_examples: for validation. They do not depend on train_examples, and fewer are the first of more.
        seed: of all examples.
    """

    name: ClassVar[str] = "mqar"
    default_context: ClassVar[int] = 64
    marks: ClassVar[bool] = True

    pairs: Count = 4
    vocabulary: Vocabulary = 8192
    power: Portion = 0.01
    random_fill: bool = False
    train_examples: Count = 100_000
    test_examples: Count = 3_000
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, "mqar: ")

    def count(self, split: str) -> int:
        return self.train_examples if split == "train" else self.test_examples

    def examples(self, split: str, length: int) -> Iterator[RecallExample]:
        """Yield the examples of a split: number i depends on seed, split, length, pairs and i alone."""
        self.check_context(length)
        for index in range(self.count(split)):
            random = Random(f"recall of seed {self.seed}, {split} {index}, {length} tokens, {self.pairs} pairs")
            yield draw_example(random, self.vocabulary, length, self.pairs, self.power, self.random_fill)

    def check_context(self, context: int) -> None:
        """Raise a UserError where the length has no room for pairs and questions, or the vocabulary too few keys."""
        if context % 2 or context < 4 * self.pairs or self.pairs >= self.vocabulary // 2:
            raise UserError(
                f"mqar: {self.pairs} pairs need an even context_length of at least {4 * self.pairs}, got {context}, "
                f"and a vocabulary of at least {2 * self.pairs + 2}, got {self.vocabulary}"
            )

    def make_tokenizer(self, path: Path) -> Tokenizer:
        return recall_tokenizer(path, self.vocabulary)

    def fill(self, folder: Path, work: Path, row: int, progress: bool) -> tuple[Tokenizer, dict[str, Split]]:
        """Write tokenizer and shards, in which all but the answers are marked as tokens that are not predicted."""
        tokenizer = self.make_tokenizer(work / "tokenizer.json")
        splits = {}
        with PrepareProgress(sum(map(self.count, SPLITS)), progress, "generating") as bar:
            for split in SPLITS:
                parts = []
                for example in self.examples(split, row - 1):
                    part = np.array([tokenizer.bos, *example.tokens], np.int32)
                    predicted = np.add(example.answers, 1)
                    part[1:] = ~part[1:]
                    part[predicted] = ~part[predicted]
                    parts.append(part)
                    bar.report(1, row, 1)
                splits[split] = write_split(folder, work, split, parts, row, tokenizer.bos, len(parts) * (row - 1))
        return tokenizer, splits


def recall_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """Write the tokenizer.json of the task: `.` is filling, k1, k2, ... are keys and v1, v2, ... values."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    half = vocabulary // 2
    names = [".", *(f"k{n}" for n in range(1, half)), *(f"v{n}" for n in range(1, vocabulary - half + 1)), BEGIN, END]
    inner = tokenizers.Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, "."))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([BEGIN, END])
    path.write_text(inner.to_str(pretty=True) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(path)
    tokenizer.name = "keys and values of associative recall"
    return tokenizer

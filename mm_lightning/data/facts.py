"""Generated facts: a language in which a small network can learn to be asked about documents.

A document is a line of facts about one name, and a question names a fact and is answered by its value:

    # mira color tavu . mira food belo . mira plant dano . mira song fepa .
    ? mira food belo .

Names and values are words of two syllables, drawn anew for every text: nothing can be known but what the documents
say. A training text is some documents and then questions about them, each fact asked at most once. The folder is
prepared for training like that of RegBench: texts are never cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import ClassVar

from mm_lightning.data.generator import Generator
from mm_lightning.data.tokenizer import BEGIN, END, Tokenizer, load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.ranges import Count, Place, Seed, check_fields

OWN = "facts"
"""The tokenizer of this language: a token a syllable, an attribute, a sign."""

ATTRIBUTES = ("bird", "city", "color", "drink", "food", "plant", "song", "sport")
FACTS = 4  # of a document
SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou"]
WORDS = len(SYLLABLES) ** 2


def word(number: int) -> str:
    """Word 0 <= `number` < WORDS of the language."""
    first, second = divmod(number, len(SYLLABLES))
    return SYLLABLES[first] + SYLLABLES[second]


@dataclass(frozen=True)
class FactDocument:
    """The facts about one name: the values of some attributes, in the order of the text."""

    name: str
    facts: dict[str, str]

    @property
    def text(self) -> str:
        """Its line, with the line's end."""
        return "#" + "".join(f" {self.name} {attribute} {value} ." for attribute, value in self.facts.items()) + "\n"

    def question(self, attribute: str) -> str:
        """The question, up to where its answer begins."""
        return f"? {self.name} {attribute}"

    def answer(self, attribute: str) -> str:
        """Return the answer to the question, with the line's end."""
        return f" {self.facts[attribute]} .\n"


def draw_documents(random: Random, count: int) -> list[FactDocument]:
    """Documents about different names.

    Args:
        random: where they come from; fewer documents are the first of more.
        count: at most WORDS.
    """
    taken: set[int] = set()
    documents = []
    for _ in range(count):
        name = random.randrange(WORDS)
        while name in taken:
            name = random.randrange(WORDS)
        taken.add(name)
        facts = {attribute: word(random.randrange(WORDS)) for attribute in random.sample(ATTRIBUTES, FACTS)}
        documents.append(FactDocument(word(name), facts))
    return documents


def training_text(random: Random, tokenizer: Tokenizer, room: int) -> str:
    """Documents and questions about them.

    Args:
        random: where they come from.
        tokenizer: for counting.
        room: tokens that there are, those around the text included.

    Raises:
        UserError: there is no room for a document and a question.
    """
    (some,) = draw_documents(Random(0), 1)
    line = len(tokenizer.encode(some.text))
    # About as many as leave room for a question for every second fact.
    documents = draw_documents(random, random.randint(1, max(1, 2 * room // (3 * line))))
    asked = [(document, attribute) for document in documents for attribute in document.facts]
    random.shuffle(asked)
    questions = [document.question(attribute) + document.answer(attribute) for document, attribute in asked]
    text = "".join(document.text for document in documents)
    costs = [len(ids) for ids in tokenizer.encode_batch([text, *questions])]
    fitting = sum(cost <= room - 2 for cost in accumulate(costs)) - 1
    # Where a tokenizer joins what stands on both sides of a line's end, the whole may have other tokens.
    while fitting > 0 and len(tokenizer.encode(text + "".join(questions[:fitting]))) > room - 2:
        fitting -= 1
    if fitting < 1:
        raise UserError(f"facts: {room} tokens are too few for a document and a question: give a longer context_length")
    return text + "".join(questions[:fitting])


@dataclass
class FactsConfig(Generator):
    """Made-up facts with questions about them, which a small network learns to answer.

    The task `generated_facts` of `mm evaluate` asks what it has learned.

    Args:
        documents: texts for training, each with its own facts.
        test_documents: texts for validation. They do not depend on `documents`, and fewer training texts are the
            first of more.
        seed: of all facts.
        tokenizer: `facts`, a token a syllable; or `bytes`, or a tokenizer.json (or a folder holding one).
    """

    name: ClassVar[str] = "facts"
    default_context: ClassVar[int] = 512

    documents: Count = 4000
    test_documents: Count = 200
    seed: Seed = 0
    tokenizer: Place = OWN

    def __post_init__(self) -> None:
        check_fields(self, "facts: ")

    def count(self, split: str) -> int:
        return self.documents if split == "train" else self.test_documents

    def texts(self, split: str, tokenizer: Tokenizer, room: int) -> Iterator[str]:
        """Yield the texts of a split: number i depends on seed, split, room, tokenizer and i alone."""
        for index in range(self.count(split)):
            yield training_text(Random(f"facts of seed {self.seed}, {split} text {index}"), tokenizer, room)

    def make_tokenizer(self, path: Path) -> Tokenizer:
        if self.tokenizer == OWN:
            return syllable_tokenizer(path)
        tokenizer = load_tokenizer(self.tokenizer)
        tokenizer.save(path)
        return tokenizer

    def identity(self) -> tuple[str, ...]:
        """Return the content of the tokenizer, which its place does not tell."""
        return (OWN if self.tokenizer == OWN else load_tokenizer(self.tokenizer).sha256,)


def syllable_tokenizer(path: Path) -> Tokenizer:
    """Write the tokenizer.json of this language. What does not belong to it is left out of a text."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    words = [" " + attribute for attribute in ATTRIBUTES]
    names = [*words, *SYLLABLES, *(" " + syllable for syllable in SYLLABLES), " .", "#", "?", "\n", BEGIN, END]
    inner = tokenizers.Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, END))
    attributes = "|".join(words)
    pattern = tokenizers.Regex(rf"(?:{attributes})(?![a-z])| ?[bdfghjklmnprstvz][aeiou]| \.|#|\?|\n")
    inner.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    inner.add_special_tokens([BEGIN, END])
    inner.decoder = decoders.Fuse()
    path.write_text(inner.to_str(pretty=True) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(path)
    tokenizer.name = "syllables of generated facts"
    return tokenizer

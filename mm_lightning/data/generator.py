"""Data sets that a program makes, prepared like those of any text: RegBench, made-up facts, recall, a user's own."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from mm_lightning.class_options import Option, field_default, field_help
from mm_lightning.console import say
from mm_lightning.data.folder import begin, claimed, finish, remove_shards, reuse, token_type
from mm_lightning.data.manifest import FILE, FORMAT_VERSION, Manifest, Split, crc32
from mm_lightning.data.packing import write_split
from mm_lightning.data.progress import PrepareProgress
from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.options import nearest
from mm_lightning.ranges import hints
from mm_lightning.user_classes import load_class

GENERATORS = {
    "regbench": "mm_lightning.data.regbench.RegBenchConfig",
    "facts": "mm_lightning.data.facts.FactsConfig",
    "mqar": "mm_lightning.data.mqar.MQARConfig",
}
"""Built-in generators by their short names."""

SPLITS = ("train", "validation")


class Generator(ABC):
    """The texts of a data set that a program makes.

    Subclasses are dataclasses. Their fields are options of `mm data generate`, which what the class's docstring says of
    them explains, and may be set in YAML under `data.generate`. Texts lie whole in rows, several in each.

    Attributes:
        name: of the data set; of a class in a user's own module it is module.Class.
        default_context: tokens of a row by default, without the last one, which is only predicted.
        least_context: the fewest that leave room for every text.
        files: names of the files that `fill` writes beside the shards.
        marks: whether `fill` marks tokens as read but never predicted, which it writes as ~token in int32.
    """

    name: ClassVar[str]
    default_context: ClassVar[int] = 1024
    least_context: ClassVar[int] = 1
    files: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Name a class that has no name of its own by its module."""
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}.{cls.__qualname__}"

    @abstractmethod
    def count(self, split: str) -> int:
        """Return the number of texts of a split, train or validation."""

    def check_context(self, context: int) -> None:
        """Raise a UserError where rows for this context cannot hold the texts."""
        if context < self.least_context:
            raise UserError(f"context_length {context} is too short for {self.name}: at least {self.least_context}")

    def texts(self, split: str, tokenizer: Tokenizer, room: int) -> Iterator[str]:
        """Yield the texts of a split, the same each time; a generator that is no text overrides `fill` instead.

        Args:
            split: train or validation.
            tokenizer: for counting tokens.
            room: tokens of a text at most, those around it included.
        """
        raise NotImplementedError(f"{self.name} has no method texts")

    def make_tokenizer(self, path: Path) -> Tokenizer:
        """Return the tokenizer, written to a path; by default a token is a byte."""
        tokenizer = load_tokenizer("bytes")
        tokenizer.save(path)
        return tokenizer

    def identity(self) -> tuple[str, ...]:
        """Return what the texts follow from besides the fields: other identities are other data sets."""
        return ()

    def fill(self, folder: Path, work: Path, row: int, progress: bool) -> tuple[Tokenizer, dict[str, Split]]:
        """Write tokenizer and shards.

        Args:
            folder: the prepared folder.
            work: for its unfinished work, tokenizer.json included.
            row: tokens of a row.
            progress: show a progress bar.

        Raises:
            UserError: a text is longer than a row, or a split has none.
        """
        tokenizer = self.make_tokenizer(work / "tokenizer.json")
        splits = {}
        with PrepareProgress(sum(map(self.count, SPLITS)), progress, "generating") as bar:
            for split in SPLITS:
                parts, text_bytes = [], 0
                for number, text in enumerate(self.texts(split, tokenizer, row)):
                    tokens = [tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]
                    if len(tokens) > row:
                        raise UserError(
                            f"{self.name}: text {number} of {split} has {len(tokens):,} tokens, more than a row of "
                            f"{row:,}: give a longer context_length"
                        )
                    parts.append(np.array(tokens, token_type(tokenizer)))
                    text_bytes += len(text.encode())
                    bar.report(1, len(tokens), 1)
                if not parts:
                    raise UserError(f"{self.name}: there are no texts for {split}, and each split needs one")
                splits[split] = write_split(folder, work, split, parts, row, tokenizer.bos, text_bytes)
        return tokenizer, splits


def find_generator(name: str) -> type[Generator]:
    """Return the generator of a short name, or a class in a user's own module as module.Class.

    Raises:
        UserError: there is none.
    """
    if name not in GENERATORS and "." not in name:
        near = nearest(name, GENERATORS)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(GENERATORS)}, and yours as module.Class"
        raise UserError(f"there is no generator {name!r}: {hint}")
    if name in GENERATORS:
        module, _, kind = GENERATORS[name].rpartition(".")
        return getattr(importlib.import_module(module), kind)
    return load_class(name, Generator)


def generator_options(name: str) -> dict[str, Option]:
    """Return the fields of the generator of a name as options."""
    kind = find_generator(name)
    options = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        options[field.name] = Option(hints(kind)[field.name], field_default(field), field_help(kind, field.name))
    return options


def generate_folder(
    generator: Generator, output: str | os.PathLike, context_length: int | None = None, progress: bool = True
) -> Manifest:
    """Generate a data set in `output`; return its manifest at once if it is there already.

    Args:
        generator: what is generated.
        output: the folder to make.
        context_length: tokens of a row without the last one; the generator's own number if not given.
        progress: show a progress bar.

    Raises:
        UserError: the context is too short, there is no space, or the folder holds something else.
    """
    context = context_length or generator.default_context
    generator.check_context(context)
    folder = Path(output).expanduser()
    fields = dataclasses.asdict(generator)  # type: ignore[call-overload]
    settings = {"sources": [generator.name], **fields, "context_length": context}
    content = json.dumps([FORMAT_VERSION, settings, *generator.identity()], sort_keys=True)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    with claimed(folder):
        if (folder / FILE).exists():
            return reuse(folder, settings, fingerprint)
        # at most two bytes a token for most tokenizers, twice while shards are written
        work = begin(folder, fingerprint, 4 * (context + 1) * sum(map(generator.count, SPLITS)))
        remove_shards(folder)  # all is generated again, by this version of the generator
        tokenizer, splits = generator.fill(folder, work, context + 1, progress)
        made = finish(
            folder,
            tokenizer,
            splits=splits,
            sources=[{"source": generator.name, "files": 0, "bytes": sum(split.bytes for split in splits.values())}],
            settings=settings,
            fingerprint=fingerprint,
            context_length=context,
            **({"dtype": "int32"} if generator.marks else {}),
            files={name: crc32(folder / name) for name in generator.files},
        )
    for name, split in made.splits.items():
        rows = split.sequences(context + 1)
        say(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens in {rows:,} rows of {context:,}",
            stderr=True,
        )
    say(f"prepared {folder}", stderr=True)
    return made

"""The commands `mm data ...` and `mm tokenizer ...`; what each needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import getdoc
from typing import Annotated, Any, Literal

from mm_lightning.class_options import Option, class_options, with_options
from mm_lightning.console import say
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.errors import UserError
from mm_lightning.ranges import Count, Name, Natural, Place, Seed, Text, VocabSize


def prepare(
    sources: list[Place] | Place, output: Place, progress: bool = True, **settings: Annotated[Any, PrepareConfig]
) -> None:
    """Turn text into a folder of tokens that `mm fit` trains from.

    Interrupted, it continues when run again. A folder with other contents is never overwritten.

    Args:
        sources: files, folders or globs of them, local or fsspec URLs (hf://datasets/ORG/NAME/...): text (.txt, .md,
            .rst, .py), .jsonl or .json (a JSON object a line), each also .gz or .zst, and .parquet; or `python-stdlib`:
            the standard library of this Python, or `python-packages`: the packages installed for it.
        output: folder to make.
        progress: show a progress bar.
    """
    config = PrepareConfig([sources] if isinstance(sources, str) else sources, **settings)
    from mm_lightning.data import prepare as preparation

    preparation.prepare(config, output, progress)


def _generator_options(names: Sequence[str]) -> dict[str, Option]:
    """Return the options of the generator that is named, if one is."""
    if not names:
        return {}
    from mm_lightning.data.generator import generator_options

    return generator_options(names[0])


@class_options("generator", _generator_options, "options of the generator")
def generate(
    generator: Name, output: Place, context_length: Count | None = None, progress: bool = True, **settings: Any
) -> None:
    """Make a data set by a program: a generator in a module of your own (docs/extending.md), or a built-in one.

    `mm data generate my_module.MyGenerator --help` shows the options of a generator too.

    Args:
        generator: module.Class, or regbench, facts or mqar.
        output: folder to make.
        context_length: tokens to train with: texts lie whole in rows for it, several in each. By default the
            generator's own number.
        progress: show a progress bar.
    """
    from mm_lightning.data.generator import find_generator, generate_folder

    generate_folder(find_generator(generator)(**settings), output, context_length, progress)


def __getattr__(name: str) -> Callable[..., None]:
    """Return the command `mm data NAME` of a built-in generator."""
    from mm_lightning.data.generator import GENERATORS, find_generator

    if name not in GENERATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def command(output: Place, context_length: Count | None = None, progress: bool = True, **settings: Any) -> None:
        generate(generator=name, output=output, context_length=context_length, progress=progress, **settings)

    kind = find_generator(name)
    about = (getdoc(kind) or "").split("\n\nArgs:")[0]
    command.__doc__ = f"""{about}

Args:
    output: folder to make.
    context_length: tokens to train with, by default {kind.default_context:,}: texts lie whole in rows for it.
    progress: show a progress bar."""
    return with_options(command, _generator_options([name]), "options of the generator")


def inspect(path: Place, samples: Natural = 3, seed: Seed = 0) -> None:
    """Show sizes, document lengths and decoded samples of a prepared folder.

    Args:
        path: the prepared folder.
        samples: how many samples to show of each split.
        seed: which samples.
    """
    from mm_lightning.data.inspect import inspect as print_summary

    print_summary(path, samples, seed)


def verify(path: Place, checksums: bool = True) -> None:
    """Check a prepared folder for missing, truncated, damaged or foreign files, and for wrong numbers.

    Args:
        path: the prepared folder.
        checksums: also read every shard, compare its checksum, and count documents, tokens and bytes again.

    Raises:
        UserError: there are problems; a line for each.
    """
    from mm_lightning.data.manifest import Manifest
    from mm_lightning.data.verify import verify as find_problems

    problems = find_problems(path, checksums)
    if problems:
        raise UserError("\n".join(problems))
    shards = sum(len(split.shards) for split in Manifest.load(path).splits.values())
    say(f"{path} is whole: {shards} shards" + (", checksums right, counted again" if checksums else ""))


def train_tokenizer(
    sources: list[Place] | Place,
    output: Place,
    vocab_size: VocabSize = 4096,
    tokenizer_bytes: Count = 50_000_000,
    text_key: Name = "text",
    separator: Text | None = None,
    suffixes: list[Name] | None = None,
    on_error: Literal["refuse", "skip"] = "refuse",
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Train a byte-level BPE tokenizer.

    Args:
        sources: text to read, as for `mm data prepare`.
        output: tokenizer.json to write.
        vocab_size: entries, the 256 bytes and 2 special tokens included.
        tokenizer_bytes: about how much text to train on, taken evenly over the documents.
        text_key: key of JSON lines, or column of parquet files, that holds the text.
        separator: in text files, the string between two documents.
        suffixes: the files of folders to read, as text unless known, instead of .txt, .jsonl, .json, .parquet and,
            where none of the last three is there, .md, .rst, .py.
        on_error: refuse stops at a file or row that cannot be read; skip leaves it out.
        overwrite: replace an existing output.
        progress: show a progress bar.
    """
    from pathlib import Path

    from mm_lightning.data import tokenizer_training
    from mm_lightning.data.prepare import skipped_line, training_texts
    from mm_lightning.outputs import check_output

    path = Path(output).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    all_sources = [sources] if isinstance(sources, str) else sources
    target = check_output(path, overwrite, all_sources)
    config = PrepareConfig(
        sources=all_sources,
        tokenizer="train",
        vocab_size=vocab_size,
        tokenizer_bytes=tokenizer_bytes,
        validation_fraction=0,
        text_key=text_key,
        separator=separator,
        suffixes=suffixes,
        on_error=on_error,
    )
    skipped: list[str] = []
    trained = tokenizer_training.train_tokenizer(training_texts(config, skipped=skipped), vocab_size, target, progress)
    if skipped:
        say(skipped_line(skipped), stderr=True)
    say(f"{path}: {trained.vocab_size} entries, sha256 {trained.sha256}")

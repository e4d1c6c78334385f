"""The commands `mm data ...` and `mm tokenizer ...`; what each needs is imported when it runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
        sources: one, or several as [a, b]: .txt, .jsonl, .json (a JSON object a line), each also .gz or .zst, and
            .parquet files, folders or globs of them, local or fsspec URLs, or `python-stdlib`: the standard library
            of this Python.
        output: folder to make.
        progress: show a progress bar.
    """
    config = PrepareConfig([sources] if isinstance(sources, str) else sources, **settings)
    from mm_lightning.data import prepare as preparation

    preparation.prepare(config, output, progress)


def regbench(
    output: Place,
    train_sequences: Count = 1000,
    test_sequences: Count = 1000,
    context_length: Count = 1024,
    seed: Seed = 0,
    progress: bool = True,
) -> None:
    """Generate RegBench, the synthetic benchmark of learning languages in context.

    Args:
        output: folder to make.
        train_sequences: for training, 1,000 to 40,000 in the papers.
        test_sequences: for validation, from automata that no training sequence has. They do not depend on
            train_sequences, and fewer training sequences are the first of more.
        context_length: what to train with: sequences lie whole in rows for it, several in each.
        seed: of all automata and words.
        progress: show a progress bar.
    """
    from mm_lightning.data.regbench import RegBenchConfig, prepare_regbench

    config = RegBenchConfig(train_sequences, test_sequences, seed)
    prepare_regbench(config, output, context_length, progress)


def facts(
    output: Place,
    documents: Count = 4000,
    test_documents: Count = 200,
    context_length: Count = 512,
    tokenizer: Place = "facts",
    seed: Seed = 0,
    progress: bool = True,
) -> None:
    """Generate documents of made-up facts with questions about them, which a small network learns to answer.

    The task `generated_facts` of `mm evaluate` asks what it has learned.

    Args:
        output: folder to make.
        documents: texts for training, each with its own facts.
        test_documents: texts for validation. They do not depend on `documents`, and fewer training texts are the
            first of more.
        context_length: what to train with: texts lie whole in rows for it.
        tokenizer: `facts`, a token a syllable; or `bytes`, or a tokenizer.json (or a folder holding one).
        seed: of all facts.
        progress: show a progress bar.
    """
    from mm_lightning.data.facts import FactsConfig, prepare_facts

    prepare_facts(FactsConfig(documents, test_documents, seed, tokenizer), output, context_length, progress)


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
        suffixes: the files of folders to read, as text unless known, instead of .txt, .jsonl, .json and .parquet.
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

"""Print the sizes, document lengths and samples of a prepared folder (`mm data inspect`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mm_lightning.console import print_table
from mm_lightning.data.manifest import Manifest, Split
from mm_lightning.data.shards import read_shard, unmarked
from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mm_lightning.terminal import display

_BAR = 40  # characters
_SAMPLE = 200  # tokens


def inspect(path: str | os.PathLike, samples: int = 3, seed: int = 0) -> None:
    """Print the manifest of a prepared folder, a histogram of document lengths, and decoded samples.

    Args:
        path: the folder.
        samples: how many samples to show of each split.
        seed: which samples.

    Raises:
        UserError: the folder has no manifest, or a shard cannot be read.
    """
    folder = Path(path).expanduser()
    manifest = Manifest.load(folder)
    tokenizer = load_tokenizer(folder)
    show_manifest(folder, manifest)
    for name, split in manifest.splits.items():
        display(f"\n{name}: documents by length in tokens")
        display("\n".join(histogram(split.length_histogram)))
        for begin, text in random_passages(folder / name, split, manifest.dtype, tokenizer, samples, seed):
            display(f"\n{name}, from token {begin:,}\n{text}")


def show_manifest(folder: Path, manifest: Manifest) -> None:
    """Print the counts of each split, the sources and the tokenizer."""
    rows: dict[str, Callable[[Split], str]] = {
        "documents": lambda s: f"{s.documents:,}",
        "tokens": lambda s: f"{s.tokens:,}",
        "bytes of text": lambda s: f"{s.bytes:,}",
        "bytes a token": lambda s: f"{s.bytes / s.tokens:.2f}",
        "unigram entropy, nats a token": lambda s: f"{s.unigram_entropy:.3f}",
        "unigram entropy, bits a byte": lambda s: f"{s.bits_per_byte(s.unigram_entropy):.3f}",
        "longest document, tokens": lambda s: f"{s.longest_document:,}",
        "shards": lambda s: f"{len(s.shards):,}",
    }
    splits = manifest.splits
    cells = [[name, *(cell(split) for split in splits.values())] for name, cell in rows.items()]
    tokenizer = manifest.tokenizer
    sources = "\n".join(f"{s['source']}: {s['files']:,} files, {s['bytes']:,} bytes" for s in manifest.sources)
    caption = (
        f"{sources}\ntokenizer {tokenizer['name']}, {tokenizer['vocab_size']:,} entries, sha256 "
        f"{tokenizer['sha256'][:12]}; tokens stored as {manifest.dtype}\n"
        f"skipped {len(manifest.skipped):,} files or rows, {manifest.empty_documents:,} empty documents"
    )
    print_table(["", *splits], cells, str(folder), caption)


def histogram(counts: list[int]) -> list[str]:
    """Return the bars of a histogram, one line for each power of two, from the first that has documents."""
    first = next((k for k, count in enumerate(counts) if count), 0)
    lines = []
    for k in range(first, len(counts)):
        bar = "█" * round(_BAR * counts[k] / max(counts)) or ("▏" if counts[k] else "")
        lines.append(f"{2**k:>12,} - {2 ** (k + 1) - 1:<12,} {bar} {counts[k]:,}")
    return lines


def random_passages(
    folder: Path, split: Split, dtype: str, tokenizer: Tokenizer, samples: int, seed: int
) -> list[tuple[int, str]]:
    """Return random passages of a split: the index of the first token, and the decoded text."""
    passages = []
    for begin in np.random.default_rng(seed).integers(split.tokens, size=samples).tolist():
        at = begin
        for shard in split.shards:
            if at < shard.tokens:
                tokens = unmarked(read_shard(folder / shard.file, dtype, shard.tokens)[at : at + _SAMPLE])
                passages.append((begin, tokenizer.decode(tokens.tolist(), special=True)))
                break
            at -= shard.tokens
    return passages

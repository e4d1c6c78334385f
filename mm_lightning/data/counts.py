"""Check the numbers of a manifest against each other, and count them again from the shards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mm_lightning.data.manifest import Manifest, Split, entropy
from mm_lightning.data.shards import HEADER, read_shard, unmarked
from mm_lightning.data.tokenizer import Tokenizer


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield the numbers of a manifest that contradict others in it; the shards are not read."""
    for name, split in manifest.splits.items():
        files = [shard.file for shard in split.shards]
        if files != [f"chunk-0-{number}.bin" for number in range(len(files))]:
            yield f"{name}: the shards are not chunk-0-0.bin, chunk-0-1.bin, ..., each once and in order"
        for shard in split.shards:
            if shard.bytes != HEADER + shard.tokens * np.dtype(manifest.dtype).itemsize:
                yield f"{name}: {shard.file} cannot have {shard.tokens} {manifest.dtype} tokens in {shard.bytes} bytes"
        stored = sum(shard.tokens for shard in split.shards)
        row = 1 if manifest.context_length is None else manifest.context_length + 1
        if split.tokens > stored or (row == 1 and split.tokens != stored) or stored % row:
            rows = "" if row == 1 else f" in rows of {row}"
            yield f"{name}: {split.tokens} tokens, the shards have {stored}{rows}"
        if split.documents != sum(split.length_histogram):
            yield f"{name}: {split.documents} documents, the histogram has {sum(split.length_histogram)}"
        longest = max((k for k, count in enumerate(split.length_histogram) if count), default=-1)
        if split.longest_document.bit_length() - 1 != longest:
            yield f"{name}: the longest document has {split.longest_document} tokens, which the histogram does not have"


def wrong_counts(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> Iterator[str]:
    """Count documents, tokens and bytes of the shards; yield each number of the manifest that differs."""
    for name, split in manifest.splits.items():
        counts = _count(folder / name, manifest, split, tokenizer)
        if counts.largest >= tokenizer.vocab_size:
            yield f"{name}: token {counts.largest} is beyond the {tokenizer.vocab_size} entries of the tokenizer"
            continue
        text = tokenizer.text_bytes(counts.frequencies)
        frequencies = counts.frequencies.copy()
        frequencies[tokenizer.bos] -= counts.documents
        pairs = {
            "documents": (split.documents, counts.documents),
            "tokens": (split.tokens, counts.tokens),
            "bytes of text": (split.bytes, split.bytes if text is None else text),
            "tokens in the longest document": (split.longest_document, counts.longest),
            "documents by length": (split.length_histogram, np.trim_zeros(counts.lengths, "b").tolist()),
        }
        if not counts.whole:  # a tokenizer whose boundaries occur within documents too
            pairs = {key: pairs[key] for key in ("tokens", "bytes of text")}
        for key, (recorded, counted) in pairs.items():
            if recorded != counted:
                yield f"{name}: it says {recorded} {key}, the shards have {counted}"
        nats = entropy(frequencies)
        if counts.whole and not math.isclose(split.unigram_entropy, nats, rel_tol=1e-6, abs_tol=1e-9):
            yield f"{name}: it says a unigram entropy of {split.unigram_entropy}, the shards have {nats}"
        if text is None and split.tokens - 2 * split.documents > split.bytes + split.documents:
            yield f"{name}: it says {split.bytes} bytes of text, fewer than the shards have tokens, {split.tokens}"


@dataclass
class _Counts:
    """The numbers of a split, counted from its shards.

    Attributes:
        frequencies: (V,), how often each token occurs.
        largest: the largest token.
        documents: number of documents.
        tokens: number of tokens, without those that fill rows.
        longest: tokens in the longest document.
        lengths: (48,), documents of 2**k to 2**(k+1) - 1 tokens.
        whole: the tokens are documents one after the other, each from `bos` to `eos`.
    """

    frequencies: np.ndarray
    largest: int = -1
    documents: int = 0
    tokens: int = 0
    longest: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(48, np.int64))
    whole: bool = True

    def add(self, lengths: np.ndarray) -> None:
        """Count documents of these lengths."""
        if len(lengths):
            self.documents += len(lengths)
            self.longest = max(self.longest, int(lengths.max()))
            self.lengths += np.bincount(np.frexp(lengths)[1] - 1, minlength=48)


def _count(folder: Path, manifest: Manifest, split: Split, tokenizer: Tokenizer) -> _Counts:
    counts = _Counts(np.zeros(tokenizer.vocab_size, np.int64))
    bos, eos = tokenizer.bos, tokenizer.eos
    begun, last, bounds = 0, eos, 0  # start of the current document; the token before; boundaries so far
    for shard in split.shards:
        tokens = unmarked(np.asarray(read_shard(folder / shard.file, manifest.dtype, shard.tokens)))
        if manifest.context_length is not None:
            tokens = _unfilled(tokens.reshape(-1, manifest.context_length + 1), bos)
        if not len(tokens):
            continue
        counts.largest = max(counts.largest, int(tokens.max()))
        if counts.largest >= tokenizer.vocab_size:
            return counts
        counts.frequencies += np.bincount(tokens, minlength=tokenizer.vocab_size)
        before = np.concatenate([[last], tokens[:-1]])
        if bos == eos:  # every second one begins a document
            places = np.flatnonzero(tokens == bos)
            starts = places[bounds % 2 :: 2]
            bounds += len(places)
        else:
            starts = np.flatnonzero((tokens == bos) & (before == eos))
        counts.whole &= bool(np.all(before[starts] == eos))
        begins = starts + counts.tokens
        counts.add(np.diff(np.concatenate([[begun], begins]))[0 if counts.tokens else 1 :])
        begun, last = int(begins[-1]) if len(begins) else begun, int(tokens[-1])
        counts.tokens += len(tokens)
    counts.add(np.array([counts.tokens - begun])[: counts.tokens])
    counts.whole &= last == eos and counts.frequencies[bos] == counts.documents * (1 + (bos == eos))
    return counts


def _unfilled(rows: np.ndarray, fill: int) -> np.ndarray:
    """Return the tokens of rows without the fill at their ends."""
    filled = np.logical_and.accumulate((rows == fill)[:, ::-1], axis=1)[:, ::-1]
    return rows[~filled]

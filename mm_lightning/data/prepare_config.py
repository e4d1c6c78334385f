"""The settings of `mm data prepare` and of `data.prepare` in a config."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mm_lightning.data.source_files import ReadSettings
from mm_lightning.decompress import LONGEST
from mm_lightning.errors import UserError
from mm_lightning.ranges import Count, DocumentBytes, Few, Name, Part, Place, Text, VocabSize, check_fields


@dataclass
class PrepareConfig:
    """The settings of a preparation: sources, tokenizer, split and shards.

    Args:
        sources: files, folders or globs, local or fsspec URLs (hf://datasets/ORG/NAME/...), or `python-stdlib`: the
            standard library of this Python, or `python-packages`: the packages installed for it, each file a document.
        tokenizer: `bytes`, a tokenizer.json (or a folder or a repository of the Hugging Face Hub, ORG/NAME, holding
            one), or `train`: a byte-level BPE is trained on the training split; or `chars`: a token for each character
            of the text, of both splits.
        vocab_size: entries of the tokenizer to train.
        tokenizer_bytes: about how much text it is trained on, taken evenly over the documents.
        validation_fraction: share of the text set apart, in documents chosen by a hash of them: adding or reordering
            files moves no document from one split to the other. Where few documents do not give the share, it is
            filled up in the order of their hashes, and a long one is cut. 0 makes no validation split.
        text_key: the key of JSON lines, or the column of parquet files, that holds the text.
        separator: in text files, the string between two documents, such as `<|endoftext|>`.
        suffixes: the files of folders to read, as text unless known, instead of .txt, .jsonl, .json, .parquet and,
            where none of the last three is there, .md, .rst, .py.
        on_error: refuse stops at a file or row that cannot be read; skip counts and lists it in the manifest.
        largest_document: bytes of the longest document or row that is read; a longer one is an error. It takes about
            ten times as much memory, and with a tokenizer that does not split at spaces a hundred times.
        shard_tokens: tokens in a shard.
        workers: processes; the number of CPU cores if not given. What is written does not depend on it.
        bos: of a tokenizer.json, the name of the token that begins a document, where it is none of the usual ones.
        eos: likewise of the token that ends a document. One of the two alone is both.
    """

    sources: list[Place]
    tokenizer: Place = "bytes"
    vocab_size: VocabSize = 4096
    tokenizer_bytes: Count = 50_000_000
    validation_fraction: Part = 0.01
    text_key: Name = "text"
    separator: Text | None = None
    suffixes: list[Name] | None = None
    on_error: Literal["refuse", "skip"] = "refuse"
    shard_tokens: Count = 1 << 24
    workers: Few | None = None
    bos: Name | None = None
    eos: Name | None = None
    largest_document: DocumentBytes = LONGEST

    def __post_init__(self) -> None:
        check_fields(self)
        if self.on_error not in ("refuse", "skip"):
            raise UserError(f"on_error {self.on_error!r} is neither refuse nor skip")
        if (self.bos or self.eos) and self.tokenizer in ("train", "chars", "bytes"):
            raise UserError(
                f"bos and eos name tokens of a tokenizer.json: with tokenizer {self.tokenizer} leave them out"
            )
        if self.separator == "":
            raise UserError("separator is empty: leave it out to make each file a document")

    def reading(self) -> ReadSettings:
        """Return the settings for finding documents in the sources."""
        suffixes = None if self.suffixes is None else tuple("." + s.lstrip(".").lower() for s in self.suffixes)
        return ReadSettings(self.text_key, self.separator, suffixes, self.on_error, self.largest_document)

    def identity(self) -> dict[str, Any]:
        """Return the settings that the result depends on."""
        settings = {key: value for key, value in asdict(self).items() if key not in ("workers", "largest_document")}
        # left out where not given, as in folders that were prepared before these two existed
        return {key: value for key, value in settings.items() if key not in ("bos", "eos") or value is not None}

    def reuse_settings(self) -> dict[str, Any]:
        """Return the settings that a prepared folder must have for it to be reused."""
        others = ("workers", "on_error", "largest_document")
        return {key: value for key, value in asdict(self).items() if key not in others}

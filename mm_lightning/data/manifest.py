"""The manifest of a prepared data folder: its splits, shards, tokenizer, settings and checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json
from mm_lightning.redaction import redact_values
from mm_lightning.side_files import read_config
from mm_lightning.text_files import ROWS, TEXTS

FILE = "manifest.json"
FORMAT_VERSION = 1
SPLITS = ("train", "validation")

# litdata's names (in index.json) of one-dimensional tensors of each type.
LITDATA_FORMATS = {"uint16": ("no_header_tensor:20",), "int32": ("no_header_tensor:15", "no_header_tensor:16")}


@dataclass
class Shard:
    """A chunk file of litdata: its name, bytes, tokens, and CRC-32 in hexadecimal."""

    file: str
    bytes: int
    tokens: int
    crc32: str


@dataclass
class Split:
    """The numbers and shards of one split.

    Attributes:
        documents: number of documents.
        tokens: number of tokens, those around documents included.
        bytes: of the documents' text in UTF-8.
        unigram_entropy: nats per predicted token (all but those that begin a document): the loss of a model that
            knows how often each token occurs and nothing else.
        longest_document: in tokens.
        length_histogram: documents of 2**k to 2**(k+1) - 1 tokens, for k = 0, 1, ...
        shards: the files, in order.
    """

    documents: int
    tokens: int
    bytes: int
    unigram_entropy: float
    longest_document: int
    length_histogram: list[int]
    shards: list[Shard]

    def sequences(self, length: int) -> int:
        """Return the number of sequences of `length` tokens in the shards; the rest of each shard is not read."""
        return sum(shard.tokens // length for shard in self.shards)

    def bits_per_byte(self, loss: float) -> float:
        """Return bits per byte of text from a loss in nats per predicted token."""
        return loss / math.log(2) * (self.tokens - self.documents) / self.bytes


@dataclass
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
        tokenizer: name, sha256, vocab_size, bos, eos.
        dtype: of the tokens in the shards, uint16 or int32.
        splits: train and, unless the validation fraction was 0, validation.
        sources: for each source its files and bytes; the commit of `hf://`, the versions of `python-packages`.
        settings: of the preparation.
        fingerprint: a hash of the settings, the tokenizer and the source files' names and sizes: the input of the
            preparation. `content` is a hash of its output.
        skipped: files and rows left out, and why.
        empty_documents: documents without text, which are left out.
        versions: of the libraries.
        context_length: where documents lie whole in rows of one token more, the context that the rows are for; the
            rest of a row is filled with `bos`, and counts neither as tokens nor as documents. Else None.
        files: checksums of files beside the shards, by path in the folder.
        source_contents: a hash of the contents of the source files; None in folders of earlier versions.
    """

    tokenizer: dict[str, Any]
    dtype: str
    splits: dict[str, Split]
    sources: list[dict[str, Any]]
    settings: dict[str, Any]
    fingerprint: str
    skipped: list[str] = field(default_factory=list)
    empty_documents: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    context_length: int | None = None
    files: dict[str, str] = field(default_factory=dict)
    source_contents: str | None = None
    format_version: int = FORMAT_VERSION

    @property
    def content(self) -> str:
        """A hash of the data that training and validation read: shards by checksum, tokenizer, dtype and layout."""
        shards = {
            name: [[shard.tokens, shard.bytes, shard.crc32] for shard in split.shards]
            for name, split in self.splits.items()
        }
        return _digest([self.dtype, self.context_length, self.tokenizer["sha256"], shards])

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return self.tokenizer["vocab_size"]

    def bits_per_byte(self, loss: float, split: str = "validation") -> float:
        """Return bits per byte of a split's text from a loss in nats per predicted token."""
        return self.splits[split].bits_per_byte(loss)

    def save(self, folder: str | os.PathLike) -> None:
        """Write `manifest.json` atomically, with a checksum of its content."""
        content = redact_values(asdict(self))
        write_json(Path(folder) / FILE, {**content, "checksum": _digest(content)})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Manifest:
        """Read the manifest of a prepared folder.

        Raises:
            UserError: there is none, it is not one of this version, or it was changed after it was written.
        """
        path = Path(folder).expanduser() / FILE
        if not path.is_file():
            here = quote(str(path.parent))
            if data := _data_of_run(path.parent):
                raise UserError(f"{path.parent} is a run folder, no prepared data: name its data, {data}")
            texts = any(file.suffix in (*TEXTS, *ROWS) for file in path.parent.glob("*"))
            command = f"{here} --output data/NAME` and name that" if texts else f"SOURCES --output {here}`"
            raise UserError(f"no prepared data in {path.parent}: run `mm data prepare {command}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise UserError(
                    f"{path} has format version {version}, this program reads {FORMAT_VERSION}: prepare again"
                )
            checksum = content.pop("checksum", None)  # earlier versions wrote none
            if checksum not in (None, _digest(content)):
                raise ValueError("its checksum is not that of its content")
            splits = {
                name: Split(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
                for name, split in content.pop("splits").items()
            }
            manifest = cls(splits=splits, **content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is damaged ({error}): prepare the data again") from error
        shards = [f"{name}/{shard.file}" for name, split in splits.items() for shard in split.shards]
        for file in [*shards, *manifest.files]:
            check_inside(path.parent, file)
        if impossible := _impossible(manifest):
            raise UserError(f"{path} is damaged ({impossible}): prepare the data again")
        return manifest


def _data_of_run(folder: Path) -> str | None:
    """Return the data folders of the last run in a run folder, as they are typed; None where there is no run."""
    configs = [path for path in folder.glob("*/config.yaml") if path.parent.name.isdigit()]
    newest = max(configs, key=lambda path: int(path.parent.name), default=folder / "config.yaml")
    data = read_config(newest).get("data") if newest.is_file() else None
    paths = data.get("path") if isinstance(data, dict) else None
    return " or ".join([paths] if isinstance(paths, str) else paths) if paths else None


def _digest(content: Any) -> str:
    """SHA-256 of JSON content, whatever the layout of its file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _impossible(manifest: Manifest) -> str | None:
    """Return the first value that no manifest can have; None if there is none."""
    if manifest.dtype not in LITDATA_FORMATS:
        return f"dtype is {manifest.dtype!r}, not {' or '.join(LITDATA_FORMATS)}"
    for name, split in manifest.splits.items():
        counts: dict[str, Any] = {key: getattr(split, key) for key in ("documents", "tokens", "bytes")}
        counts |= {"longest_document": split.longest_document}
        counts |= {f"length_histogram[{k}]": count for k, count in enumerate(split.length_histogram)}
        for shard in split.shards:
            counts |= {f"bytes of {shard.file}": shard.bytes, f"tokens of {shard.file}": shard.tokens}
        for key, value in counts.items():
            if type(value) is not int or value < 0:
                return f"{name}: {key} is {value!r}, not a number of things"
        entropy = split.unigram_entropy
        if type(entropy) not in (int, float) or not 0 <= entropy < math.inf:
            return f"{name}: unigram_entropy is {entropy!r}, not a number from 0 on"
    return None


def check_inside(folder: Path, file: str) -> None:
    """Check that a path in a manifest stays inside its folder.

    Raises:
        UserError: it leads out of it, by `..`, an absolute path or a symbolic link.
    """
    home = folder.resolve()
    if not (home / file).resolve().is_relative_to(home):
        raise UserError(f"{folder / FILE} names {file}, which is outside of {folder}: it is not used")


def entropy(counts: np.ndarray) -> float:
    """Return the entropy, in nats, of a distribution given by counts."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def used_versions() -> dict[str, str]:
    """Return the versions of the packages that the shards may depend on."""
    return {name: version(name) for name in ("mm-lightning", "litdata", "tokenizers", "numpy")}


def crc32(path: Path) -> str:
    """Return the CRC-32 of a file, in hexadecimal."""
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}"

"""Long documents to read: of text files, or the validation documents of prepared data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mm_lightning.console import say_once
from mm_lightning.data.corpora import Piece
from mm_lightning.data.manifest import FILE, Manifest
from mm_lightning.data.shards import read_shard, unmarked
from mm_lightning.data.source_files import ReadSettings, list_files
from mm_lightning.data.tokenize_units import documents_of
from mm_lightning.data.verify import check
from mm_lightning.errors import UserError
from mm_lightning.side_files import read_config
from mm_lightning.stores import is_remote

if TYPE_CHECKING:
    from mm_lightning.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Texts:
    """Documents one after the other, as tokens without those that begin and end a document.

    Attributes:
        source: where they are from.
        parts: of each document, its tokens.
    """

    source: str
    parts: list[np.ndarray]

    @property
    def tokens(self) -> int:
        """The tokens of all documents."""
        return sum(map(len, self.parts))


@dataclass(frozen=True)
class Stretch:
    """A long sequence of tokens.

    Attributes:
        tokens: as many as were wanted, without the one that begins a document.
        documents: numbers of the documents that it consists of: several are joined as one, without anything between.
    """

    tokens: np.ndarray
    documents: list[int]


def stretches(documents: Texts, length: int, limit: int) -> list[Stretch]:
    """Sequences of `length` tokens, no token of a document in two of them.

    Documents that are long enough give one each, their beginning; if they are more than `limit`, such as lie evenly
    among them. If they are fewer, neighbors among the other documents are joined until there are `limit`.
    """
    long = [n for n, part in enumerate(documents.parts) if len(part) >= length]
    count = min(len(long), limit)
    chosen = [long[n * len(long) // count] for n in range(count)]
    sequences = [Stretch(documents.parts[n][:length], [n]) for n in chosen]
    pieces: list[np.ndarray] = []
    members: list[int] = []
    for n, part in enumerate(documents.parts):
        if len(sequences) == limit:
            break
        if len(part) >= length:
            continue
        pieces.append(part)
        members.append(n)
        if sum(map(len, pieces)) >= length:
            sequences.append(Stretch(np.concatenate(pieces)[:length], members))
            pieces, members = [], []
    return sequences


def of_files(paths: Sequence[str], tokenizer: Tokenizer) -> Texts:
    """Files, folders and globs as `mm data prepare` reads them; or the validation documents of one prepared folder.

    Raises:
        UserError: they cannot be read, or were prepared with another tokenizer.
    """
    if is_prepared(paths):
        return of_folder(Path(paths[0]), tokenizer)
    source, texts = read_texts(paths)
    return Texts(source, [np.array(tokenizer.encode(text), dtype=np.int64) for text in texts])


def read_texts(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the source of files, folders and globs in words, and their documents, as `mm data prepare` reads them.

    Raises:
        UserError: they cannot be read, or have no text.
    """
    left_out: list[str] = []
    settings = ReadSettings()
    files = [file for file in list_files(paths, settings, left_out) if file.size or is_remote(file.url)]
    if not files:
        raise UserError(f"{' '.join(paths)} is empty: give a file with text")
    for line in left_out:
        say_once(line)
    source = files[0].source if len(files) == 1 else f"{len(files)} files, the first {Path(files[0].name).name}"
    return source, [*documents_of(files, [Piece(number) for number in range(len(files))], settings, [])]


def is_prepared(paths: Sequence[str]) -> bool:
    """Return whether `--text` names one folder of prepared data."""
    return len(paths) == 1 and (Path(paths[0]).expanduser() / FILE).is_file()


def of_run(checkpoint: Path | None, tokenizer: Tokenizer) -> Texts:
    """The validation documents of the data that a network was trained on, of all data sets that have some.

    Raises:
        UserError: its run folder or its data is not there.
    """
    texts = [of_folder(folder, tokenizer) for folder in held_out(checkpoint)]
    return Texts(", ".join(one.source for one in texts), [part for one in texts for part in one.parts])


def held_out(checkpoint: Path | None) -> list[Path]:
    """Return the folders of a network's data that have validation documents, or all of them where none has.

    Raises:
        UserError: its run folder or its data is not there.
    """
    config = None if checkpoint is None else checkpoint.parent.parent / "config.yaml"
    if config is None or not config.is_file():
        raise UserError(
            f"{checkpoint} lies in no run folder that says what data it was trained on: name files by --text"
        )
    path = (read_config(config).get("data") or {}).get("path")
    if not path:
        raise UserError(f"{config} does not say what data the network was trained on: name files by --text")
    folders = [Path(folder) for folder in (path if isinstance(path, dict) else [path])]
    for folder in folders:
        if not (folder.expanduser() / FILE).is_file():
            raise UserError(f"the data of {config}, {folder}, is not there: name files, or its folder, by --text")
    return [folder for folder in folders if "validation" in Manifest.load(folder).splits] or folders


def of_folder(folder: Path, tokenizer: Tokenizer) -> Texts:
    """The validation documents of a prepared folder.

    Raises:
        UserError: there are none, or they were made with another tokenizer.
    """
    manifest = check(folder.expanduser(), tokenizer)
    stream = np.concatenate([*validation_shards(folder, manifest)])
    if tokenizer.bos != tokenizer.eos:
        stream = stream[stream != tokenizer.eos]
    begins = np.flatnonzero(stream == tokenizer.bos)
    parts = np.split(stream, begins)[1:]
    return Texts(str(folder), [part[1:] for part in parts if len(part) > 1])


def validation_shards(folder: Path, manifest: Manifest) -> Iterator[np.ndarray]:
    """Yield the tokens of each validation shard of a prepared folder.

    Raises:
        UserError: there are none.
    """
    if "validation" not in manifest.splits:
        raise UserError(f"{folder} has no validation documents: name files by --text")
    for shard in manifest.splits["validation"].shards:
        yield unmarked(read_shard(folder.expanduser() / "validation" / shard.file, manifest.dtype, shard.tokens))


def digest(paths: Sequence[str] | None, checkpoint: Path | None) -> str:
    """Return a hash of the content that :func:`of_files` reads, or :func:`of_run` where no paths are given.

    Where the files lie and what they are called does not matter.

    Raises:
        UserError: they cannot be read.
    """
    result = hashlib.sha256()
    if not paths or is_prepared(paths):
        for folder in [Path(paths[0])] if paths else held_out(checkpoint):
            manifest = Manifest.load(folder)
            for tokens in validation_shards(folder, manifest):
                result.update(f"{manifest.dtype} {tokens.size} ".encode() + tokens.tobytes())
    else:
        for text in read_texts(paths)[1]:
            content = text.encode("utf-8", "surrogatepass")
            result.update(f"{len(content)} ".encode() + content)
    return result.hexdigest()[:16]

"""The files that sources name: local or remote files, folders, globs, or the standard library of Python."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mm_lightning.decompress import LONGEST
from mm_lightning.errors import UserError
from mm_lightning.retry import Passing, Refused, Unreachable, patiently
from mm_lightning.stores import file_path, find, from_store, is_remote
from mm_lightning.text_files import JSON_LINES, split_suffix

STDLIB = "python-stdlib"
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

Kind = Literal["text", "python", "lines", "parquet"]

_KINDS: dict[str, Kind] = {".txt": "text", **dict.fromkeys(JSON_LINES, "lines"), ".parquet": "parquet"}

_FILES = (*_KINDS, ".gz", ".zst")


@dataclass(frozen=True)
class ReadSettings:
    """The settings for finding documents in files.

    Attributes:
        text_key: the key of JSON lines, or the column of parquet files, that holds the text.
        separator: in text files, the string between two documents, such as `<|endoftext|>`; white space around it
            is dropped. Without one each text file is a document.
        suffixes: the files of folders to read besides .txt, .jsonl, .json and .parquet, as text: [.py, .md]. With
            this, the four are read only if named.
        on_error: what to do with a file or a row that cannot be read: refuse stops, skip counts it and goes on.
        largest_document: bytes of the longest document or row; a longer one cannot be read.
    """

    text_key: str = "text"
    separator: str | None = None
    suffixes: tuple[str, ...] | None = None
    on_error: Literal["refuse", "skip"] = "refuse"
    largest_document: int = LONGEST


@dataclass(frozen=True)
class SourceFile:
    """A file to read: its URL, its name in messages, the source that names it, bytes, and how to read it.

    `mark` is the store's version tag of the content (an ETag, a checksum); None where there is none.
    """

    url: str
    name: str
    source: str
    size: int
    kind: Kind
    codec: str | None
    mark: str | None = None


def list_files(sources: Iterable[str], settings: ReadSettings) -> list[SourceFile]:
    """List the files that `sources` name, in the order of the sources and sorted by path within each.

    Args:
        sources: files, folders (searched to the bottom) or globs, local or fsspec URLs, or `python-stdlib`, the
            standard library of this Python.
        settings: which suffixes of folders are read.

    Raises:
        UserError: a source does not exist or holds nothing to read.
    """
    files: list[SourceFile] = []
    for source in sources:
        of_source = _stdlib_files() if source == STDLIB else _find(source, settings)
        if not of_source:
            suffixes = ", ".join(settings.suffixes or _KINDS)
            raise UserError(f"nothing to read in {source}: no file with suffix {suffixes} (suffixes=[...] adds others)")
        files.extend(of_source)
    if not files:
        raise UserError("no sources: give files, folders, globs, URLs or python-stdlib")
    doubled = len(files) - len({file.url for file in files})
    if doubled:
        raise UserError(f"{doubled} files are named twice by the sources {', '.join(sources)}")
    return files


def _stdlib_files() -> list[SourceFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in root.rglob("*.py") if not _NOT_STDLIB & set(path.relative_to(root).parts)]
    named = sorted((path.relative_to(root).as_posix(), path) for path in paths if path.is_file())
    return [SourceFile(str(path), name, STDLIB, path.stat().st_size, "python", None) for name, path in named]


def _find(source: str, settings: ReadSettings) -> list[SourceFile]:
    place = str(Path(source).expanduser()) if source.startswith("~") else source
    try:
        fs, root, paths, folder = patiently(lambda: from_store(lambda: find(place, _FILES)), source, passing=Passing)
    except UserError:
        raise
    except (FileNotFoundError, PermissionError, Refused, Unreachable) as error:
        missing = isinstance(error, FileNotFoundError) and not is_remote(source)
        raise UserError(f"there is no {source}" if missing else f"cannot read {source}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot list {source}: {error}") from error
    suffixes = (settings.suffixes or tuple(_KINDS)) if folder else None
    files = []
    for path, info in sorted(paths.items()):
        name = path.removeprefix(root).lstrip("/") or Path(file_path(path)).name
        kind, codec, suffix = _kind(path)
        if suffixes and (suffix not in suffixes or any(part.startswith(".") for part in name.split("/"))):
            continue
        files.append(SourceFile(fs.unstrip_protocol(path), name, source, info["size"] or 0, kind, codec, _mark(info)))
    return files


# The fields in which fsspec's stores name the version of a file's content.
_MARKS = ("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "crc32c", "content_md5", "blob_id", "checksum")


def _mark(info: dict[str, Any]) -> str | None:
    marks = {name: str(info[name]) for name in _MARKS if info.get(name)}
    return json.dumps(marks, sort_keys=True) if marks else None


def _kind(path: str) -> tuple[Kind, str | None, str]:
    """Return how the file of a path or URL is read, by its suffix; `?...` and `#...` of a URL are none of it.

    Where its own suffix is not known, those count: `https://host/get?file=a.jsonl`, `s3://bucket/part#1.jsonl`.
    """
    suffix, codec = split_suffix(file_path(path))
    if not codec and suffix not in _KINDS:
        whole, of_whole = split_suffix(path)
        if of_whole or whole in _KINDS:
            suffix, codec = whole, of_whole
    return _KINDS.get(suffix, "text"), codec, suffix

"""The files that sources name: local or remote files, folders, globs, or the sources of this Python itself."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Literal

from mm_lightning.decompress import LONGEST
from mm_lightning.errors import UserError
from mm_lightning.hub import pinned
from mm_lightning.retry import Passing, Refused, Unreachable, patiently
from mm_lightning.stores import file_path, find, from_store, is_remote
from mm_lightning.text_files import JSON_LINES, TEXTS, document_suffixes, left_out_line, split_suffix

STDLIB, PACKAGES = "python-stdlib", "python-packages"
"""The standard library of this Python and the packages installed for it: text that needs no network."""
_SITE = {"site-packages", "dist-packages"}
_LEFT_OUT = {*_SITE, "__pycache__", "test", "tests", "idle_test"}

Kind = Literal["text", "python", "lines", "parquet"]

_KINDS: dict[str, Kind] = {**dict.fromkeys(TEXTS, "text"), **dict.fromkeys(JSON_LINES, "lines"), ".parquet": "parquet"}

_FILES = (*_KINDS, ".gz", ".zst")


@dataclass(frozen=True)
class ReadSettings:
    """The settings for finding documents in files.

    Attributes:
        text_key: the key of JSON lines, or the column of parquet files, that holds the text.
        separator: in text files, the string between two documents, such as `<|endoftext|>`; white space around it
            is dropped. Without one each text file is a document.
        suffixes: the files of folders to read instead of those of :func:`document_suffixes`; unknown ones as text.
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


def list_files(sources: Iterable[str], settings: ReadSettings, left_out: list[str] | None = None) -> list[SourceFile]:
    """List the files that `sources` name, in the order of the sources and sorted by path within each.

    Args:
        sources: files, folders (searched to the bottom) or globs, local or fsspec URLs; `python-stdlib`, the standard
            library of this Python, or `python-packages`, code and documentation of the packages installed for it.
        settings: which suffixes of folders are read.
        left_out: receives a line for each folder with files that are not read.

    Raises:
        UserError: a source does not exist or holds nothing to read.
    """
    files: list[SourceFile] = []
    for source in sources:
        of_source = _python_sources(source) if source in (STDLIB, PACKAGES) else _find(source, settings, left_out)
        if not of_source:
            suffixes = ", ".join(settings.suffixes or (*_KINDS, "or those of --suffixes of mm data prepare"))
            raise UserError(f"nothing to read in {source}: no file with suffix {suffixes}")
        files.extend(of_source)
    if not files:
        raise UserError(f"no sources: give files, folders, globs, URLs, {STDLIB} or {PACKAGES}")
    doubled = len(files) - len({file.url for file in files})
    if doubled:
        raise UserError(f"{doubled} files are named twice by the sources {', '.join(sources)}")
    return files


def _python_sources(source: str) -> list[SourceFile]:
    """List what is text of the standard library or of the installed packages, without tests, sorted by path."""
    roots = [Path(sysconfig.get_paths()["stdlib"])] if source == STDLIB else site_packages()
    suffixes = TEXTS if source == PACKAGES else (".py",)
    paths = [(path.relative_to(root), path) for root in roots for path in root.rglob("*") if path.suffix in suffixes]
    named = sorted(
        (name.as_posix(), path)
        for name, path in paths
        if not _LEFT_OUT & set(name.parts)
        and not name.parts[0].endswith((".dist-info", ".egg-info"))  # licenses and lists of files
        and path.is_file()
    )
    return [
        SourceFile(str(path), name, source, path.stat().st_size, "python" if path.suffix == ".py" else "text", None)
        for name, path in named
    ]


def site_packages() -> list[Path]:
    """Return the folders from which this Python imports installed packages."""
    return list(dict.fromkeys(Path(path).resolve() for path in sys.path if Path(path).name in _SITE))


def package_versions() -> dict[str, str]:
    """Return the version of each package that `python-packages` reads, sorted by name."""
    packages = distributions(path=[str(folder) for folder in site_packages()])
    return dict(sorted((package.name, package.version) for package in packages))


def _find(source: str, settings: ReadSettings, left_out: list[str] | None) -> list[SourceFile]:
    place = str(Path(source).expanduser()) if source.startswith("~") else source
    try:
        fs, root, paths, folder = patiently(
            lambda: from_store(lambda: find(pinned(place), _FILES)), source, passing=Passing
        )
    except UserError:
        raise
    except (FileNotFoundError, PermissionError, Refused, Unreachable) as error:
        missing = isinstance(error, FileNotFoundError) and not is_remote(source)
        raise UserError(
            f"there is no file or folder {source}" if missing else f"cannot read {source}: {error}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot list {source}: {error}") from error
    shown = {}
    for path, info in sorted(paths.items()):
        name = path.removeprefix(root).lstrip("/") or Path(file_path(path)).name
        if not folder or not any(part.startswith(".") for part in name.split("/")):
            shown[path] = name, info, _kind(path)
    suffixes = settings.suffixes or document_suffixes(suffix for _, _, (*_, suffix) in shown.values())
    files, others = [], []
    for path, (name, info, (kind, codec, suffix)) in shown.items():
        if folder and suffix not in suffixes:
            others.append(name)
            continue
        url = fs.unstrip_protocol(path)
        where = url if is_remote(url) else path
        files.append(SourceFile(where, name, source, info["size"] or 0, kind, codec, _mark(info)))
    if others and left_out is not None:
        left_out.append(f"{left_out_line(source, others)} (--suffixes of mm data prepare names what is read)")
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

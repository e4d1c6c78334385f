"""The one reader of text files and JSON lines: UTF-8 with or without a byte order mark, blank lines left out."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mm_lightning.decompress import opened, read_whole
from mm_lightning.errors import BadInput, UserError

MARK = "\ufeff"
BOM = MARK.encode()
TEXTS = (".txt", ".md", ".rst", ".py")
JSON_LINES = (".jsonl", ".ndjson", ".json")
ROWS = (*JSON_LINES, ".parquet")
LARGEST_FILE = 1 << 31
"""Bytes of a file, unpacked, that is read as a whole: 2 GiB."""
_CODECS = {".gz": "gz", ".zst": "zst"}


def decode(data: bytes) -> str:
    """Return the text of bytes in UTF-8, without a byte order mark; line ends stay as they are.

    Raises:
        BadInput: they are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(data) - len(error.object)  # the decoder does not count the mark
        line = data.count(b"\n", 0, at) + 1
        raise BadInput(f"not UTF-8, {error.reason} at byte {at}, line {line}: {data[at]:#04x}") from error


def check_text(text: str) -> None:
    """Check that a text can be written in UTF-8.

    Raises:
        BadInput: it holds half a surrogate pair, as `\\ud83d` alone in JSON gives.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 20) : error.start]
        raise BadInput(f"half a surrogate pair behind {before!r}, which is no text") from error


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON document or of one of JSON lines.

    Raises:
        BadInput: it is not UTF-8 or not JSON.
    """
    try:
        return json.loads(decode(data))
    except json.JSONDecodeError as error:
        where = f"character {error.colno}" if error.lineno == 1 else f"line {error.lineno}, character {error.colno}"
        raise BadInput(f"not JSON: {error.msg} at {where}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists within lists
        raise BadInput(f"not JSON that can be read: {error}") from error


def check_once(data: bytes, key: str) -> None:
    """Check that a JSON object has a key once: of several, parsers take the last in silence.

    Raises:
        BadInput: the key comes again.
    """
    if data.count(json.dumps(key).encode()) < 2:
        return

    def once(pairs: list[tuple[str, Any]]) -> int:
        return sum(name == key for name, _ in pairs)

    times = json.loads(decode(data), object_pairs_hook=once)  # the outermost object comes last
    if times > 1:
        raise BadInput(f"the key {key!r} comes {times} times")


def _parse_texts(data: bytes) -> Any:
    """Return what `parse_json` does, all texts in it checked."""
    value = parse_json(data)
    if b"\\u" in data:  # the only way in: decoding lets none through
        try:
            _check_texts(value)
        except RecursionError as error:
            raise BadInput(f"not JSON that can be read: {error}") from error
    return value


def _check_texts(value: Any, place: str = "") -> None:
    """Check that all texts in a JSON value can be written in UTF-8; a list's row, or a key, names the place.

    Raises:
        BadInput: one cannot.
    """
    if isinstance(value, str):
        try:
            check_text(value)
        except BadInput as error:
            raise BadInput(f"{place}{': ' if place else ''}{error}") from error
    elif isinstance(value, list | dict):
        what = "entry" if place else "row"
        parts = value.items() if isinstance(value, dict) else ((f"{what} {n}", x) for n, x in enumerate(value, 1))
        for name, part in parts:
            _check_texts(name)
            _check_texts(part, f"{place}{', ' if place else ''}{name}")


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a file, with line ends as `\\n`.

    Raises:
        UserError: there is no such file, or it is not UTF-8.
    """
    return _decoded(path).replace("\r\n", "\n")


def _decoded(path: str | os.PathLike) -> str:
    data = _read(path)
    try:
        return decode(data)
    except BadInput as error:
        raise UserError(f"{path}: {error}: save it as UTF-8") from error


def read_document(path: str | os.PathLike) -> str:
    """Return the text of a file that must not be empty, as `mm data prepare` reads it: line ends stay as they are.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    text = _decoded(path)
    if not text:
        raise UserError(f"{path} is empty: give a file with text")
    return text


def read_json(path: str | os.PathLike) -> Any:
    """Return the value of a JSON file.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    data = _read(path)
    try:
        return _parse_texts(data)
    except BadInput as error:
        raise UserError(f"{path}: {error}") from error


def text_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, each with its number, counted from 1.

    Raises:
        UserError: the file cannot be read.
    """
    for row, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield row, line


def split_suffix(path: str | os.PathLike) -> tuple[str, str | None]:
    """Return the suffix of a file that says what it holds, in lower case, and how it is compressed: gz, zst or None."""
    name = Path(path)
    codec = _CODECS.get(name.suffix.lower())
    return (name.with_suffix("") if codec else name).suffix.lower(), codec


def document_suffixes(present: Iterable[str]) -> tuple[str, ...]:
    """Return the suffixes of the files of a folder that are documents, from those of all its files.

    Beside rows of data only .txt is text: what else there is, such as README.md, is about the data.
    """
    return (".txt", *ROWS) if set(ROWS) & set(present) else TEXTS


def left_out_line(folder: str, names: Iterable[str]) -> str:
    """Return the line that says how many files of which types a folder holds that are not read."""
    counts = Counter(split_suffix(name)[0] or "without a suffix" for name in names)
    listed = [f"{count:,} {suffix}" for suffix, count in counts.most_common(5)]
    others = counts.total() - sum(count for _, count in counts.most_common(5))
    listed += [f"{others:,} more"] if others else []
    return f"files of other types in {folder} are left out: {', '.join(listed)}"


def json_lines(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """Yield the value of each line of a file that is not blank, with the row's number, counted from 1.

    Raises:
        UserError: the file cannot be read, or a row is not JSON; it names the row.
    """
    for row, line in enumerate(_read(path).split(b"\n"), 1):
        try:
            if line.removeprefix(BOM).strip():
                yield row, _parse_texts(line)
        except BadInput as error:
            raise UserError(f"{path}, row {row}: {error}") from error


def json_texts(path: str | os.PathLike, key: str) -> Iterator[str]:
    """Yield the text that each JSON line has under a key.

    Raises:
        UserError: the file cannot be read, or a row has no text; it names the row.
    """
    for row, value in json_lines(path):
        text = value.get(key) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise UserError(f'{path}, row {row} has no text under the key "{key}": {{"{key}": "..."}}')
        yield text.removeprefix(MARK)


def _read(path: str | os.PathLike) -> bytes:
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{path} is a folder: give a text file")
    if not file.exists():
        raise UserError(f"there is no text file {path}")
    try:
        if codec := split_suffix(file)[1]:
            with opened(str(file), codec) as stream:
                return read_whole(stream, LARGEST_FILE)
        with file.open("rb") as stream:
            return read_whole(stream, LARGEST_FILE)
    except (OSError, BadInput) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error

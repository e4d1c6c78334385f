"""Documents of text files, JSON lines and parquet tables, wherever fsspec reaches them."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from mm_lightning.data.source_files import PACKAGES, ReadSettings, SourceFile
from mm_lightning.decompress import TooLong, arrow, opened, read_whole, records
from mm_lightning.errors import BadInput, UserError
from mm_lightning.stores import gives_ranges, is_http
from mm_lightning.text_files import BOM, MARK, check_once, check_text, decode, parse_json

_BATCH_BYTES = 1 << 24  # of parquet rows that are decoded at once
_PARQUET_BYTES = 1 << 32  # of a compressed parquet file, which is held in memory


@dataclass(frozen=True)
class Piece:
    """A part of a file: bytes or parquet row groups `start` to `stop`, or the whole file if `stop` is None."""

    file: int
    start: int = 0
    stop: int | None = None


def plan_units(files: list[SourceFile], settings: ReadSettings, unit_bytes: int) -> list[list[Piece]]:
    """Group the files into units of work of about `unit_bytes`, cutting large ones where they can be cut.

    JSON lines and separated texts are cut at bytes (a record belongs to the piece in which it begins), parquet files
    between row groups; compressed files and undivided texts are read whole.
    """
    units: list[list[Piece]] = []
    filling: list[Piece] = []
    filled = 0
    for index, file in enumerate(files):
        if file.size > unit_bytes and (cuts := _cuts(file, settings, unit_bytes)):
            units.extend([Piece(index, start, stop)] for start, stop in cuts)
            continue
        filling.append(Piece(index))
        filled += file.size
        if filled >= unit_bytes:
            units.append(filling)
            filling, filled = [], 0
    if filling:
        units.append(filling)
    return units


def _cuts(file: SourceFile, settings: ReadSettings, unit_bytes: int) -> list[tuple[int, int]]:
    if file.codec or (is_http(file.url) and not gives_ranges(file.url)):
        return []
    if file.kind == "parquet":
        pa, pq = arrow(file.url)
        with opened(file.url, file.codec) as stream:
            try:
                groups = pq.ParquetFile(stream).metadata.num_row_groups
            except (pa.ArrowException, BadInput, OSError, UnicodeDecodeError):  # reading it raises the error
                return []
        per_unit = max(1, round(groups * unit_bytes / file.size))
        return [(start, min(start + per_unit, groups)) for start in range(0, groups, per_unit)]
    separator = _separator(file, settings)
    # A separator that can overlap itself, such as two newlines, would be found elsewhere from another start.
    if not separator or any(separator.endswith(separator[:n]) for n in range(1, len(separator))):
        return []
    return [(start, min(start + unit_bytes, file.size)) for start in range(0, file.size, unit_bytes)]


def _separator(file: SourceFile, settings: ReadSettings) -> bytes | None:
    if file.kind == "lines":
        return b"\n"
    return settings.separator.encode() if settings.separator and file.kind == "text" else None


def read_piece(
    file: SourceFile, piece: Piece, settings: ReadSettings, skipped: list[str] | None = None
) -> Iterator[str]:
    """Yield the documents that begin in a piece of a file.

    Args:
        file: the file.
        piece: which part of it.
        settings: how to find documents, and what to do with bad input.
        skipped: receives a line for each file or row that was skipped.

    Raises:
        UserError: something cannot be read and `settings.on_error` is refuse; it names the file and the row. Files of
            `python-packages`, which nobody can mend, are always skipped.
    """
    try:
        for place, make in _documents(file, piece, settings):
            try:
                yield make().removeprefix(MARK)  # the byte order mark of files that JSON or parquet were made of
            except BadInput as error:
                _bad(file, place, error, settings, skipped)
    except (OSError, EOFError, BadInput) as error:
        _bad(file, "", error, settings, skipped)


def _bad(file: SourceFile, place: str, error: Exception, settings: ReadSettings, skipped: list[str] | None) -> None:
    where = f"{file.url} {place}".strip()
    reason = str(error) or type(error).__name__
    if isinstance(error, TooLong):
        reason += ", the most that is read: --largest_document allows more"
    if settings.on_error == "refuse" and file.source != PACKAGES:
        mend = "mend it, or leave such input out: --on_error skip of mm data prepare"
        raise UserError(f"cannot read {where}: {reason} ({mend})") from error
    if skipped is not None:
        skipped.append(f"{where}: {reason}")


def _documents(file: SourceFile, piece: Piece, settings: ReadSettings) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield of each document its place in the file, for messages, and a function that decodes it."""
    if file.kind == "parquet":
        yield from _parquet(file, piece, settings)
        return
    separator = _separator(file, settings)
    with opened(file.url, file.codec) as stream:
        if separator is None:
            data = read_whole(stream, settings.largest_document)
            yield "", partial(_python if file.kind == "python" else decode, data)
            return
        in_piece = records(stream, separator, piece.start, piece.stop, settings.largest_document)
        for number, (offset, record) in enumerate(in_piece, 1):
            place = f"row at byte {offset}" if piece.start else f"row {number}"
            if isinstance(record, BadInput):
                yield place, partial(_raise, record)
            elif file.kind == "text":
                yield place, partial(_text, record)
            elif record.removeprefix(BOM).strip():
                yield place, partial(_row, record, settings.text_key)


def _raise(error: BadInput) -> str:
    raise error


def _python(data: bytes) -> str:
    try:
        return data.decode(tokenize.detect_encoding(io.BytesIO(data).readline)[0])
    except (SyntaxError, LookupError, UnicodeDecodeError) as error:
        raise BadInput(f"not Python in the encoding that it names: {error}") from error


def _text(record: bytes) -> str:
    return decode(record).strip()


def _row(record: bytes, key: str) -> str:
    lines = f'each line of the file is one object, {{"{key}": "..."}}'
    if record.strip() in (b"[", b"{"):
        raise BadInput(f"not a whole JSON object: {lines}; a list or an object over several lines is not read")
    row = parse_json(record)
    if not isinstance(row, dict):
        raise BadInput(f"not a JSON object: {lines}")
    if key not in row:
        keys = ", ".join(list(row)[:8]) or "nothing"
        raise BadInput(f"no key {key!r}; it has {keys} (--text_key names another)")
    if not isinstance(row[key], str):
        kind = {type(None): "null", dict: "an object", list: "a list", bool: "a truth value"}.get(
            type(row[key]), "a number"
        )
        raise BadInput(f"the key {key!r} holds {kind}, not text")
    check_once(record, key)
    check_text(row[key])
    return row[key]


def _parquet(file: SourceFile, piece: Piece, settings: ReadSettings) -> Iterator[tuple[str, Callable[[], str]]]:
    pa, pq = arrow(file.url)
    with opened(file.url, file.codec) as stream:
        try:
            whole = io.BytesIO(read_whole(stream, _PARQUET_BYTES)) if file.codec else stream
            # by pages, not by row groups, of which one may be the whole file
            table = pq.ParquetFile(whole, page_checksum_verification=True, buffer_size=1 << 20)
            _check_column(pa, table.schema_arrow, settings.text_key)
            stop = table.metadata.num_row_groups if piece.stop is None else piece.stop
            row = sum(table.metadata.row_group(g).num_rows for g in range(piece.start))
            groups = list(range(piece.start, stop))
            sizes = [table.metadata.row_group(g) for g in groups]
            row_bytes = sum(g.total_byte_size for g in sizes) // max(sum(g.num_rows for g in sizes), 1)
            rows = min(1024, max(1, _BATCH_BYTES // max(row_bytes, 1)))
            for batch in table.iter_batches(rows, row_groups=groups, columns=[settings.text_key]):
                for cell in batch.column(0):
                    row += 1
                    yield f"row {row}", partial(_cell, cell, settings.largest_document)
        except UnicodeDecodeError as error:  # of the texts themselves `_cell` takes care
            raise BadInput(f"damaged parquet: a column's name is not UTF-8: {error.object!r}") from error
        except pa.ArrowException as error:
            raise BadInput(f"damaged parquet: {str(error).splitlines()[0]}") from error


def _check_column(pa: ModuleType, schema: Any, key: str) -> None:
    """Raise BadInput unless the column holds text."""
    if schema.names.count(key) != 1:
        names = ", ".join(schema.names[:8])
        number = "more than one column" if key in schema.names else "no column"
        raise BadInput(f"{number} {key!r}; it has {names} (--text_key names another)")
    kind = schema.field(key).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    if str(kind) not in texts:
        raise BadInput(f"the column {key!r} holds {kind}, not text (--text_key names another)")


def _cell(cell: Any, longest: int) -> str:
    try:
        value = cell.as_py()
    except UnicodeDecodeError as error:
        value = error.object
    if value is None:
        raise BadInput("null, not text")
    if len(value) > longest or (4 * len(value) > longest and isinstance(value, str) and len(value.encode()) > longest):
        raise TooLong(longest)
    return value if isinstance(value, str) else decode(value)

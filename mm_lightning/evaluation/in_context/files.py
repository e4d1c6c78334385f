"""Read tables of examples; errors name file and row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm_lightning import text_files
from mm_lightning.errors import UserError
from mm_lightning.evaluation.fetch import fetch_hint

FORMATS = (".csv", ".tsv", ".jsonl")


def one_line(text: str) -> str:
    """Return a text without line ends, which delimit the parts of a prompt: all white space becomes single spaces."""
    return " ".join(text.split())


def present(path: Path) -> Path:
    """Return the path of a data set's file, checked to be there.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(
            f"there is no file {path}: {fetch_hint(path)}put it there, or name another place (--data_dir, --dataset)"
        )
    return path


def read_json(path: Path, kind: type) -> Any:
    """Return the list or dict that a JSON file holds.

    Raises:
        UserError: it holds something else.
    """
    content = text_files.read_json(present(path))
    if not isinstance(content, kind):
        raise UserError(f"{path} should hold a JSON {kind.__name__}, not a {type(content).__name__}")
    return content


def read_tsv(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table without header or quotes, each with its number, counted from 1, blank lines left out.

    Raises:
        UserError: a row has another number of columns, or its first is empty.
    """
    for row, line in text_files.text_lines(present(path)):
        cells = line.split("\t")
        if len(cells) != columns or not cells[0].strip():
            raise UserError(f"{path}, row {row}: expected {columns} columns between tabs, got {line[:80]!r}")
        yield row, cells


def read_blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the blocks of lines between blank lines, each with the number of its first line."""
    block: list[str] = []
    last = 0
    for row, line in text_files.text_lines(present(path)):
        if block and row > last + 1:
            yield last - len(block) + 1, block
            block = []
        block.append(line)
        last = row
    if block:
        yield last - len(block) + 1, block


def read_table(path: Path, text: str, label: str) -> Iterator[tuple[int, str, str]]:
    """Yield row number, text and label of each row of a .csv or .tsv file with a header, or of .jsonl objects.

    Rows are counted from 1, a header not counted.

    Args:
        path: the file.
        text: the column of texts.
        label: the column of labels.

    Raises:
        UserError: the file or a column is missing, or a row has no text or no label in it.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    present(path)
    rows = _objects(path) if path.suffix == ".jsonl" else _cells(path, [text, label])
    number = 0
    for number, row in rows:
        texts = []
        for column in (text, label):
            value = row.get(column)
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if value is not None and not isinstance(value, str):
                shown = json.dumps(value)[:60]
                raise UserError(
                    f"{path}, row {number}: {column!r} is {shown}, neither a text nor a whole number: quote it"
                )
            if value is None or not value.strip():
                has = "is missing" if column not in row else "is null" if value is None else "is empty"
                raise UserError(f"{path}, row {number}: {column!r} {has}")
            texts.append(one_line(value))
        yield number, texts[0], texts[1]
    if number == 0:
        raise UserError(f"{path} has no rows{'' if path.suffix == '.jsonl' else ' under its header'}")


def _cells(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = io.StringIO(text_files.read_text(path), newline="")
    reader = csv.reader(lines, strict=True)
    if path.suffix == ".tsv":  # has no quotes: a quotation mark is one
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    header: list[str] = []
    row = 0
    try:
        for cells in reader:
            if header:
                row += 1
            if len(cells) < 2 and not "".join(cells).strip():  # a blank line
                continue
            if not header:
                header = cells
                if missing := [column for column in columns if column not in header]:
                    raise UserError(f"{path} has no column {missing[0]!r}; its first line names {', '.join(header)}")
            elif len(cells) != len(header):
                raise UserError(f"{path}, row {row}: {len(cells)} columns where the header has {len(header)}")
            else:
                yield row, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, row {row + 1}: {error}") from error
    if not header:
        raise UserError(f"{path} has no column {columns[0]!r}; its first line names nothing")


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, value in text_files.json_lines(path):
        if not isinstance(value, dict):
            raise UserError(f"{path}, row {row}: a JSON object was expected, got {str(value)[:80]!r}")
        yield row, value

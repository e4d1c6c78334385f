"""Data sets of benchmarks in local files, laid out as the repositories that the harness takes them from.

DATA_DIR/<repository>/<configuration>/<split>.jsonl, or .json or .parquet, or several files <split>-*.parquet: a
downloaded repository can stay as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_lightning.errors import UserError
from mm_lightning.text_files import json_lines, read_json, read_text

if TYPE_CHECKING:
    from datasets import DatasetDict

KINDS = ("jsonl", "json", "parquet")

Row = dict[str, Any]


def find_files(data_dir: Path, repository: str, configuration: str | None, split: str) -> list[Path]:
    """Return the files of a split.

    Raises:
        UserError: there are none; it says where they belong.
    """
    name, folder = repository.rsplit("/", 1)[-1], place_of(data_dir, repository, configuration)
    for place in (folder, folder / "data", folder / "default", folder / name):
        for kind in KINDS:
            if (path := place / f"{split}.{kind}").is_file():
                return [path]
            if parts := sorted(place.glob(f"{split}-*.{kind}")):
                return parts
    raise UserError(
        f"missing data: put the {split} documents of {repository}{f' ({configuration})' if configuration else ''} into "
        f"{folder / split}.jsonl (or .parquet); where the Hub can be reached: "
        f"hf download {repository} --repo-type dataset --local-dir {data_dir / name}"
    )


def place_of(data_dir: Path, repository: str, configuration: str | None) -> Path:
    """Return the folder that the files of a data set belong into."""
    return data_dir / repository.rsplit("/", 1)[-1] / (configuration or "")


def digest(paths: Iterable[Path]) -> str:
    """Return a hash of the content of files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def read(files: dict[str, list[str]], **_: Any) -> DatasetDict:
    """Return a data set of local files; the harness calls it with what else it knows of the task.

    Args:
        files: of each split, in order.

    Raises:
        UserError: a file cannot be read, or its rows are not alike; it names file and row.
    """
    from datasets import Dataset, DatasetDict
    from pyarrow import ArrowException

    splits = {}
    for split, paths in files.items():
        rows = [row for path in paths for row in checked(Path(path))]
        try:
            splits[split] = Dataset.from_list(rows)
        except (ArrowException, TypeError, ValueError) as error:
            raise UserError(f"{paths[0]}: its rows are not alike: {' '.join(str(error).split())}") from error
    return DatasetDict(splits)


def checked(path: Path) -> list[Row]:
    """Return the rows of a file, all with the same fields of the same types.

    Raises:
        UserError: see :func:`read`.
    """
    rows: list[Row] = []
    for number, row in read_rows(path):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number} is not an object with fields: {str(row)[:80]}")
        rows.append(row)
        for name, value in rows[0].items():
            if name not in row:
                raise UserError(f"{path}, row {number} has no field {name!r}, which the first has")
            both = {type(value), type(row[name])} - {type(None)}
            if len(both) > 1 and both != {int, float}:
                kinds = f"{type(row[name]).__name__}, in the first row {type(value).__name__}"
                raise UserError(f"{path}, row {number}: {name!r} is {kinds}")
    if not rows:
        raise UserError(f"{path} is empty")
    return rows


def _not_utf8(table: Any) -> int:
    """Return the number of the first row of a parquet table with a text that is not UTF-8."""
    for row in range(table.num_rows):
        try:
            table.slice(row, 1).to_pylist()
        except UnicodeDecodeError:
            return row + 1
    return 0


def places_of(paths: Iterable[Path]) -> list[str]:
    """Return the file and the row of each document of a split, in order."""
    return [f"{path}, row {row}" for path in paths for row, _ in read_rows(path)]


def read_rows(path: Path) -> Iterable[tuple[int, Any]]:
    """Return the rows of a file, each with its number, counted from 1; in JSON lines blank ones count too."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import read_table

        try:
            table = read_table(path)
            return enumerate(table.to_pylist(), 1)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, row {_not_utf8(table)}: not UTF-8, {error.reason}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if path.suffix == ".json" and read_text(path).lstrip().startswith("["):
        return enumerate(read_json(path), 1)
    return json_lines(path)

"""Tables as CSV, in which a spreadsheet finds values and no formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from mm_lightning.redaction import redact
from mm_lightning.terminal import visible

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows of cells as CSV.

    A text that a spreadsheet would compute gets an apostrophe before it; texts that are numbers, such as -1.5, do not.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = visible(redact(value))  # a carriage return would end the row
    if not text.startswith(_FORMULA):
        return f"'{text}" if value.startswith(_FORMULA) else text
    try:
        float(value)
    except ValueError:
        return f"'{text}"
    return text

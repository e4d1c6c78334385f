"""What a benchmark leaves behind: a table with its settings and machine, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mm_lightning.console import print_table
from mm_lightning.outputs import Output, opened


def report(
    result: dict[str, Any],
    title: str,
    columns: Sequence[str],
    labels: int,
    sections: Iterable[Iterable[Sequence[str]]],
    target: Output | None,
) -> None:
    """Print the table and write the result.

    Args:
        result: with settings, and what `machine` says.
        title: of the table.
        columns: their headings.
        labels: columns that stand left, the first ones.
        sections: rows of cells, with a line between sections.
        target: the JSON file, if one is wanted.
    """
    settings = {**result.get("dimensions", {}), **result["settings"]}
    described = ", ".join(f"{key} {value}" for key, value in settings.items())
    lines: list[Sequence[str] | None] = []
    for rows in sections:
        lines += [*rows, None]
    print_table(columns, lines, title, f"{described}; {result['threads']} threads of {result['device']}", labels)
    if target:
        with opened(target) as file:
            file.write(json.dumps(result, indent=2) + "\n")

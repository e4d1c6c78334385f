"""What a benchmark leaves behind: a table with its settings and machine, and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mm_lightning.outputs import Output, opened
from mm_lightning.terminal import console


def report(
    result: dict[str, Any],
    title: str,
    columns: Sequence[str],
    labels: int,
    sections: Iterable[Iterable[Sequence[str]]],
    target: Output | None,
) -> None:
    """Prints the table and writes the result.

    Args:
        result: with settings, and what `machine` says.
        title: of the table.
        columns: their headings.
        labels: columns that stand left, the first ones.
        sections: rows of cells, with a line between sections.
        target: the JSON file, if one is wanted.
    """
    from rich.table import Table

    settings = ", ".join(
        f"{key} {value}" for key, value in {**result.get("dimensions", {}), **result["settings"]}.items()
    )
    table = Table(title=title, caption=f"{settings}; {result['threads']} threads of {result['device']}")
    for number, heading in enumerate(columns):
        table.add_column(heading, justify="left" if number < labels else "right")
    for rows in sections:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    console(width=140).print(table)
    if target:
        with opened(target) as file:
            file.write(json.dumps(result, indent=2) + "\n")

"""Benchmarks beside each other, as the paper shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mm_lightning.evaluation.persistent.definitions import DEFINITIONS, OTHER_6, PERSISTENT_13
from mm_lightning.markdown import Markup, markdown_table

TABLES = {"Persistent knowledge": PERSISTENT_13, "Other benchmarks": OTHER_6}


def overview(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each of the paper's two groups the one number of each benchmark, and their mean where it is whole.

    Args:
        results: contents of results.json, of any tasks.

    Returns:
        nothing where there are fewer than two benchmarks of a group.
    """
    runs = list(dict.fromkeys(result["run"] for result in results))
    cells = {(result["task"], result["run"]): found for result in results if (found := score(result)) is not None}
    text = []
    for title, names in TABLES.items():
        there = [name for name in names if any((name, run) in cells for run in runs)]
        if len(there) < 2:
            continue
        columns = [run for run in runs if any((name, run) in cells for name in there)]
        lines = [[DEFINITIONS[name].label, *(_percent(cells.get((name, run))) for run in columns)] for name in there]
        if any(means := [mean(cells, names, run) for run in columns]):
            lines.append([Markup(f"**mean of {len(names)}**"), *map(_percent, means)])
        text.append(f"## {title}\n\n{markdown_table(['benchmark', *columns], lines)}\n")
    return "\n".join(text)


def score(result: dict[str, Any]) -> tuple[float, float] | None:
    """A benchmark's number in the table and its standard error, as shares."""
    definition = DEFINITIONS.get(result["task"])
    for row in result["rows"]:
        if definition and row["metric"] == definition.score and not row["group"]:
            return row["value"], row["stderr"] or 0.0
    return None


def mean(
    cells: dict[tuple[str, str], tuple[float, float]], names: Sequence[str], run: str
) -> tuple[float, float] | None:
    """Of all benchmarks of a group; None where one is missing."""
    found = [cells.get((name, run)) for name in names]
    known = [cell for cell in found if cell is not None]
    if len(known) < len(names):
        return None
    error = math.sqrt(sum(error**2 for _, error in known)) / len(names)
    return math.fsum(value for value, _ in known) / len(names), error


def _percent(cell: tuple[float, float] | None) -> str:
    return "" if cell is None else f"{100 * cell[0]:.1f} ± {100 * cell[1]:.1f}"

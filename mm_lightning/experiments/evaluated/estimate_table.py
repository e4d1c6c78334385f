"""Tables of estimates beside published numbers, for the page and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mm_lightning.console import print_table
from mm_lightning.csv_text import csv_text
from mm_lightning.experiments import page
from mm_lightning.experiments.evaluated.estimates import Estimate
from mm_lightning.experiments.page import NOTHING

Cell = Estimate | float | int | str | None


@dataclass
class EstimateTable:
    """A table.

    Attributes:
        name: of its CSV file.
        heads: names of the columns: labels of a line first, then numbers.
        labels: number of columns that are labels.
        rows: cells.
        published_rows: lines of numbers that others published.
        published_columns: columns of such numbers.
    """

    name: str
    heads: Sequence[str]
    labels: int = 1
    rows: list[list[Cell]] = field(default_factory=list)
    published_rows: set[int] = field(default_factory=set)
    published_columns: set[int] = field(default_factory=set)

    def add(self, *cells: Cell, published: bool = False) -> None:
        """Add a line; missing cells at its end are empty."""
        if published:
            self.published_rows.add(len(self.rows))
        self.rows.append([*cells, *[None] * (len(self.heads) - len(cells))])

    def block(self) -> page.Table:
        """Return the table of a page."""
        rows = [[shown(cell, n < self.labels) for n, cell in enumerate(row)] for row in self.rows]
        marked = frozenset(self.published_rows), frozenset(self.published_columns)
        return page.Table(list(self.heads), rows, False, self.labels, *marked)

    def show(self) -> None:
        """Print the table; published numbers are in italics."""
        from rich.text import Text

        block = self.block()
        rows = [
            [Text(cell, "italic" if block.published(n, m) else "") for m, cell in enumerate(row)]
            for n, row in enumerate(block.rows)
        ]
        print_table(self.heads, rows, self.name, labels=self.labels)

    def csv(self) -> str:
        """Return CSV with value, ends of the interval and count of each estimate, and all other cells as they are."""
        wide = {m for m in range(len(self.heads)) if any(isinstance(row[m], Estimate) for row in self.rows)}
        ends = [" low", " high", " count"]
        heads = [[head, *(head + end for end in ends)] if m in wide else [head] for m, head in enumerate(self.heads)]
        lines: list[list[Cell]] = [["source", *(name for part in heads for name in part)]]
        for n, row in enumerate(self.rows):
            cells = [part for m, cell in enumerate(row) for part in _parts(cell, m in wide)]
            lines.append(["published" if n in self.published_rows else "ours", *cells])
        return csv_text(lines)


def _parts(cell: Cell, wide: bool) -> list[Cell]:
    if isinstance(cell, Estimate):
        numbers = (cell.value, cell.low, cell.high)
        return [*(None if x is None else round(cell.scale * x, 6) for x in numbers), cell.count]
    return [cell, None, None, None] if wide else [cell]


def shown(cell: Cell, label: bool = False) -> str:
    """Return a cell as text."""
    if cell is None:
        return "" if label else NOTHING
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)

"""Print lines, progress bars and tables of commands, on the first process only.

Texts that are the result of a command, such as a generated one, are written by :func:`mm_lightning.terminal.display`.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from mm_lightning import signals
from mm_lightning.redaction import redact
from mm_lightning.terminal import console, display

if TYPE_CHECKING:
    from rich.text import Text

LINE_SECONDS = 60.0
"""Seconds between the lines of a :class:`Progress` that is written to a pipe or a file."""


NAME_WIDTH = 24
"""Columns that the names of a table keep in a narrow terminal."""


def is_first_process() -> bool:
    """Return whether this is the first of the processes of its job, by Lightning's count where Lightning is loaded."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    return (signals.rank() if rank is None else rank) == 0


def say(message: str, stderr: bool = False) -> None:
    """Print one line, on the first process only; secrets in it are redacted."""
    if is_first_process():
        display(redact(message), file=sys.stderr if stderr else sys.stdout, flush=True)


@functools.cache
def say_once(message: str) -> None:
    """Print one line on standard error, on the first process only, the first time that it is asked for."""
    say(message, stderr=True)


class Progress:
    """A progress bar on standard error; a line a minute where that is no terminal.

    Lines printed meanwhile appear above the bar. A context manager, closed at its end.

    Args:
        title: what is done.
        total: how much there is to do; None if that is not known.
        done: how much of it is done already.
        shown: False shows nothing.
        parent: the bar below which this one appears.
    """

    def __init__(
        self, title: str, total: float | None, done: float = 0, shown: bool = True, parent: Progress | None = None
    ) -> None:
        self.title, self.total, self.done, self.note = title, total, done, ""
        self.shown, self._parent = shown and is_first_process(), parent
        self._line_at = time.monotonic() + LINE_SECONDS
        self.bars: Any = parent.bars if parent else self._open()
        if self.bars is not None:
            self._task = self.bars.add_task(title, total=total, completed=done, note=self._done_of_total())

    def _open(self) -> Any:
        if not self.shown or not sys.stderr.isatty():
            return None
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        text = [TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[note]")]
        percent = TaskProgressColumn("{task.percentage:>3.0f}%", "", markup=False)
        columns = (text[0], BarColumn(), percent, text[1], TimeRemainingColumn())
        # what is printed to a pipe stays there: only lines for the same terminal go above the bar
        bars = Bars(*columns, console=console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty())
        bars.start()
        return bars

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def part(self, title: str, total: float | None) -> Progress:
        """Return a second bar below this one, for one part of the work."""
        return Progress(title, total, shown=self.shown, parent=self)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Add what was done since the last call; `note` takes the place of the count."""
        self.update(self.done + amount, note)

    def update(self, done: float, note: str = "") -> None:
        """Set how much is done; `note` takes the place of the count."""
        self.done, self.note = done, note
        if self.bars is not None:
            self.bars.update(self._task, completed=done, note=note or self._done_of_total())
        elif self.shown and time.monotonic() > self._line_at:
            self._line_at = time.monotonic() + LINE_SECONDS
            percent = f" {100 * done / self.total:.0f}%" if self.total else ""
            say(f"{self.title}:{percent} {note or self._done_of_total()}", stderr=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bars is None:
            return
        if self._parent is not None:
            self.bars.remove_task(self._task)
        else:
            self.bars.stop()
        self.bars = None

    def _done_of_total(self) -> str:
        return f"{self.done:,.0f}" + (f"/{self.total:,.0f}" if self.total is not None else "")


def print_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str | Text] | None],
    title: str | None = None,
    caption: str | None = None,
    labels: int = 1,
) -> None:
    """Print a table on standard output, on the first process only.

    In a terminal that is too narrow, names are wrapped and numbers go on in a second table below, under the same names;
    a file or a pipe gets one table as wide as it needs to be.

    Args:
        heads: headings of the columns.
        rows: cells of each line; None leaves a line empty.
        title: the line above it.
        caption: the text below it.
        labels: how many columns at the left are names; those after them are numbers, aligned right and never wrapped.
    """
    if not is_first_process():
        return
    from rich import box
    from rich.table import Table

    out, rows = console(width=10_000), list(rows)
    widths = [3 + max(len(line[n]) for line in [heads, *filter(None, rows)]) for n in range(len(heads))]
    name_width = sum(min(width, NAME_WIDTH) for width in widths[:labels])
    pages: list[list[int]] = [[]]
    for n in range(labels, len(heads)):
        if pages[-1] and name_width + sum(widths[m] for m in [*pages[-1], n]) > out.width:
            pages.append([])
        pages[-1].append(n)
    for number, page in enumerate(pages):
        table = Table(title=None if number else title, title_justify="left", caption_justify="left")
        table.box, table.padding, table.pad_edge = box.SIMPLE_HEAD, (0, 1), False
        table.caption = caption if page is pages[-1] else None
        columns = [*range(labels), *page]
        for n in columns:
            name = n < labels
            table.add_column(heads[n], justify="left" if name else "right", no_wrap=not name, overflow="fold")
        for row in rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*(row[n] for n in columns))
        out.print(table)


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: 3725 s -> 1:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""What a preparation shows while it runs."""

from __future__ import annotations

import time
from typing import Any

from mm_lightning.terminal import console


class PrepareProgress:
    """A bar with documents and tokens per second.

    Args:
        total: the work, in bytes to read or documents to make.
        shown: whether to show anything.
        title: what is done.
    """

    def __init__(self, total: int, shown: bool, title: str = "tokenizing") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn(title),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console(stderr=True),
            disable=not shown,
        )
        self._total = total
        self._task = self._bar.add_task("", total=total, rate="")
        self._start = time.monotonic()
        self._documents = self._tokens = 0

    def __enter__(self) -> PrepareProgress:
        self._bar.start()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: Any) -> None:
        if not failed:
            self._bar.update(self._task, completed=self._total)
        self._bar.stop()

    def report(self, documents: int, tokens: int, done: int) -> None:
        """Adds what was done since the last call, `done` in the unit of the total."""
        self._documents += documents
        self._tokens += tokens
        speed = self._tokens / max(time.monotonic() - self._start, 1e-9)
        rate = f"{self._documents:,} documents, {speed:,.0f} tokens/s"
        self._bar.update(self._task, advance=done, rate=rate)

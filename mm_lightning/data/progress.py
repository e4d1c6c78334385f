"""The progress bar of a preparation."""

from __future__ import annotations

import time

from mm_lightning.console import Progress


class PrepareProgress(Progress):
    """A bar with documents and tokens per second.

    Args:
        total: the work, in bytes to read or documents to make.
        shown: whether to show anything.
        title: what is done.
    """

    def __init__(self, total: int, shown: bool, title: str = "tokenizing") -> None:
        super().__init__(title, total, shown=shown)
        self._start = time.monotonic()
        self._documents = self._tokens = 0

    def report(self, documents: int, tokens: int, done: int) -> None:
        """Add what was done since the last call, `done` in the unit of the total."""
        self._documents += documents
        self._tokens += tokens
        speed = self._tokens / max(time.monotonic() - self._start, 1e-9)
        self.advance(done, f"{self._documents:,} documents, {speed:,.0f} tokens/s")

"""Text for terminals: text of others is data there, and never an instruction.

A document, a generated text or a file's name can hold what a terminal obeys: colors, the cursor's moves, the window's
title, answers typed in the user's place, text that runs backwards. A terminal gets these characters as they are
written in source code, `\\x1b` for one. A pipe or a file gets texts exactly; tables are for people everywhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# control characters but for tab and line end; marks that turn the direction of text or are nothing to see; halves of
# surrogate pairs, which cannot be written
_OBEYED = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Return a text in which what a terminal obeys is written out; CRLF is a line end."""
    return _OBEYED.sub(lambda match: _written(match[0]), text.replace("\r\n", "\n"))


def _written(character: str) -> str:
    code = ord(character)
    return {"\r": "\\r"}.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def display(text: str, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print a text that may hold anything: with `visible` in a terminal, exactly elsewhere."""
    file = file or sys.stdout
    print(visible(text) if file.isatty() else text, end=end, file=file, flush=flush)


def console(stderr: bool = False, width: int | None = None, **options: Any) -> Console:
    """Return the console for tables, lines and progress bars, in which no text is markup, an emoji or an instruction.

    Args:
        stderr: write to standard error.
        width: columns where it is no terminal: a file has room for long names.
        options: of rich's Console.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **kwargs):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    made = Plain(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
    if width is not None and not made.is_terminal:
        made.width = width
    return made

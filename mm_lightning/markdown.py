"""Tables in Markdown, in which texts are what they say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mm_lightning.terminal import visible


class Markup(str):
    """A table cell that is Markdown already."""


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return lines of cells under their heads: the first `words` columns stand on the left, numbers on the right."""
    rule = [Markup("---")] * words + [Markup("---:")] * (len(head) - words)
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in (head, rule, *rows))


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else plain(text)


def plain(text: str) -> str:
    """Return a text of one line in which nothing is taken for Markdown, HTML or a formula."""
    text = re.sub(r"([\\|*`<>\[\]~$])", r"\\\1", visible(" ".join(text.split())))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it is nothing else
    return re.sub(r"^([#+-](?=\s|$|[#-]))", r"\\\1", text)


def code(text: str) -> str:
    """Return a text of one line as code."""
    text = visible(" ".join(text.split()))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return Markup(f"{fence}{space}{text}{space}{fence}".replace("|", "\\|"))


def code_block(text: str, language: str = "") -> str:
    """Return lines as a block of code, between more backticks than any of them has."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{visible(text)}\n{fence}"

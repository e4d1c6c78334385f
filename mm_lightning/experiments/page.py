"""A document of plain blocks, as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

from mm_lightning.markdown import Markup, code_block, markdown_table, plain
from mm_lightning.terminal import visible

NOTHING = "–"
"""The text of cells of tables that have no number."""

STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; scrollbar-width: thin; scrollbar-color: rgb(128 128 128) rgb(128 128 128 / 20%); }
.wide::-webkit-scrollbar { height: 0.6rem; }
.wide::-webkit-scrollbar-thumb { background: rgb(128 128 128); }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: Canvas; }
@media print { .wide { overflow: visible; } td { white-space: normal; } th, td { padding: 0.2rem; font-size: 0.7rem; } }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.7rem; border-bottom: 1px solid rgb(128 128 128 / 35%); text-align: right; }
th { vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child, th.label, td.label, .text th, .text td { text-align: left; }
.text td:not(:first-child) { white-space: normal; }
.published { font-family: Georgia, serif; font-style: italic; font-weight: normal; opacity: 0.75; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1.2rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figure svg { max-width: 100%; height: auto; }
figcaption { font-size: 0.875rem; opacity: 0.8; }
pre { overflow-x: auto; padding: 0.8rem; background: rgb(128 128 128 / 15%); border-radius: 4px; }"""


GROUND = '<rect width="100%" height="100%" fill="#ffffff"/>'
"""The white ground of a drawing in a file of its own, which a page leaves out."""


@dataclass
class Heading:
    """A section's title; level 3 within a section."""

    text: str
    level: int = 2


@dataclass
class Text:
    """A paragraph."""

    text: str


@dataclass
class Points:
    """A list of sentences."""

    items: list[str]


@dataclass
class Facts:
    """Names, each with a text about it."""

    items: dict[str, str]


@dataclass
class Code:
    """A command line."""

    text: str


@dataclass
class Table:
    """Cells of text under columns; numbers stand on the right, words (`words`, and the first `labels`) on the left.

    Lines and columns of numbers that others published are in another type face.
    """

    columns: list[str]
    rows: list[list[str]]
    words: bool = False
    labels: int = 1
    published_rows: frozenset[int] = frozenset()
    published_columns: frozenset[int] = frozenset()

    def published(self, row: int | None, column: int) -> bool:
        """Return whether a cell, or the head of a column (row None), is a published number."""
        return column in self.published_columns or row in self.published_rows


@dataclass
class Drawing:
    """A drawing: the SVG document, the name of its file, its caption, and perhaps the same as PNG."""

    svg: str
    name: str
    caption: str
    png: bytes = b""
    figure: Any = field(default=None, compare=False)


Block = Heading | Text | Points | Facts | Code | Table | Drawing


def markdown(title: str, blocks: list[Block]) -> str:
    """Return the document as Markdown; figures are looked for as figures/NAME.svg beside it."""
    parts = [f"# {plain(title)}", *(markdown_block(block) for block in blocks)]
    return "\n\n".join(parts) + "\n"


def markdown_block(block: Block) -> str:
    """Return one block as Markdown."""
    match block:
        case Heading(text, level):
            return f"{'#' * level} {plain(text)}"
        case Text(text):
            return plain(text)
        case Points(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case Facts(items):
            return "\n".join(f"- **{plain(name)}**: {plain(text)}" for name, text in items.items())
        case Code(text):
            return code_block(text, "bash")
        case Table(columns, rows, words):
            head, *cells = (
                [_slanted(cell, block.published(n, m)) for m, cell in enumerate(row)]
                for n, row in [(None, columns), *enumerate(rows)]
            )
            return markdown_table(head, cells, len(columns) if words else block.labels)
        case Drawing(name=name, caption=caption):
            return f"![{plain(caption)}](figures/{name}.svg)\n\n*{plain(caption)}*"


def _slanted(text: str, slanted: bool) -> str:
    return Markup(f"*{plain(text)}*" if slanted and text.strip() else plain(text))


def page(title: str, blocks: list[Block]) -> str:
    """Return the document as HTML that needs no other file."""
    body = "\n".join(_html_block(block) for block in blocks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escaped(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{_escaped(title)}</h1>
{body}
</body>
</html>
"""


def _escaped(text: str) -> str:
    """Return a text in which nothing is taken for HTML, or cannot be seen."""
    return html.escape(visible(text))


def _html_block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_escaped(text)}</h{level}>"
        case Text(text):
            return f"<p>{_escaped(text)}</p>"
        case Points(items):
            return "<ul>\n" + "\n".join(f"<li>{_escaped(item)}</li>" for item in items) + "\n</ul>"
        case Facts(items):
            rows = (f"<dt>{_escaped(name)}</dt><dd>{_escaped(text)}</dd>" for name, text in items.items())
            return "<dl>\n" + "\n".join(rows) + "\n</dl>"
        case Code(text):
            return f"<pre>{_escaped(text)}</pre>"
        case Table(columns, rows, words):
            head = "".join(_cell("th", cell, block, None, m) for m, cell in enumerate(columns))
            lines = (
                "".join(_cell("td", cell, block, n, m) for m, cell in enumerate(row)) for n, row in enumerate(rows)
            )
            body = "\n".join(f"<tr>{line}</tr>" for line in lines)
            kind = ' class="text"' if words else ""
            return f'<div class="wide" tabindex="0"><table{kind}>\n<tr>{head}</tr>\n{body}\n</table></div>'
        case Drawing(svg=svg, caption=caption):
            return f"<figure>\n{_inline(svg, caption)}\n<figcaption>{_escaped(caption)}</figcaption>\n</figure>"


def _cell(tag: str, text: str, table: Table, row: int | None, column: int) -> str:
    kinds = ["label"] if 0 < column < table.labels else []  # the first column is one anyway
    kinds += ["published"] if table.published(row, column) else []
    mark = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<{tag}{mark}>{_escaped(text)}</{tag}>"


def _inline(svg: str, caption: str) -> str:
    """Return the drawing as part of a page: on the page's ground, in the page's color."""
    from mm_lightning.style import INK

    drawing = svg[svg.index("<svg") :].replace(GROUND, "", 1).replace(INK, "currentColor")
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{_escaped(caption)}" ', 1).strip()

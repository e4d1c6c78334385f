"""Text of others is data wherever it is shown or stored: one list of hostile names through every writer."""

import csv
import io
import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.table import Table

import mm_lightning
from mm_lightning.csv_text import csv_text
from mm_lightning.experiments import page
from mm_lightning.experiments.drawing import drawing
from mm_lightning.markdown import code, code_block, markdown_table, plain
from mm_lightning.style import figure_of
from mm_lightning.terminal import console, display, visible

HOSTILE = [
    "$a$ and $\\frac{",
    "\\$5 $",
    "$\\mathdefault{x$",
    "[/a] [bold]x[/] [link=file:///etc/passwd]y[/link] :smile:",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "a\rb\x08\x08c\x00d\x7f",
    "abc\u202edcba\u2066\u200b\ufeff",
    "\ud800 half",
    '=HYPERLINK("http://x",A1)',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "a | b `c` **d** _e_ ~~f~~",
    "</td></svg><script>alert(1)</script>",
    '" onload="alert(1)',
    "](javascript:alert(1)) ![x](http://x/y.png)",
    "<img src=x onerror=alert(1)>",
    "# heading\n\n- item\n```\n---",
    "name?a#b%20c d&amp;e",
    "--- \nlicense: x",
]
TERMINAL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("text", HOSTILE)
def test_terminal(text, monkeypatch):
    out = Terminal()
    display(text, file=out)
    assert not TERMINAL.search(out.getvalue())
    exact = io.StringIO()
    display(text, file=exact)
    assert exact.getvalue() == text + "\n"
    assert visible(visible(text)) == visible(text)
    for terminal in (False, True):
        out = io.StringIO()
        shown = console(file=out, force_terminal=terminal, width=200, color_system=None)
        table = Table(text, title=text, caption=text)
        table.add_row(text)
        shown.print(table)
        shown.print(text, style="bold", soft_wrap=True)
        assert not TERMINAL.search(re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()) if terminal else out.getvalue())
        assert max(re.findall(r"\w+", text), key=len) in out.getvalue()


def test_what_people_write_is_shown_as_it_is():
    text = "naïve 字 🙂\tx\n\u0301 \u200d A$ [x] é"
    assert visible(text) == text
    assert visible("a\r\nb\rc") == "a\nb\\rc"


@pytest.mark.parametrize("text", HOSTILE)
def test_csv(text):
    cells = ["x", text, -1.5, "-1.5", "+3", "1e-3", "-inf", None]
    ((_, kept, *numbers),) = csv.reader(io.StringIO(csv_text([cells]), newline=""))
    assert not kept.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert kept.removeprefix("'") == visible(text)
    assert numbers == ["-1.5", "-1.5", "+3", "1e-3", "-inf", ""]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown(text):
    table = markdown_table([text, "n"], [[text, "1"], ["a", text]])
    assert len(table.split("\n")) == 4
    for line in table.split("\n"):
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
    line = plain(text)
    assert "\n" not in line
    assert not re.search(r"(?<!\\)(?:\\\\)*[<>`\[\]*$]", line)
    assert not TERMINAL.search(line)
    assert not line.startswith(("# ", "- ", "---"))
    fence = code_block(text).split("\n")
    assert fence[0] == fence[-1]
    assert fence[0] not in fence[1:-1]
    assert "\n" not in code(text)


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attributes):
        self.seen |= {tag, *(name for name, _ in attributes)}


def blocks(text):
    table = page.Table([text, "n"], [[text, "1"]], published_rows=frozenset({0}))
    picture = page.Drawing("<svg >x</svg>", "name", text)
    return [
        page.Heading(text),
        page.Text(text),
        page.Points([text]),
        page.Facts({text: text}),
        page.Code(text),
        table,
        picture,
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_pages(text):
    tags, calm = Tags(), Tags()
    tags.feed(page.page(text, blocks(text)))
    calm.feed(page.page("x", blocks("x")))
    assert tags.seen == calm.seen
    assert not TERMINAL.search(page.page(text, blocks(text)))
    assert not TERMINAL.search(page.markdown(text, blocks(text)))


def test_figures():
    """In one figure, for which Matplotlib takes its time: titles, legends, labels of axes, and names at ticks."""
    figure, grid = figure_of(12, 24)
    for n, text in enumerate(HOSTILE):
        grid.plot([1, 1000], [n, n], label=text)
    grid.set_yticks(range(len(HOSTILE)), HOSTILE)
    grid.set_title("\n".join(HOSTILE))
    grid.set_xlabel(HOSTILE[0])
    grid.set_xscale("log")
    grid.legend()
    picture = drawing(figure, "name", "x", png=True)
    assert picture.png.startswith(b"\x89PNG")
    assert not TERMINAL.search(picture.svg)
    root = xml.etree.ElementTree.fromstring(picture.svg)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"script", "image", "a", "foreignObject", "animate"}
    written = "\n".join("".join(part.itertext()) for part in root.iter("{http://www.w3.org/2000/svg}text"))
    for text in HOSTILE:
        first = next(line for line in visible(text).split("\n") if line).strip()
        assert written.count(first) >= 3, text  # at its tick, in the legend and in the title
    assert "$\\mathdefault{10" not in written  # the powers of the logarithmic axis are still computed


PRINTING = {
    "function_command.py",
    "cli.py",
    "terminal.py",
    "streams.py",
    "outputs.py",
    "experiments/cost_command.py",
    "data/sequences.py",
}
PRINTING |= {"inference/model_card.py", "callbacks/watchdog.py"}
"""Modules that print what holds no text of others: help, numbers, what became of a stream or process."""


def test_texts_are_printed_and_tables_made_in_one_place():
    root = Path(mm_lightning.__file__).parent
    for path in [*root.rglob("*.py"), *(root.parent / "callbacks").rglob("*.py")]:
        name = str(path.relative_to(root.parent)).removeprefix("mm_lightning/")
        text = path.read_text(encoding="utf-8")
        if name not in PRINTING:
            assert not re.search(r"(?<![\w.`\"])print\(", text), f"{name}: display() of terminal.py shows texts"
        if name != "terminal.py":
            assert not re.search(r"(?<!\w)Console\(|rich\.markup", text), f"{name}: console() of terminal.py"
        if name != "csv_text.py":
            assert "csv.writer(" not in text, f"{name}: csv_text"

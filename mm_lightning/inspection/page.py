"""Write the page of `mm inspect`: one HTML file with its style, script and data."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from typing import Any

from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.inference.text import HALF, TextStream

SCRIPTS = ("data", "reads", "heads", "profile", "page")
"""The parts of the page's script in their order."""


def write_page(data: dict[str, Any]) -> str:
    """Return the HTML of a page whose script reads `data` as JSON."""
    folder = files("mm_lightning.inspection")
    style, template = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "html"))
    script = "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    # a literal </script> in a text must not end the element
    numbers = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {"title": html.escape(data["title"]), "style": style, "script": script, "data": numbers}
    return re.sub(r"\{(title|style|script|data)\}", lambda mark: values[mark[1]], template)


def texts_of(tokenizer: Tokenizer, tokens: set[int]) -> dict[int, str]:
    """Return the text of each token behind another; parts of a character are shown as the replacement character."""
    before = tokenizer.encode("a")
    prefix = tokenizer.decode(before, special=True)
    # behind another token, because some tokenizers drop the space that begins a text
    decoded = {token: tokenizer.decode([*before, token], special=True) for token in sorted(tokens)}
    return {token: text.removeprefix(prefix) for token, text in decoded.items()}


def pieces_of(tokenizer: Tokenizer, tokens: list[int], texts: dict[int, str]) -> list[str]:
    """Return the text of each token in a document; of several tokens of one character, all but the last are empty.

    Args:
        tokenizer: of the tokens.
        tokens: of the document.
        texts: from :func:`texts_of`, for tokens without text in a document, such as `bos`.
    """
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) or texts[token] for token in tokens]
    return ["" if piece and not piece.strip(HALF) else piece for piece in pieces]

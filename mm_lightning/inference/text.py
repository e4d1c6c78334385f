"""Decode tokens that come one at a time, up to stop strings; escape and unescape texts of a command line."""

from __future__ import annotations

from collections.abc import Sequence

from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.errors import UserError

HALF = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 4
"""Tokens that are decoded again with each new one, for tokenizers whose text depends on the tokens before; a few
more where these begin within a character."""


class TextStream:
    """A decoder of a stream of tokens, which returns pieces of text that no later token changes.

    A piece never holds half a character, nor the beginning of what may become a stop string.

    Args:
        tokenizer: of the tokens.
        stop: strings before which the text ends.
        before: tokens of the document that the text continues. Tokenizers that write a space with the word behind it
            drop the first space of a document only.

    Attributes:
        stopped: a stop string has come; it and the text behind it are not returned.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens: list[int] = []
        size, text = 4 * CONTEXT, ""
        while len(self._tokens) < len(before) and (not text or text.startswith(HALF)):
            self._tokens = list(before[-size:])
            text, size = tokenizer.decode(self._tokens), 4 * size
        self._decoded = len(text)  # characters of self._tokens that are in earlier pieces or in self._held
        self._half = False
        self._held = ""

    @property
    def settled(self) -> bool:
        """Whether the text of all tokens so far was returned."""
        return not (self._held or self._half or self.stopped)

    def add(self, token: int) -> str:
        """Add a token; return the piece of text that becomes final, which may be empty."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        certain = max(len(text.rstrip(HALF)), self._decoded)
        new, self._decoded, self._half = text[self._decoded : certain], certain, certain < len(text)
        for size in () if self._half else range(CONTEXT, CONTEXT + 4):  # one of them does not cut a character
            last = self._tokenizer.decode(self._tokens[-size:])
            if last and text.endswith(last):
                self._tokens, self._decoded = self._tokens[-size:], len(last)
                break
        return self._show(new)

    def finish(self) -> str:
        """Return the rest of the text, when no more tokens come."""
        if self.stopped:
            return ""
        last = self._show(self._tokenizer.decode(self._tokens)[self._decoded :])
        return last if self.stopped else last + self._held

    def _show(self, new: str) -> str:
        text = self._held + new
        end = min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=None)
        if end is not None:
            self.stopped = True
            return text[:end]
        longest = min(len(text), max(map(len, self._stop), default=1) - 1)
        tails = (text[len(text) - n :] for n in range(longest, 0, -1))
        self._held = next((tail for tail in tails if any(stop.startswith(tail) for stop in self._stop)), "")
        return text[: len(text) - len(self._held)]


def encode_next(tokenizer: Tokenizer, text: str, document: Sequence[int]) -> list[int]:
    """Return the tokens of a text that continues a document, which may consist of `bos` alone."""
    return tokenizer.encode_behind(text) if len(document) > 1 else tokenizer.encode(text)


def check_stop(stop: Sequence[str]) -> None:
    """Raise a UserError if `stop` is one string, or holds an empty one."""
    if isinstance(stop, str) or "" in stop:
        raise UserError(f"stop must be a list of strings that are not empty, got {stop!r}")


def unescape(text: str) -> str:
    r"""Return a text typed in a shell with `\n`, `\t` and `\\` replaced by a line end, a tab and a backslash."""
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in parts)


def escape(text: str) -> str:
    """Return a text as one line, the inverse of `unescape`."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")

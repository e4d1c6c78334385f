"""Text of tokens that come one at a time."""

from __future__ import annotations

from collections.abc import Sequence

from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.errors import UserError

HALF = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 4
"""Tokens that are decoded again with each new one, for tokenizers whose text depends on what came before."""


class TextStream:
    """Turns tokens into pieces of text that no later token changes.

    A piece never holds half a character, nor anything that may become a stop string.

    Args:
        tokenizer: of the tokens.
        stop: strings before which the text ends.

    Attributes:
        stopped: whether a stop string was found: its beginning and what follows are not shown.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens: list[int] = []
        self._decoded = 0  # characters of self._tokens that are in earlier pieces or in self._held
        self._half = False
        self._held = ""

    @property
    def settled(self) -> bool:
        """Whether all that came so far was shown."""
        return not (self._held or self._half or self.stopped)

    def add(self, token: int) -> str:
        """What the next token makes certain, perhaps nothing."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        certain = max(len(text.rstrip(HALF)), self._decoded)
        new, self._decoded, self._half = text[self._decoded : certain], certain, certain < len(text)
        if not self._half:
            self._tokens = self._tokens[-CONTEXT:]
            self._decoded = len(self._tokenizer.decode(self._tokens))
        return self._show(new)

    def finish(self) -> str:
        """The rest, where no more tokens come."""
        if self.stopped:
            return ""
        last = self._show(self._tokenizer.decode(self._tokens)[self._decoded :])
        return last if self.stopped else last + self._held

    def _show(self, new: str) -> str:
        text = self._held + new
        found = min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.stopped = True
            return text[:found]
        longest = min(len(text), max(map(len, self._stop), default=1) - 1)
        tails = (text[len(text) - n :] for n in range(longest, 0, -1))
        self._held = next((tail for tail in tails if any(stop.startswith(tail) for stop in self._stop)), "")
        return text[: len(text) - len(self._held)]


def check_stop(stop: Sequence[str]) -> None:
    """Raises a UserError where a stop string would stop everything."""
    if isinstance(stop, str) or "" in stop:
        raise UserError(f"stop must be a list of strings that are not empty, got {stop!r}")


def unescape(text: str) -> str:
    r"""A text typed in a shell: `\n` is a line end, `\t` a tab, `\\` a backslash."""
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in parts)


def escape(text: str) -> str:
    """Return the text, in one line, that `unescape` turns back into this one."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")

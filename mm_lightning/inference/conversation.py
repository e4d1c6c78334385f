"""A conversation: one document that a user and a network write in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_lightning.errors import UserError
from mm_lightning.inference.memory_file import load_memory, save_memory
from mm_lightning.inference.reader import Reader
from mm_lightning.inference.sampling import DEFAULTS, Sampler, Sampling
from mm_lightning.inference.text import TextStream, check_stop, encode_next
from mm_lightning.outputs import Output

if TYPE_CHECKING:
    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.memory.sublinear.key_clusters import SublinearRead
    from mm_lightning.networks import Network


@dataclass(frozen=True)
class Turns:
    """The text around the turns of a conversation.

    Args:
        user: the template of the user's turn, `{}` standing for the typed text.
        answer: the text before an answer.
        stop: an answer ends before any of these strings; they do not enter the document.
    """

    user: str = "{}"
    answer: str = ""
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_stop(self.stop)
        if "{}" not in self.user:
            raise UserError(f"the user's turn needs a {{}} for the typed text, got {self.user!r}")


class Conversation:
    """A document that grows turn by turn; each token is read once.

    The network remembers exactly the text that was shown: a stop string that it generated is removed from its memory.

    Args:
        network: in evaluation mode.
        tokenizer: the one it was trained with.
        sampling: the sampling settings; may be changed between turns.
        turns: the text around the turns.
        max_new_tokens: tokens of an answer at most; may be changed between turns.
        sublinear: as for :class:`Reader`.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        sampling: Sampling = DEFAULTS,
        turns: Turns | None = None,
        max_new_tokens: int = 200,
        sublinear: SublinearRead | None = None,
    ) -> None:
        self.network, self.tokenizer, self.sublinear = network, tokenizer, sublinear
        self.sampling, self.turns, self.max_new_tokens = sampling, turns or Turns(), max_new_tokens
        self._stopping = False
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.reader = Reader(self.network, sublinear=self.sublinear)
        self._answers = 0
        self.read([self.tokenizer.bos])

    def load(self, path: str | Path) -> None:
        """Replace the memory by that of a memory file."""
        self.reader = load_memory(path, self.network, self.tokenizer, sublinear=self.sublinear)
        self._answers = 0

    def save(self, path: str | Path | Output) -> None:
        """Write the memory to a memory file."""
        save_memory(path, self.reader, self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text that continues the document."""
        return encode_next(self.tokenizer, text, self.reader.documents[0])

    def read(self, text: str | list[int], report: Callable[[int], Any] | None = None) -> None:
        """Append text to the document; an interrupt restores the state before it.

        Args:
            text: the text, or its tokens.
            report: as for :meth:`Reader.read`.
        """
        tokens = self.encode(text) if isinstance(text, str) else text
        if not tokens:
            return
        mark = self.reader.mark() if len(tokens) > 1 else None
        try:
            self.reader.read([tokens], report)
        except BaseException:
            if mark is not None:
                self.reader.rewind(mark)
            raise

    def answer(self, text: str) -> Iterator[str]:
        """Yield the network's answer to the typed text, piece by piece, each when it is final and in the memory."""
        self._stopping = False
        self.read(self.turns.user.replace("{}", text) + self.turns.answer)
        sampler = Sampler(self.sampling, self.reader.documents, [self._answers])
        self._answers += 1
        stream = TextStream(self.tokenizer, self.turns.stop, self.reader.documents[0])
        mark: Any = None  # of the memory before text that may become a stop string
        since_mark = ""
        for _ in range(self.max_new_tokens):
            assert self.reader.logits is not None
            token = int(sampler.draw(self.reader.logits))
            if token == self.tokenizer.eos or self._stopping:
                break
            piece = stream.add(token)
            if mark is None and not stream.settled:
                mark, since_mark = self.reader.mark(), ""
            since_mark += piece
            if stream.stopped:
                self.reader.rewind(mark)
                self.read(since_mark)
                yield piece
                return
            self.read([token])
            if stream.settled:
                mark = None
            if piece:
                yield piece
        rest = stream.finish()
        if rest:
            yield rest

    def interrupt(self) -> None:
        """End the current answer before its next token."""
        self._stopping = True

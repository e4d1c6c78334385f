"""What many questions share: the beginning of a document, read and held once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mm_lightning.inference.reader import Reader
from mm_lightning.memory.shared import branch

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model

Tokens = Sequence[int]


@dataclass(frozen=True)
class Likelihood:
    """How probable a continuation is.

    Attributes:
        log_prob: of all its tokens, in nats.
        greedy: whether each of its tokens is the most probable one: whether greedy decoding would write it.
        tokens: how many.
    """

    log_prob: float
    greedy: bool
    tokens: int


class Branches(Reader):
    """Rows that go on from what one row has read, which they share.

    Args:
        reader: of one row, or branches themselves.
        rows: which of its rows, any of them as often as wanted.
        room: tokens by which a row may grow.

    Attributes:
        documents: the tokens of each row since it is one.
    """

    def __init__(self, reader: Reader, rows: Sequence[int], room: int) -> None:
        self.network, self.together = reader.network, reader.together
        assert reader.logits is not None
        index = torch.tensor(rows, device=reader.logits.device)
        self.state = branch(reader.state, index, self.network.new_state(len(rows)), room + 1)
        self.logits = reader.logits[index]
        own = isinstance(reader, Branches)
        self.documents = [list(reader.documents[row]) if own else [] for row in rows]

    def fork(self, rows: Sequence[int], capacity: int = 0) -> Reader:
        """As of any reader; nothing shared is copied."""
        return Branches(self, rows, max(0, capacity - self.state.length))


class Prefix:
    """The beginning of a document that was read once, for many questions about it.

    Attributes:
        reader: holds what the network remembers of it.
    """

    def __init__(self, reader: Reader, model: Model) -> None:
        self.reader, self._model = reader, model

    @property
    def tokens(self) -> list[int]:
        """What was read."""
        return self.reader.documents[0]

    @contextlib.contextmanager
    def extended(self, tokens: Tokens) -> Iterator[Prefix]:
        """Within it, this prefix goes on with more tokens; after it they are forgotten. Nothing is copied."""
        mark = self.reader.mark()
        try:
            with self._model.computing():
                self.reader.read([tokens])
            yield self
        finally:
            self.reader.rewind(mark)

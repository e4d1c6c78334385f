"""The beginning that many documents share, read and held once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mm_lightning.inference.reader import Reader
from mm_lightning.memory.shared_prefix import branch


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
        branched = isinstance(reader, Branches)
        self.documents = [list(reader.documents[row]) if branched else [] for row in rows]

    def fork(self, rows: Sequence[int], capacity: int = 0) -> Reader:
        """As of any reader; nothing shared is copied."""
        return Branches(self, rows, max(0, capacity - self.state.length))

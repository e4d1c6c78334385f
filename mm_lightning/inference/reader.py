"""Read documents with a network, chunk by chunk, into its inference state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mm_lightning.memory.sublinear.key_clusters import SublinearRead
    from mm_lightning.networks import Network

READ_TOKENS = 2048
"""Tokens of a chunk, over all documents, which bounds the memory that reading needs."""


class Reader:
    """A batch of documents that a network reads, each token once, and the state after them.

    Args:
        network: in evaluation mode.
        batch: number of documents B.
        capacity: tokens of a document to preallocate.
        together: tokens of a chunk, over all documents.
        sublinear: sub-linear reads of long memories while decoding; exact reads if not given.

    Attributes:
        state: the inference state of the network.
        documents: the tokens of each document, all of them read.
        logits: (B, V) for the token after each document; None before anything was read.
    """

    def __init__(
        self,
        network: Network,
        batch: int = 1,
        capacity: int = 0,
        together: int = READ_TOKENS,
        sublinear: SublinearRead | None = None,
    ) -> None:
        self.network, self.together, self.sublinear = network, together, sublinear
        self.state = network.new_state(batch, capacity, sublinear)
        self.documents: list[list[int]] = [[] for _ in range(batch)]
        self.logits: Tensor | None = None

    def read(self, tokens: Sequence[Sequence[int]], report: Callable[[int], Any] | None = None) -> None:
        """Append tokens to every document and read them.

        Args:
            tokens: the next tokens of each document. Their numbers may differ at the beginning of the documents only.
            report: called after each chunk with the number of its tokens in a row.
        """
        longest = max(map(len, tokens))
        missing = [longest - len(row) for row in tokens]
        if any(missing) and (self.state.length or max(missing) == longest):
            raise ValueError("only at their beginning may documents have unequal numbers of tokens, and none of them 0")
        device = next(self.network.parameters()).device
        rows = torch.tensor([[0] * pad + list(row) for row, pad in zip(tokens, missing, strict=True)])
        starts = None
        if any(missing):
            starts = torch.arange(longest) == torch.tensor(missing)[:, None]
        size = max(1, self.together // len(missing))
        for at in range(0, longest, size):
            part = slice(at, at + size)
            begin = None if starts is None else starts[:, part].to(device)
            with torch.inference_mode():
                logits = self.network(rows[:, part].to(device), state=self.state, starts=begin, logits_to_keep=1)
                self.logits = logits[:, -1]
            if report is not None:
                report(min(size, longest - at))
        for document, row in zip(self.documents, tokens, strict=True):
            document.extend(row)

    def fork(self, rows: Sequence[int], capacity: int = 0) -> Reader:
        """Return a reader of copies of some documents, each any number of times, that continues independently.

        Args:
            rows: the documents to copy.
            capacity: tokens of a document to preallocate.
        """
        reader = Reader(self.network, len(rows), capacity, self.together, self.sublinear)
        reader.documents = [list(self.documents[row]) for row in rows]
        if self.logits is not None:
            with torch.inference_mode():
                index = torch.tensor(rows, device=self.logits.device)
                self.state.rows(index, reader.state)
                reader.logits = self.logits[index]
        return reader

    def mark(self) -> Any:
        """Return a mark of the present state, for :meth:`rewind`."""
        return self.state.mark(), [len(document) for document in self.documents], self.logits

    def rewind(self, mark: Any) -> None:
        """Restore the state of a mark; each mark can be used once."""
        state, lengths, self.logits = mark
        self.state.rewind(state)
        for document, length in zip(self.documents, lengths, strict=True):
            del document[length:]

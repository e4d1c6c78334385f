"""Answers to questions that share their demonstrations, which are read and held once.

A question is read in branches of what the network remembers of the demonstrations, its labels in branches of that:
nothing that was read is copied. Texts of equal numbers of tokens stand side by side, so that none is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mm_lightning.evaluation.shared_prefix import Branches
from mm_lightning.inference.reader import Reader

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model


@dataclass
class Tree:
    """Token sequences as a prefix tree without nodes of one child.

    Attributes:
        ends: which sequences end here.
        branches: tokens, and the tree behind them.
    """

    ends: list[int] = field(default_factory=list)
    branches: list[tuple[list[int], Tree]] = field(default_factory=list)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Tree:
        """The tree of sequences, none of them empty, called by their places."""
        return cls._below({number: list(tokens) for number, tokens in enumerate(sequences)})

    @classmethod
    def _below(cls, sequences: dict[int, list[int]]) -> Tree:
        tree = cls([number for number, tokens in sequences.items() if not tokens])
        by_first: dict[int, dict[int, list[int]]] = {}
        for number, tokens in sequences.items():
            if tokens:
                by_first.setdefault(tokens[0], {})[number] = tokens
        for group in by_first.values():
            shared = _shared(list(group.values()))
            rest = {number: tokens[len(shared) :] for number, tokens in group.items()}
            tree.branches.append((shared, cls._below(rest)))
        return tree


def _shared(sequences: list[list[int]]) -> list[int]:
    """The longest beginning of all."""
    low, high = min(sequences), max(sequences)
    length = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]


def log_likelihoods(reader: Reader, tree: Tree, count: int, rows: int) -> Tensor:
    """log p of each sequence of a tree after each of a reader's documents.

    Every node is read once for each document, its last token not at all.

    Args:
        reader: of B documents; it stays as it is.
        tree: of `count` sequences.
        count: N.
        rows: branches to read side by side, at most.

    Returns:
        (B, N) in nats, float32, or float64 where the network computes in it.
    """
    assert reader.logits is not None
    with torch.inference_mode():
        following = _log_softmax(reader.logits)
        log_probs = following.new_zeros(len(following), count)
        documents = [(document, tree) for document in range(len(following))]
        _walk(reader, documents, following, following.new_zeros(len(following)), log_probs, rows)
    return log_probs


def _walk(
    reader: Reader, nodes: list[tuple[int, Tree]], following: Tensor, total: Tensor, log_probs: Tensor, rows: int
) -> None:
    """Fill in `log_probs` from where the rows of a reader stand.

    Args:
        reader: of B rows.
        nodes: of each row, which document it goes on from, and its place in the tree.
        following: (B, V), log p of the next token.
        total: (B,), log p of the row since it left its document.
        log_probs: (B', N), to be filled in.
        rows: at most, side by side.
    """
    # By how many tokens are to be read, and whether one is left that is not: rows, tokens and what is behind them.
    edges: dict[tuple[int, bool], list[tuple[int, list[int], Tree]]] = {}
    for row, (document, tree) in enumerate(nodes):
        for number in tree.ends:
            log_probs[document, number] = total[row]
        for tokens, below in tree.branches:
            last = not below.branches
            edges.setdefault((len(tokens) - last, last), []).append((row, tokens, below))
    for (length, _), alike in sorted(edges.items(), key=lambda entry: entry[0]):
        for at in range(0, len(alike), rows):
            part = alike[at : at + rows]
            places = [row for row, _, _ in part]
            read = torch.tensor([tokens for _, tokens, _ in part], device=following.device)
            logs = following[places][:, None]  # (n, 1 + length, V): of each of the tokens, and of the next one
            branches = reader
            if length:
                branches = Branches(reader, places, length)
                after = reader.network(read[:, :length], state=branches.state)
                logs = torch.cat([logs, _log_softmax(after)], 1)
            log_prob = logs[:, : read.shape[1]].gather(-1, read[..., None])[..., 0].sum(1)
            behind = [(nodes[row][0], tree) for row, _, tree in part]
            _walk(branches, behind, logs[:, -1], total[places] + log_prob, log_probs, rows)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


class Shared:
    """The beginning of many documents, read once.

    Args:
        model: who reads.
        room: tokens that documents have besides the beginning, at most.
    """

    def __init__(self, model: Model, room: int) -> None:
        self.model, self.room = model, room
        self.reader = Reader(model.network, together=model.together)

    def read(self, tokens: Sequence[int]) -> int:
        """Makes these tokens the beginning: what it has of them already is not read again.

        Returns:
            how many were read.
        """
        have = self.reader.documents[0]
        if not have or list(tokens[: len(have)]) != have:
            self.reader, have = Reader(self.model.network, 1, len(tokens), self.model.together), []
        new = list(tokens[len(have) :])
        if new:
            with self.model.computing(), self.model.reading(len(new)) as report:
                self.reader.read([new], report)
        return len(new)

    def batches(self, documents: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Reader]]:
        """Readers that have read the beginning and then documents, at most the model's batch_size of equal lengths.

        Yields:
            which documents these are, and their reader.
        """
        by_length: dict[int, list[int]] = {}
        for number, document in enumerate(documents):
            by_length.setdefault(len(document), []).append(number)
        for _, numbers in sorted(by_length.items()):
            for at in range(0, len(numbers), self.model.batch_size):
                batch = numbers[at : at + self.model.batch_size]
                with self.model.computing():
                    reader = Branches(self.reader, [0] * len(batch), self.room)
                    reader.read([documents[number] for number in batch])
                yield batch, reader

"""Several continuations of each of many contexts; each context is read once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_lightning.evaluation.prefix import Branches, Likelihood
from mm_lightning.inference.reader import Reader

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Model
    from mm_lightning.evaluation.prefix import Prefix

Tokens = Sequence[int]


@dataclass(frozen=True)
class Choices:
    """A context and its continuations.

    Attributes:
        context: the whole document so far.
        continuations: at least one token each.
    """

    context: Tokens
    continuations: Sequence[Tokens]


def likelihoods(model: Model, questions: Sequence[Choices], prefix: Prefix | None = None) -> list[list[Likelihood]]:
    """How probable the continuations of each context are.

    Args:
        model: who is asked.
        questions: in any order; those of like lengths are read side by side.
        prefix: what all contexts begin with, and go on from.
    """
    found: list[list[Likelihood]] = [[] for _ in questions]
    begin = 0 if prefix is None else len(prefix.tokens)
    for batch in _batches(model, questions, alike=prefix is not None):
        contexts = [list(questions[n].context[begin:]) for n in batch]
        with model.computing():
            reader = _reader(model, len(batch), max(map(len, contexts)), prefix)
            reader.read(contexts)
            for n, likelihood in _continue(model, reader, [questions[n].continuations for n in batch]):
                found[batch[n]].append(likelihood)
    return found


def _batches(model: Model, questions: Sequence[Choices], alike: bool) -> Iterator[list[int]]:
    """Numbers of questions to read side by side, the longest first; of equal lengths where they must be."""
    order = sorted(range(len(questions)), key=lambda n: -len(questions[n].context))
    at = 0
    while at < len(order):
        longest = len(questions[order[at]].context)
        batch = order[at : at + model.rows_of(longest)]
        if alike:
            batch = [n for n in batch if len(questions[n].context) == longest]
        yield batch
        at += len(batch)


def _reader(model: Model, rows: int, room: int, prefix: Prefix | None) -> Reader:
    if prefix is None:
        return Reader(model.network, rows, room, model.together)
    return Branches(prefix.reader, [0] * rows, room)


def _continue(
    model: Model, reader: Reader, continuations: Sequence[Sequence[Tokens]]
) -> Iterator[tuple[int, Likelihood]]:
    """The likelihoods of each row's continuations, in order, and whose they are."""
    pairs = [(row, list(tokens)) for row, several in enumerate(continuations) for tokens in several]
    size = model.rows_of(reader.state.length + max(len(tokens) for _, tokens in pairs))
    for at in range(0, len(pairs), size):
        part = pairs[at : at + size]
        rows = [row for row, _ in part]
        longest = max(len(tokens) for _, tokens in part)
        if longest == 1:  # nothing is read
            branches = copy.copy(reader)
            assert reader.logits is not None
            branches.logits = reader.logits[rows]
        else:
            branches = reader.fork(rows, reader.state.length + longest)
        yield from zip(rows, model.score(branches, [([], tokens) for _, tokens in part]), strict=True)

"""Likelihoods of continuations: several of each of many contexts, each context read once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_lightning.evaluation.shared_prefix import Branches
from mm_lightning.inference.reader import Reader

if TYPE_CHECKING:
    from mm_lightning.evaluation.model import Likelihood, Model, Tokens


@dataclass(frozen=True)
class Choices:
    """A context and its continuations.

    Attributes:
        context: the whole document so far, at least one token.
        continuations: at least one token each.
    """

    context: Tokens
    continuations: Sequence[Tokens]


def likelihoods(model: Model, questions: Sequence[Choices], beginning: Reader | None = None) -> list[list[Likelihood]]:
    """Return the likelihoods of the continuations of each context.

    Args:
        model: the network.
        questions: in any order; those of like lengths are read side by side.
        beginning: of :meth:`Model.prefill`, what all contexts begin with; it is not read again, and stays as it is.
    """
    answers: list[list[Likelihood]] = [[] for _ in questions]
    known = 0 if beginning is None else len(beginning.documents[0])
    for batch in model.batches([len(question.context) for question in questions], alike=beginning is not None):
        contexts = [list(questions[n].context[known:]) for n in batch]
        room = max(map(len, contexts))
        with model.computing():
            if beginning is None:
                reader = Reader(model.network, len(batch), room, model.together)
            else:
                reader = Branches(beginning, [0] * len(batch), room)
            reader.read(contexts)
            for n, likelihood in _continue(model, reader, [questions[n].continuations for n in batch]):
                answers[batch[n]].append(likelihood)
    return answers


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
        yield from zip(rows, model.score(branches, [tokens for _, tokens in part]), strict=True)

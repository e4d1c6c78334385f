"""RegBench's two measures, and what simple predictors reach."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from mm_lightning.data.automata import LETTERS

_ORDERS = (2, 3, 4)  # of the n-gram predictors
_START = -1  # stands before the first letter of a word


def letters_of(allowed: Tensor) -> Tensor:
    """(..., 18) bool from the bit masks of letters, int64."""
    return (allowed.unsqueeze(-1) >> torch.arange(LETTERS, device=allowed.device) & 1).bool()


class _OverLetters(Metric):
    """A mean over the positions where a letter follows."""

    full_state_update = False
    sum: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("sum", "count"):
            # float64, because float32 loses count after 2^24
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, allowed: Tensor) -> None:
        """Add positions.

        Args:
            logits: (..., V) of the next token, V at least 18: the letters come first.
            allowed: (...) int64, bit a for letter a if it may come next; 0 where the position does not count.
        """
        counts = allowed != 0
        letters = letters_of(allowed[counts])
        self.sum += self.score(logits[counts][:, :LETTERS].float(), letters).double().sum()
        self.count += len(letters)

    def score(self, logits: Tensor, letters: Tensor) -> Tensor:
        """(positions,) the measure, from (positions, 18) logits and the letters that are allowed."""
        raise TypeError("a measure over letters says how to score them")

    def compute(self) -> Tensor:
        """The mean over all positions of all devices."""
        return self.sum / self.count


class LetterAccuracy(_OverLetters):
    """Share of positions where the most probable letter is one that the automaton allows."""

    higher_is_better = True

    def score(self, logits: Tensor, letters: Tensor) -> Tensor:
        return letters.gather(1, logits.argmax(1, keepdim=True))


class TotalVariation(_OverLetters):
    """Total variation distance of the next letter's distribution from the automaton's, half the sum of differences.

    The network's is a softmax over the letters alone; the automaton's is uniform over the letters that it allows.
    """

    higher_is_better = False

    def score(self, logits: Tensor, letters: Tensor) -> Tensor:
        return (logits.softmax(1) - letters / letters.sum(1, keepdim=True)).abs().sum(1) / 2


def measures() -> MetricCollection:
    """Both, by the names they are logged under."""
    return MetricCollection({"accuracy": LetterAccuracy(), "total_variation": TotalVariation()}, compute_groups=False)


def baselines(documents: list[np.ndarray], masks: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Each measure of each simple predictor: `{"validation/accuracy": {"oracle": 1.0, ...}, ...}`.

    The oracle knows the automaton. An n-gram predictor counts which letters followed the last n-1 letters of the
    word, or its beginning, so far in this document, and falls back to shorter contexts where there were none.

    Args:
        documents: tokens of each.
        masks: of the letters that may follow each token, 0 where none does.
    """
    names = ["oracle", *(f"{n}-gram in context" for n in _ORDERS), "uniform"]
    scores = {name: measures() for name in names}
    for tokens, allowed in zip(documents, masks, strict=True):
        counted = torch.from_numpy(allowed[allowed != 0].astype(np.int64))
        oracle = letters_of(counted).long()
        grams = torch.from_numpy(np.array(list(_counts(tokens.tolist())))).unbind(1)
        weights = [oracle, *grams, torch.ones_like(oracle)]
        for name, weight in zip(names, weights, strict=True):
            scores[name].update(weight.log(), counted)
    values = {name: score.compute() for name, score in scores.items()}
    return {f"validation/{key}": {name: float(values[name][key]) for name in names} for key in values["oracle"]}


def _counts(tokens: list[int]) -> Iterator[list[list[int]]]:
    """Yield (predictors, 18) before each letter: how often every letter has followed the predictor's context."""
    followed: dict[tuple[int, ...], list[int]] = {}
    last: tuple[int, ...] = ()
    for token in tokens:
        if token >= LETTERS:
            last = (_START,)
            continue
        contexts = [last[len(last) - length :] for length in range(len(last) + 1)]
        best, counts = [1] * LETTERS, []
        for n in range(1, max(_ORDERS) + 1):
            if n <= len(contexts):
                best = followed.get(contexts[n - 1], best)
            if n in _ORDERS:
                counts.append(best.copy())
        yield counts
        for context in contexts:
            followed.setdefault(context, [0] * LETTERS)[token] += 1
        last = (*last, token)[1 - max(_ORDERS) :]

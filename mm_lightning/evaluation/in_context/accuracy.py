"""Accuracies and their standard errors, over questions that several sets of demonstrations were asked with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        seed: of the demonstrations.
        query: the question.
        label: its class.
        right: 1 or 0.
    """

    seed: int
    query: str
    label: str
    right: float


def micro(answers: Sequence[Answer]) -> tuple[float, float | None]:
    """The share of right answers, and its standard error."""
    return _mean(answers, {answer.query: "" for answer in answers})


def macro(answers: Sequence[Answer]) -> tuple[float, float | None]:
    """The mean over classes of the share of right answers to the class's questions, and its standard error."""
    return _mean(answers, {answer.query: answer.label for answer in answers})


def _mean(answers: Sequence[Answer], group: dict[str, str]) -> tuple[float, float | None]:
    """The mean over groups of questions of the mean over their questions and over seeds.

    The standard error is that of other questions and other demonstrations: the variance between a group's questions
    and that between seeds, each divided by how many there are. None where there is a single question.
    """
    by_query = _collected((answer.query, answer.right) for answer in answers)
    by_group = _collected((group[query], fmean(rights)) for query, rights in by_query.items())
    value = fmean(map(fmean, by_group.values()))
    if len(by_query) < 2:
        return value, None
    several = [(len(means) - 1, variance(means)) for means in by_group.values() if len(means) > 1]
    if several:
        pooled = sum(n * v for n, v in several) / sum(n for n, _ in several)
    else:  # no class has two questions
        pooled = variance([means[0] for means in by_group.values()])
    of_means = [(variance(means) if len(means) > 1 else pooled) / len(means) for means in by_group.values()]
    squared = sum(of_means) / len(of_means) ** 2
    by_seed = _collected((answer.seed, (group[answer.query], answer.right)) for answer in answers)
    if len(by_seed) > 1:
        seeds = [fmean(map(fmean, _collected(pairs).values())) for pairs in by_seed.values()]
        squared += variance(seeds) / len(seeds)
    return value, math.sqrt(squared)


def _collected(pairs: Iterable[tuple]) -> dict:
    found = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return found

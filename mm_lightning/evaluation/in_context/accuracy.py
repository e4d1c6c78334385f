"""Accuracies over questions that several sets of demonstrations were asked with."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from mm_lightning.evaluation.intervals import t_quantile
from mm_lightning.evaluation.measurement import Measurement
from mm_lightning.evaluation.metrics import Metric, find_metric
from mm_lightning.evaluation.task import Record

WAYS = ("likelihood", "likelihood_by_length", "greedy")
"""To score an answer; each has a micro accuracy of this name and a macro one."""

INSIDE = "inside"
"""The share of greedy answers that are labels at all."""

BEST = "best"

LONGEST = "longest prompt"
"""Tokens of the longest prompt, the answer not among them."""


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


def accuracies(records: Sequence[Record]) -> list[Measurement]:
    """Accuracies by labels, shots and strategy, over questions and sets of demonstrations.

    The strategy `best` is, for each metric, the best of the others at that number of shots, as the paper has it.
    """
    table = []
    for same in _by(records, ("labels", "shots")).values():
        strategies = []
        for (strategy,), answers in _by(same, ("strategy",)).items():
            group = {**{name: same[0]["group"][name] for name in ("labels", "shots")}, "strategy": strategy}
            strategies.append(_measurements(group, answers))
        table += [measurement for of_strategy in strategies for measurement in of_strategy]
        for alike in zip(*strategies, strict=True):
            if alike[0].metric.name != INSIDE:
                top = max(alike, key=lambda measurement: measurement.row().value)
                table.append(dataclasses.replace(top, group={**top.group, "strategy": BEST}))
    return table


def longest_prompts(records: Sequence[Record]) -> dict[tuple[str, int, str], int]:
    """Return the tokens of the longest prompt by labels, shots and strategy; of earlier versions, of demonstrations."""
    return {
        key: max(int(record.get("prompt_tokens") or record["demonstration_tokens"]) for record in same)
        for key, same in _by(records, ("labels", "shots", "strategy")).items()
    }


def _by(records: Sequence[Record], names: tuple[str, ...]) -> dict[Any, list[Record]]:
    return _collected((tuple(record["group"][name] for name in names), record) for record in records)


def _measurements(group: dict[str, Any], records: Sequence[Record]) -> list[Measurement]:
    measurements = []
    for score in (*WAYS, INSIDE):
        answers = [
            Answer(r["group"]["seed"], r["key"].rpartition("/")[2], r["references"][0], float(r["scores"][score]))
            for r in records
        ]
        measurements.append(micro(group, find_metric(score), answers))
        if score != INSIDE:
            measurements.append(macro(group, find_metric(f"{score}_macro"), answers))
    return measurements


def micro(group: dict[str, Any], metric: Metric, answers: Sequence[Answer]) -> Measurement:
    """The share of right answers."""
    return _measurement(group, metric, answers, None, lambda some: fmean(answer.right for answer in some))


def macro(group: dict[str, Any], metric: Metric, answers: Sequence[Answer]) -> Measurement:
    """The mean over classes of the share of right answers to the class's questions."""

    def mean(some: Sequence[Answer]) -> float:
        return fmean(map(fmean, _collected((answer.label, answer.right) for answer in some).values()))

    return _measurement(group, metric, answers, {answer.query: answer.label for answer in answers}, mean)


def _measurement(
    group: dict[str, Any],
    metric: Metric,
    answers: Sequence[Answer],
    classes: dict[str, str] | None,
    mean: Callable[[Sequence[Answer]], float],
) -> Measurement:
    """The answers to each question averaged over sets of demonstrations, and the variance between these sets.

    The extra half of the interval is Student's, of the variance between sets that is more than that of single answers.
    """
    by_query = _collected((answer.query, answer.right) for answer in answers)
    values = {query: fmean(rights) for query, rights in by_query.items()}
    by_seed = _collected((answer.seed, answer) for answer in answers)
    extra = half = 0.0
    if len(by_seed) > 1:
        between = variance([mean(some) for some in by_seed.values()])
        extra = between / len(by_seed)
        levels, whole = {seed: fmean(a.right for a in some) for seed, some in by_seed.items()}, fmean(values.values())
        rest = math.fsum((a.right - values[a.query] - levels[a.seed] + whole) ** 2 for a in answers)
        single = rest / max(1, (len(values) - 1) * (len(by_seed) - 1)) / len(values)
        half = t_quantile(len(by_seed) - 1) * math.sqrt(max(0.0, between - single) / len(by_seed))
    return Measurement(group, metric, values, None, classes, len(answers), extra, half)


def _collected(pairs: Iterable[tuple]) -> dict:
    groups = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return dict(groups)

"""Means, spreads and differences over seeds."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from mm_lightning.evaluation.intervals import t_quantile
from mm_lightning.experiments.study import LOSS, Run, Study


@dataclass
class Spread:
    """The mean and sample standard deviation (None of one seed) of values by seed."""

    values: dict[int, float]
    mean: float
    deviation: float | None


@dataclass
class Difference:
    """The mean difference from the baseline over seeds, and its confidence interval (None of one seed)."""

    values: dict[int, float]
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass
class Row:
    """The statistics of a variant over its finished runs.

    Attributes:
        variant: its name.
        planned: seeds of the sweep.
        done: seeds that finished.
        metrics: last logged values of each evaluation metric.
        difference: of the validation loss from its reference; None for the baseline and without common seeds.
        steps: of the finished runs, the fewest and the most; None without finished runs.
        planned_steps: of its runs; None if not known.
        parameters: of the network; None if not known.
        training_flops_per_token: forward and backward; None if not known.
        tokens: seen in a run.
        training_flops: of a run.
        tokens_per_second: median over each run's log steps, then over runs.
        seconds: mean training time of a run, validation and checkpoints left out.
    """

    variant: str
    planned: int
    done: int
    metrics: dict[str, Spread]
    difference: Difference | None
    steps: tuple[int, int] | None
    planned_steps: int | None
    parameters: int | None
    training_flops_per_token: float | None
    tokens: float | None
    training_flops: float | None
    tokens_per_second: float | None
    seconds: float | None


def spread(values: dict[int, float]) -> Spread:
    """Return mean and sample standard deviation of values by seed."""
    numbers = list(values.values())
    mean = math.fsum(numbers) / len(numbers)
    return Spread(values, mean, _deviation(numbers, mean))


def _deviation(numbers: list[float], mean: float) -> float | None:
    if len(numbers) < 2:
        return None
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Return the mean of values - baseline over the common seeds, with Student's 95% interval.

    There is no interval for one common seed; None without any.
    """
    paired = {seed: value - baseline[seed] for seed, value in values.items() if seed in baseline}
    if not paired:
        return None
    difference = spread(paired)
    if difference.deviation is None:
        return Difference(paired, difference.mean)
    half = t_quantile(len(paired) - 1) * difference.deviation / math.sqrt(len(paired))
    return Difference(paired, difference.mean, difference.mean - half, difference.mean + half)


def summarize(study: Study) -> list[Row]:
    """Return one row for each variant, in the order of the study."""
    loss = {variant: _finals(study.of(variant), LOSS) for variant in study.variants}
    rows = []
    for variant in study.variants:
        reference = study.reference(variant)
        baseline = loss.get(reference or "", {})
        runs, planned = study.of(variant), study.of(variant, finished=False)
        metrics = {name: values for name in study.metrics if (values := _finals(runs, name))}
        rows.append(
            Row(
                variant=variant,
                planned=len(planned),
                done=len(runs),
                metrics={name: spread(values) for name, values in metrics.items()},
                difference=None if variant == reference else paired_difference(loss[variant], baseline),
                steps=(min(run.step for run in runs), max(run.step for run in runs)) if runs else None,
                planned_steps=max((run.steps for run in planned if run.steps), default=None),
                parameters=planned[0].parameters,
                training_flops_per_token=planned[0].training_flops_per_token,
                tokens=_mean([run.tokens for run in runs]),
                training_flops=_mean([run.training_flops for run in runs]),
                tokens_per_second=_median([run.tokens_per_second for run in runs]),
                seconds=_mean([run.seconds_at(run.step) for run in runs]),
            )
        )
    return rows


def _finals(runs: list[Run], metric: str) -> dict[int, float]:
    return {run.seed: value for run in runs if (value := run.final().get(metric)) is not None}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None

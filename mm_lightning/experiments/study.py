"""Runs and studies: settings, metrics and costs of training runs that are compared with each other."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint.trained_tokens import tokens_at

LOSS = "validation/loss"


@dataclass
class Run:
    """One training run.

    Attributes:
        variant: the name of its variant; runs of a variant differ in the seed alone.
        seed: of weights, data order and steps.
        name: the run's folder, as shown in the report.
        path: the run folder that `mm fit` wrote, the newest if there are several; None before the first.
        status: `finished`, `diverged` (finished with a loss that is not a number), `failed`, `unfinished` or `not
            started`. Only finished runs enter means.
        steps: planned optimizer steps; None if not known.
        last_step: the step at which training ended, before `steps` where a callback or trainer.max_time ended it; None
            if it has not ended.
        values: the variant's value on each axis of the sweep.
        tuned: its values of the settings that the sweep tunes.
        parameters: of the network; None if not known.
        training_flops_per_token: forward and backward; None if not known.
        step_tokens: planned tokens of one optimizer step; None if not known.
        last_tokens: tokens of all steps up to `last_step`; None if not known.
        saved_step: the step of the newest checkpoint, which may be ahead of the last metrics.
        wall_seconds: seconds with start, validation and checkpoints; None of a run that was resumed.
        records: all metrics by step; of lines that repeat a step, the later one counts.
        environment: environment.json.
        references: by metric, reference values to compare it with (baselines.json).
        last_line: the last line of log.txt.
    """

    variant: str
    seed: int
    name: str
    path: Path | None
    status: str = "unfinished"
    steps: int | None = None
    last_step: int | None = None
    saved_step: int = 0
    values: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    training_flops_per_token: float | None = None
    step_tokens: float | None = None
    last_tokens: float | None = None
    wall_seconds: float | None = None
    records: dict[int, dict[str, float]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    last_line: str = ""

    @property
    def step(self) -> int:
        """The last finished step, as far as known."""
        return self.last_step or max(self.saved_step, *self.records, 0)

    @property
    def finished(self) -> bool:
        """Whether its values enter means."""
        return self.status == "finished"

    @property
    def tokens(self) -> float | None:
        """Tokens of the run so far; None if not known."""
        return self.tokens_at(self.step)

    def tokens_at(self, step: int) -> float | None:
        """Return the tokens up to a step: as counted, or as planned where no count is known."""
        counts = self.curve("train/tokens")
        if self.last_step and self.last_tokens is not None:
            counts[self.last_step] = self.last_tokens
        counted = tokens_at(step, counts)
        return step * self.step_tokens if counted is None and self.step_tokens else counted

    @property
    def training_flops(self) -> float | None:
        """Training FLOPs of the run so far; None if not known."""
        tokens, each = self.tokens, self.training_flops_per_token
        return None if tokens is None or each is None else tokens * each

    @property
    def tokens_per_second(self) -> float | None:
        """The median of the logged speeds."""
        speeds = [speed for _, speed in self._series("train/tokens_per_second")]
        return statistics.median(speeds) if speeds else None

    def _series(self, metric: str) -> list[tuple[int, float]]:
        return [(step, self.records[step][metric]) for step in sorted(self.records) if metric in self.records[step]]

    def curve(self, metric: str) -> dict[int, float]:
        """Return the values of a metric by step."""
        return dict(self._series(metric))

    def final(self) -> dict[str, float]:
        """Return the last logged value of each evaluation metric: all but train/..."""
        values: dict[str, float] = {}
        for step in sorted(self.records):
            values |= {name: value for name, value in self.records[step].items() if not name.startswith("train/")}
        return values

    def seconds_at(self, step: int) -> float | None:
        """Return the training time up to a step without validation and checkpoints: tokens / speed by log interval."""
        total, before, speed = 0.0, 0.0, 0.0
        for at, speed in self._series("train/tokens_per_second"):
            tokens = self.tokens_at(min(at, step)) or 0.0
            total += (tokens - before) / speed
            before = tokens
            if at >= step:
                return total
        last = self.tokens_at(step)
        return total + (last - before) / speed if speed and last is not None else None


@dataclass
class Tuning:
    """The runs that decided between the values of tuned settings, each variant's with the same seed.

    Attributes:
        axes: the tuned settings, with their values.
        metric: the metric whose last value decides.
        mode: `min` or `max`, the best value of the metric.
        shortened: the stop rule of the tuning runs in words; empty where a final run is among them.
        runs: in the order of the sweep.
    """

    axes: dict[str, list[Any]]
    metric: str
    mode: str
    shortened: str
    runs: list[Run]

    @property
    def variants(self) -> list[str]:
        """The names of the variants, in the order of their runs."""
        return list(dict.fromkeys(run.variant for run in self.runs))

    def of(self, variant: str) -> list[Run]:
        """Return the tuning runs of a variant."""
        return [run for run in self.runs if run.variant == variant]

    def result(self, run: Run) -> float | None:
        """Return the last value of the metric; None of a run that did not finish, diverged or did not log it."""
        values = list(run.curve(self.metric).values()) if run.finished else []
        return values[-1] if values and math.isfinite(values[-1]) else None

    def best(self, variant: str) -> Run | None:
        """Return the best run of a variant, of equal ones the first; None where no run has a result."""
        sign = 1 if self.mode == "min" else -1
        results = [
            (sign * value, n) for n, run in enumerate(self.of(variant)) if (value := self.result(run)) is not None
        ]
        return self.of(variant)[min(results)[1]] if results else None


@dataclass
class Study:
    """Runs that are compared with each other.

    Attributes:
        name: of the sweep or folder.
        runs: in the order of the sweep.
        command: the command of the sweep; empty if the runs were started one by one.
        baseline: the variant that others are compared with; None if there is none.
        axes: the axes of the sweep, with their values.
        stop: the stop rule in words; empty if not known.
        notes: sentences about runs that were left out or are incomplete.
        tuning: the tuning runs of the sweep, of which `runs` has those that are final runs too; None without tuning.
        published: numbers that others published, by metric and name, of variants and of others.
        source: of the published numbers.
    """

    name: str
    runs: list[Run]
    command: str = ""
    baseline: str | None = None
    axes: dict[str, list[Any]] = field(default_factory=dict)
    stop: str = ""
    notes: list[str] = field(default_factory=list)
    tuning: Tuning | None = None
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    source: str = ""

    @property
    def all_runs(self) -> list[Run]:
        """The runs, and the tuning runs that are no final runs."""
        tuning = self.tuning.runs if self.tuning else []
        return [*self.runs, *(run for run in tuning if not any(run is final for final in self.runs))]

    def chosen(self, variant: str) -> dict[str, Any]:
        """Return the tuned values of a variant's final runs; empty without tuning, or before they are chosen."""
        return next((run.tuned for run in self.runs if run.variant == variant), {})

    @property
    def variants(self) -> list[str]:
        """The names of the variants, in the order of their runs."""
        return list(dict.fromkeys(run.variant for run in self.runs))

    def of(self, variant: str, finished: bool = True) -> list[Run]:
        """Return the finished runs of a variant, or all of them."""
        return [run for run in self.runs if run.variant == variant and (run.finished or not finished)]

    def reference(self, variant: str) -> str | None:
        """Return the variant that a variant is compared with.

        It is the baseline or, for a variant that differs from it in other things than numbers too, the variant that has
        the baseline's choices at the same numbers.
        """
        numeric, chosen = self.numeric_axes, {run.variant: run.values for run in self.runs}
        if self.baseline is None or variant not in chosen:
            return self.baseline
        base = chosen[self.baseline]
        same_numbers = {**base, **{axis: chosen[variant].get(axis) for axis in numeric}}
        if chosen[variant] == same_numbers:  # nothing but numbers differ
            return self.baseline
        return next((name for name, values in chosen.items() if values == same_numbers), self.baseline)

    @property
    def numeric_axes(self) -> list[str]:
        """The axes of which all values are numbers."""
        return [axis for axis, values in self.axes.items() if all(type(v) in (int, float) for v in values)]

    @property
    def reference_in_words(self) -> str:
        """The description of the variants that differences are from."""
        numeric, runs = self.numeric_axes, {run.variant: run for run in self.runs}
        if self.baseline is None or not numeric or len(numeric) == len(self.axes):
            return self.baseline or ""
        others = [f"{axis}={v}" for axis, v in runs[self.baseline].values.items() if axis not in numeric]
        names = " and ".join(numeric)
        return f"{', '.join(others)} at the same {names} (where {names} alone differs: {self.baseline})"

    @property
    def metrics(self) -> list[str]:
        """The evaluation metrics of the finished runs, validation/loss first."""
        names = dict.fromkeys(name for run in self.runs if run.finished for name in run.final())
        return sorted(names, key=lambda name: (name != LOSS, list(names).index(name)))

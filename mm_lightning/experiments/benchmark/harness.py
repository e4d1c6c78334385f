"""The harness of all benchmarks: cases run in turns in one process; a table of medians, ratios and rates; JSON."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from mm_lightning.console import print_table, say
from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.workload import BATCH, DIMENSIONS, Precision, Workload
from mm_lightning.outputs import check_output, write_json
from mm_lightning.ranges import Count, Few, Name, Place, Seed

Row = dict[str, Any]
"""The result of a case: its name, seconds and counts, and what `measure` derives from them."""

RATED = ("tokens", "flops", "bytes")
"""Counts of a case that become rates per second."""

MOST_CALLS = 1000
"""Calls in a timed run, however short one is."""


@dataclass(frozen=True)
class Options:
    """The options of every benchmark.

    Args:
        config: a training config (and overlays of it) with dimensions, context, micro batch and precision; the options
            that follow override it.
        dim: hidden size d.
        layers: number of blocks L.
        heads: number of heads H.
        persistent_dim: hidden size f of the persistent memory; 3 d by default.
        vocab_size: vocabulary size V.
        context_length: tokens of a sequence.
        batch_size: sequences of a forward pass.
        precision: bf16 (networks in training: under autocast) or fp32.
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each case, 7 by default; retrieval: queries, 32 by default.
        seed: seed of weights, tokens and delays m.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """

    config: list[Place] | None = None
    dim: Count | None = None
    layers: Count | None = None
    heads: Count | None = None
    persistent_dim: Count | None = None
    vocab_size: Count | None = None
    context_length: Count | None = None
    batch_size: Count | None = None
    precision: Precision | None = None
    device: Name = "cpu"
    threads: Few | None = None
    repeats: Count | None = None
    seed: Seed = 0
    output: Place | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Case:
    """One thing that is timed: a row of the table.

    Attributes:
        name: the name in the table.
        build: makes the call to be timed.
        counts: numbers of one call. `tokens`, `flops` and `bytes` become rates; others stand in the row as they are.
        observe: receives what each timed call returned.
        finish: returns more numbers of the row from the built call, once all runs are done.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    counts: Mapping[str, float] = field(default_factory=dict)
    observe: Callable[[Any], None] | None = None
    finish: Callable[[Any], Mapping[str, Any]] | None = None


def ready(call: Callable[[], Any]) -> Callable[[], Callable[[], Any]]:
    """Return the `build` of a case that has nothing to build."""
    return lambda: call


class Benchmark:
    """One run of a benchmark: its checked options, its measurements and its report.

    Args:
        name: the word after `mm benchmark`.
        options: as given.
        defaults: the dimensions that this benchmark uses and their defaults.
        repeats: default of `--repeats`.

    Raises:
        UserError: an option is not for this benchmark, or the device, the config or the output cannot be used.
    """

    def __init__(self, name: str, options: Options, defaults: Mapping[str, Any], repeats: int = 7) -> None:
        from mm_lightning.inference.generate import choose_device

        self.name, self.seed = name, options.seed
        self.repeats = options.repeats or repeats
        for option in (*DIMENSIONS, *BATCH, "config"):
            used = option in defaults or (option == "config" and defaults)
            if not used and getattr(options, option) is not None:
                raise UserError(f"mm benchmark {name} does not depend on {option}: leave --{option} out")
        self.output = None if options.output is None else check_output(options.output, options.overwrite)
        if options.threads:
            torch.set_num_threads(options.threads)
        self.device = choose_device(options.device)
        given = {option: getattr(options, option) for option in defaults}
        self.work = Workload.create(options.config, defaults, given)
        self.settings = {option: self.work.settings[option] for option in defaults}
        self.settings |= {"repeats": self.repeats, "seed": self.seed}

    def measure(
        self,
        cases: Sequence[Case],
        labels: Mapping[str, Any] = MappingProxyType({}),
        repeats: int | None = None,
        **options: Any,
    ) -> list[Row]:
        """Return the rows of :func:`measure` for a group of cases, with the labels of the group: a length, a layer."""
        group = ", ".join(str(value) for value in (self.name, *labels.values()))
        say(f"timing {group}: {'; '.join(case.name for case in cases)}", stderr=True)
        return [{**labels, **row} for row in measure(cases, repeats or self.repeats, self.device, **options)]

    def report(
        self, title: str, columns: Columns, groups: Sequence[Sequence[Row]], labels: int = 1, **more: Any
    ) -> None:
        """Print the table and write the JSON file.

        Args:
            title: the title of the table.
            columns: by heading, the cell of a row.
            groups: rows, with a gap between groups.
            labels: how many columns are names; numbers follow.
            more: further entries of the JSON file; those of `settings` are added to the benchmark's.
        """
        from mm_lightning.checkpoint.environment import describe_environment

        environment = describe_environment()
        cuda = self.device.type == "cuda"
        machine = torch.cuda.get_device_name(self.device) if cuda else environment["cpu"]["model"]
        settings = {**self.settings, **more.pop("settings", {})}
        threads = torch.get_num_threads()
        lines: list[list[str] | None] = []
        for group in groups:
            lines += [*([cell(row) for cell in columns.values()] for row in group), None]
        caption = ", ".join(f"{key} {value}" for key, value in settings.items())
        print_table(list(columns), lines[:-1], title, f"{caption}; {threads} threads of {machine}", labels)
        if self.output:
            result = {"benchmark": self.name, "settings": settings, "device": machine, "threads": threads, **more}
            rows = [row for group in groups for row in group]
            write_json(self.output, {**result, "rows": rows, "environment": environment})


Columns = Mapping[str, Callable[[Row], str]]
"""By heading, the cell of a row."""


def measure(
    cases: Sequence[Case],
    repeats: int,
    device: torch.device,
    *,
    least: float = 0.0,
    peak: bool = False,
    apart: bool = False,
    before_round: Callable[[int], None] = lambda number: None,
) -> list[Row]:
    """Time cases in turns, each after a warm-up.

    Args:
        cases: the first is what the others are compared with.
        repeats: timed runs of each.
        device: what they run on; it is waited for.
        least: seconds of a timed run at least: shorter calls are repeated within it, and their mean is taken.
        peak: also measure the most memory that a call holds.
        apart: build, time and free one case after the other.
        before_round: called with the number of each round of turns, and with 0 before the warm-up.

    Returns:
        a row for each case: `case`, `seconds`, `median_seconds`, `build_seconds`, its counts and their rates,
        `peak_bytes`; `relative_time`, the median of its time by the first case's in the same round, and `speedup`, the
        median of the inverse.
    """
    rows: list[Row] = []
    for some in [[case] for case in cases] if apart else [cases]:
        before_round(0)
        calls, builds = zip(*(timed(case.build, device) for case in some), strict=True)
        loops = [_loops(call, device, least) for call in calls]
        seconds: list[list[float]] = [[] for _ in some]
        for number in range(repeats):
            before_round(number)
            for case, call, loop, times in zip(some, calls, loops, seconds, strict=True):
                result, passed = timed(call, device, loop)
                times.append(passed)
                if case.observe:
                    case.observe(result)
        for case, call, built, times in zip(some, calls, builds, seconds, strict=True):
            median = statistics.median(times)
            row: Row = {"case": case.name, "build_seconds": built, "median_seconds": median, **case.counts}
            row |= {f"{key}_per_second": n / median for key, n in case.counts.items() if key in RATED}
            row |= {"seconds": times, **({"peak_bytes": peak_bytes(call, device)} if peak else {})}
            rows.append({**row, **(case.finish(call) if case.finish else {})})
        del calls, call
        if apart:
            gc.collect()
            torch.cuda.empty_cache()
    for row in rows:
        ratios = [passed / first for passed, first in zip(row["seconds"], rows[0]["seconds"], strict=True)]
        row["relative_time"] = statistics.median(ratios)
        row["speedup"] = statistics.median(1 / ratio for ratio in ratios)
    return rows


def _loops(call: Callable[[], Any], device: torch.device, least: float) -> int:
    """Warm up; return how often a call has to be repeated to take as many seconds as `least`."""
    call()
    return min(max(1, math.ceil(least / timed(call, device)[1])), MOST_CALLS) if least else 1


def timed(call: Callable[[], Any], device: torch.device, calls: int = 1) -> tuple[Any, float]:
    """Return what a call returned, and its seconds until the device has finished; the mean of several calls."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    for _ in range(calls):
        returned = call()
    return returned, max(now() - start, 1e-9) / calls


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the most memory that a call holds beyond what was held before: by the allocator's count on a GPU, by the
    profiler's of torch's tensors elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    from mm_lightning.training.silence_warnings import silence_profiler

    silence_profiler()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most

"""Estimate a sweep before it starts: steps, parameters and FLOPs of its runs, and their time from a measured step."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any, Literal

from mm_lightning.console import Progress, clock, print_table, say
from mm_lightning.experiments.cost_command import scaled
from mm_lightning.experiments.sweep_runs import Run

IMPORTS = "from mm_lightning.training.cli import prepare; prepare()"
"""The imports of `mm fit` before it trains."""

MOST_FLOPS = {"cpu": 3e12, "cuda": 1e16}
"""The most FLOPs of a forward and backward pass that is timed: more would take minutes."""


def show_plan(tuning: list[Run], final: list[Run], jobs: int, measure: bool) -> None:
    """Print a table of the variants, and the time of the whole sweep.

    Args:
        tuning: the tuning runs.
        final: the other runs, with the most expensive tuned values.
        jobs: runs at once.
        measure: time a training step of each variant on this machine.
    """
    by_variant: dict[str, list[Run]] = {}
    for run in tuning:
        by_variant.setdefault(run.label, []).append(run)
    for run in final:
        by_variant.setdefault(f"{run.variant}, best values" if tuning else run.variant, []).append(run)
    distinct = {_workload(group[0]): group[0] for group in by_variant.values()}
    timed: dict[str, float | None] = dict.fromkeys(distinct)
    start = 0.0
    if measure:
        with Progress("timing a step of each", len(distinct)) as bar:
            for workload, run in distinct.items():
                timed[workload] = run_seconds(run, jobs)
                bar.advance()
        start = start_seconds()

    heads = ["variant", "seeds", "parameters", "FLOPs/token", "steps", "tokens", "FLOPs", "time of a run"]
    rows = []
    for name, group in by_variant.items():
        run, seconds = group[0], timed[_workload(group[0])]
        seeds = ",".join(str(each.seed) for each in group)
        sizes = [scaled(run.parameters), scaled(run.training_flops_per_token), f"{run.steps:,}", scaled(run.tokens)]
        rows.append([name, seeds, *sizes, f"{run.flops:.2e}", "not measured" if seconds is None else clock(seconds)])
    print_table(heads, rows)
    known = [timed[_workload(run)] for run in [*tuning, *final]]
    total = f"{len(final)} runs, {sum(run.flops for run in final):.2e} training FLOPs"
    if tuning:
        tried = f"{len(tuning)} tuning runs, {sum(run.flops for run in tuning):.2e} training FLOPs"
        total = f"{tried}; then {len(final)} final runs, at most {sum(run.flops for run in final):.2e}"
    if None in known:
        missing = "" if not measure else f": {known.count(None)} runs are too large to be timed here"
        say(f"{total}; time not measured{missing}")
    else:
        seconds = sum(each + start for each in known if each is not None) / jobs
        at_once = f", {jobs} at once" if jobs > 1 else ""
        say(f"{total}; about {clock(seconds)}{at_once}, {clock(start)} to start each of them included")


def _workload(run: Run) -> str:
    """Return all that the time of a run depends on: tuned values and seeds that change none of it are timed once."""
    return repr((run.network, run.steps, {**run.config["data"], "seed": None}, run.config["trainer"]))


def start_seconds() -> float:
    """Measure the seconds that a new process takes for the imports of training."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - begin


def run_seconds(run: Run, jobs: int) -> float | None:
    """Estimate the seconds of a run's steps and validations on this machine; None if its step is too large for it.

    Args:
        run: the run.
        jobs: runs that share the CPU cores.
    """
    import torch

    from mm_lightning.experiments.launchers import threads_each

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, trainer = run.config["data"], run.config["trainer"]
    micro, context = data["micro_batch_size"], data["context_length"]
    if micro * context * run.training_flops_per_token > MOST_FLOPS[device.type]:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_each(jobs))
    try:
        seconds = step_seconds(run.network, micro, context, str(trainer["precision"]), device)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    finally:
        torch.set_num_threads(threads)
    sequences = run.steps * data["global_batch_size"]
    # a forward pass alone is about a third of a step
    if data["validation_sequences"]:
        interval = trainer["val_check_interval"]
        interval = interval if isinstance(interval, int) else run.steps
        sequences += data["validation_sequences"] * -(-run.steps // interval) / 3
    return seconds * sequences / micro


def step_seconds(network: Any, micro_batch_size: int, context: int, precision: str, device: Any) -> float:
    """Return the median seconds of three training steps on one micro batch of random tokens, after a warm-up step."""
    from mm_lightning.experiments.benchmark.harness import Case, measure
    from mm_lightning.experiments.benchmark.step import TrainingStep
    from mm_lightning.experiments.benchmark.workload import Workload

    kind: Literal["bf16", "fp32"] = "bf16" if precision.startswith("bf16") else "fp32"
    work = Workload(network, context, micro_batch_size, kind)
    step = Case("step", lambda: TrainingStep(network, work, device, seed=0))
    return measure([step], 3, device)[0]["median_seconds"]

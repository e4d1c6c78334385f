"""Seconds and bytes: what is compared runs in one process, in turns, and medians are reported."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.outputs import Output, check_output

Run = Callable[[], Any]

MOST_CALLS = 1000
"""In a timed run, however short a call is."""


def begin(
    device: str, threads: int | None, repeats: int, output: str | None, overwrite: bool
) -> tuple[Any, Output | None]:
    """The device and the file that a command's options name, checked; the number of threads is set.

    Raises:
        UserError: an option cannot be.
    """
    import torch

    from mm_lightning.inference.generate import choose_device

    target = None if output is None else check_output(output, overwrite)
    if threads:
        torch.set_num_threads(threads)
    return choose_device(device), target


def numbers(given: list[int] | int | None, otherwise: list[int], name: str) -> list[int]:
    """The whole numbers of an option that is one or several.

    Raises:
        UserError: there is none.
    """
    found = otherwise if given is None else [given] if isinstance(given, int) else given
    if not found:
        raise UserError(f"{name} is empty: name one or more whole numbers")
    return found


def take_turns(runs: Mapping[str, Run], repeats: int, device: Any, least: float = 0.0) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each run, in turns, after one warm-up each.

    Args:
        runs: by name.
        repeats: how often each is timed.
        device: what they run on, which is waited for.
        least: seconds that a timed run lasts at least: short ones are called several times, and their mean is taken.
    """
    calls = {}
    for name, run in runs.items():
        run()
        calls[name] = 1 if least == 0 else min(max(1, math.ceil(least / seconds_of(run, device))), MOST_CALLS)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(seconds_of(partial(_again, run, calls[name]), device) / calls[name])
    return seconds


def _again(run: Run, calls: int) -> None:
    for _ in range(calls):
        run()


def seconds_of(run: Run, device: Any) -> float:
    """How long a call takes until the device has done it."""
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    finish()
    start = time.perf_counter()
    run()
    finish()
    return max(time.perf_counter() - start, 1e-9)


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Of each run."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], first: str, second: str) -> float:
    """How many times as long as the second the first takes: the median over neighbouring runs."""
    return statistics.median(a / b for a, b in zip(seconds[first], seconds[second], strict=True))


def peak_bytes(run: Run, device: Any) -> int:
    """The most memory that a call holds beyond what was there before; the allocator's count on a GPU, else the
    profiler's of torch's tensors."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    from mm_lightning.training.silence_warnings import silence_profiler

    silence_profiler()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    found = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(found, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure_peaks(device: Any, precision: str, repeats: int) -> dict[str, float]:
    """FLOP/s of a large matrix product, and bytes/s of a large copy, each the median of some."""
    import torch

    large = device.type == "cuda"
    size, count = (8192, 1 << 28) if large else (1024, 1 << 26)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(count, device=device)
    copy = torch.empty_like(source)
    runs = {"product": lambda: a @ b, "copy": lambda: copy.copy_(source)}
    found = medians(take_turns(runs, repeats, device, least=0.02))
    return {
        "flops_per_second": 2 * size**3 / found["product"],
        "bytes_per_second": 2 * source.nbytes / found["copy"],
    }


def machine(device: Any) -> dict[str, Any]:
    """What a timing was taken on, with which versions and code."""
    import torch

    from mm_lightning.checkpoint.environment import describe_environment

    environment = describe_environment()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else environment["cpu"]["model"]
    return {"device": name, "threads": torch.get_num_threads(), "environment": environment}


def flatness(found: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Seconds per token relative to those at the first length, by name and length."""
    first = found[0]["seconds_per_token"]
    return {name: {one["length"]: one["seconds_per_token"][name] / first[name] for one in found} for name in first}

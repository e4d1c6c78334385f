"""Each operation of a v2 training step beside the least time that its arithmetic and its bytes could take here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.operations import Operations, optimization
from mm_lightning.experiments.benchmark.report import report
from mm_lightning.experiments.benchmark.setup import Precision, setup
from mm_lightning.experiments.benchmark.step import DEFAULTS, TrainingStep
from mm_lightning.experiments.benchmark.timing import begin, machine, measure_peaks, medians, take_turns
from mm_lightning.memory.kernels import Kernels
from mm_lightning.ranges import Count, Few, Name, Place, Seed

STEP = "whole step"


def roofline_command(
    config: Place | list[Place] | None = None,
    dim: Count | None = None,
    layers: Count | None = None,
    heads: Count | None = None,
    persistent_dim: Count | None = None,
    vocab_size: Count | None = None,
    context_length: Count | None = None,
    batch_size: Count | None = None,
    precision: Precision | None = None,
    kernels: Kernels = "auto",
    device: Name = "cpu",
    threads: Few | None = None,
    repeats: Count = 7,
    seed: Seed = 0,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Time each operation of a v2 training step beside its floor.

    The floor of an operation is the longer of its floating-point operations at the device's peak and its bytes at the
    device's bandwidth. Both peaks are measured on the spot: a large matrix product in the step's precision, and a large
    copy. Bytes are those that have to move if everything is read and written once in each direction, forward and
    backward; weights are read in float32 under autocast. All operations and a whole step take turns; the table gives
    medians, for all blocks of the network together, and what share of them the floor is.

    Args:
        config: a training config with dimensions, context, micro batch and precision (and overlays of it); what follows
            wins over it.
        dim: hidden size d; 256 by default.
        layers: blocks L; 6 by default.
        heads: heads H; 4 by default.
        persistent_dim: hidden size f of the persistent memory; 3 d by default.
        vocab_size: vocabulary V; 4096 by default.
        context_length: tokens of a sequence; 1024 by default.
        batch_size: sequences of a step; 4 by default.
        precision: bf16 under autocast, or fp32; bf16 by default.
        kernels: what computes keys and values, as model.kernels of a training config.
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each.
        seed: of the weights, the tokens and the delays m.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """
    from mm_lightning.memory.kernels import resolve_kernels

    place, target = begin(device, threads, repeats, output, overwrite)
    given = {"dim": dim, "layers": layers, "heads": heads, "persistent_dim": persistent_dim, "vocab_size": vocab_size}
    sizes = {"context_length": context_length, "batch_size": batch_size, "precision": precision}
    what = setup(config, DEFAULTS, **given, **sizes)
    network = what.network
    if (network.keys, network.persistent, network.bandwidth) != ("gated", "swiglu", "adaptive"):
        raise UserError("roofline is for v2: keys gated, bandwidth adaptive and persistent swiglu")
    resolve_kernels(kernels, place)
    peaks = measure_peaks(place, what.precision, repeats)
    step = TrainingStep(network, what, place, seed, kernels)
    found = {**Operations(what, place, seed, kernels).all(), "gradient norm, AdamW": optimization(step)}
    runs = {name: operation.run for name, operation in found.items()}
    seconds = take_turns({**runs, STEP: step}, repeats, place, least=0.005)
    median = medians(seconds)
    rows = {
        name: {
            "times": o.times,
            "flops": o.times * o.flops,
            "bytes": o.times * o.bytes,
            "seconds": o.times * median[name],
            "floor_seconds": o.times * max(o.flops / peaks["flops_per_second"], o.bytes / peaks["bytes_per_second"]),
        }
        for name, o in found.items()
    }
    result = {
        "benchmark": "roofline",
        "peaks": peaks,
        "operations": rows,
        "step_seconds": median[STEP],
        "seconds": seconds,
        "settings": {**what.settings, "kernels": kernels, "repeats": repeats, "seed": seed},
        **machine(place),
    }
    tflops, gigabytes = peaks["flops_per_second"] / 1e12, peaks["bytes_per_second"] / 1e9
    title = f"operations of a training step; peaks {tflops:.2f} TFLOP/s and {gigabytes:.1f} GB/s"
    columns = ["", "times", "GFLOP", "MB", "ms", "of the step", "floor ms", "floor of it"]
    report(result, title, columns, 1, [_lines(result), _sums(result)], target)


def _lines(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of the table."""
    for name, row in result["operations"].items():
        yield _line(name, row, result["step_seconds"], f"{row['times']}")


def _line(name: str, row: dict[str, float], step: float, times: str = "") -> tuple[str, ...]:
    return (
        name,
        times,
        f"{row['flops'] / 1e9:,.2f}",
        f"{row['bytes'] / 1e6:,.1f}",
        f"{row['seconds'] * 1e3:,.2f}",
        f"{row['seconds'] / step:.1%}",
        f"{row['floor_seconds'] * 1e3:,.2f}",
        f"{row['floor_seconds'] / row['seconds']:.1%}",
    )


def _sums(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    rows, step = result["operations"].values(), result["step_seconds"]
    total = {key: sum(row[key] for row in rows) for key in ("flops", "bytes", "seconds", "floor_seconds")}
    yield _line("all of them", total, step)
    yield _line(STEP, {**total, "seconds": step}, step)

"""Timings side by side: what runs here is compared in one process, in turns, and the median is reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark_report import report
from mm_lightning.outputs import check_output


def step_command(
    network: Literal["v2", "v1"] = "v2",
    dim: int = 256,
    layers: int = 6,
    heads: int = 4,
    persistent_dim: int | None = None,
    vocab_size: int = 4096,
    context_length: int = 1024,
    batch_size: int = 4,
    precision: Literal["bf16", "fp32"] = "bf16",
    device: str = "cpu",
    threads: int | None = None,
    repeats: int = 7,
    seed: int = 0,
    output: str | None = None,
) -> None:
    """Time a training step of a memory mosaic against a transformer of the same dimensions.

    A step is forward, backward, gradient clipping and AdamW on random tokens, one document a row. After a warm-up the
    two take turns; the table gives each one's median and the median ratio of neighbouring runs, beside the ratio of
    their floating-point operations.

    Args:
        network: v2; or v1, with as many slots as give it the transformer's number of parameters.
        dim: hidden size d.
        layers: blocks L.
        heads: heads H.
        persistent_dim: hidden size f of the persistent memory; 3 d by default.
        vocab_size: vocabulary V.
        context_length: tokens of a sequence.
        batch_size: sequences of a step.
        precision: bf16 under autocast, or fp32.
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each.
        seed: of the weights, the tokens and the delays m.
        output: a JSON file for the result.
    """
    import torch

    from mm_lightning.inference.generate import choose_device

    if repeats < 1:
        raise UserError(f"repeats must be at least 1, got {repeats}")
    target = None if output is None else check_output(output)
    if threads:
        torch.set_num_threads(threads)
    dimensions = {
        "dim": dim,
        "layers": layers,
        "heads": heads,
        "persistent_dim": persistent_dim or 3 * dim,
        "vocab_size": vocab_size,
    }
    place = choose_device(device)
    configs = _opponents(network, dimensions)
    steps = {
        name: training_step(config, context_length, batch_size, precision, place, seed)
        for name, config in configs.items()
    }
    settings = {"context_length": context_length, "batch_size": batch_size, "precision": precision, "seed": seed}
    result = {
        **_compared(configs, take_turns(steps, repeats, place), batch_size, context_length),
        "settings": dimensions | settings,
        **machine(place),
    }
    columns = ["", "parameters", "median ms", "tokens/s"]
    report(result, "training step", columns, 1, [_lines(result)], target)


def _opponents(network: str, dimensions: dict[str, int]) -> dict[str, Any]:
    """The configurations of the mosaic and of the transformer it is timed against."""
    from mm_lightning.networks import V1, MemoryMosaicConfig, TransformerConfig

    transformer = TransformerConfig(**dimensions, tied=network == "v1")
    if network == "v2":
        return {"v2": MemoryMosaicConfig(**dimensions), "transformer": transformer}
    # 3 d^2 + 2 d^2 + 2 S d numbers a block, where the transformer has 4 d^2 + 3 f d
    slots = max(1, (3 * transformer.persistent_dim - transformer.dim) // 2)
    return {"v1": MemoryMosaicConfig(**dimensions, **V1, persistent_slots=slots), "transformer": transformer}


def _compared(
    configs: dict[str, Any], seconds: dict[str, list[float]], batch_size: int, context_length: int
) -> dict[str, Any]:
    """Medians, speeds and ratios; the first of the two is divided by the second."""
    from mm_lightning.networks.cost import parameters, training_flops_per_token

    first, second = configs
    tokens = batch_size * context_length
    flops = {name: training_flops_per_token(config, context_length) for name, config in configs.items()}
    return {
        "benchmark": "step",
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
        "tokens_per_second": {name: tokens / statistics.median(times) for name, times in seconds.items()},
        "ratio": statistics.median(a / b for a, b in zip(seconds[first], seconds[second], strict=True)),
        "flops_ratio": flops[first] / flops[second],
        "parameters": {name: parameters(config) for name, config in configs.items()},
    }


def take_turns(runs: dict[str, Callable[[], Any]], repeats: int, device: Any) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each run, in turns, after one warm-up each."""
    import torch

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            finish()
            begin = time.perf_counter()
            run()
            finish()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def training_step(
    config: Any, context_length: int, batch_size: int, precision: str, device: Any, seed: int
) -> Callable[[], None]:
    """One optimisation step on random tokens, as a function to be called again and again."""
    import itertools

    import torch

    torch.manual_seed(seed)
    with device:
        network = config.build()
        tokens = torch.randint(config.vocab_size, (batch_size, context_length + 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    numbers = itertools.count()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            draw = network.draw_step(seed, next(numbers))
            loss = network(tokens[:, :-1], targets=tokens[:, 1:].contiguous(), **draw)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def machine(device: Any) -> dict[str, Any]:
    """What a timing was taken on."""
    import torch

    from mm_lightning.training.run_folder import describe_environment

    environment = describe_environment()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else environment["cpu"]["model"]
    return {"device": name, "threads": torch.get_num_threads(), "environment": environment}


def _lines(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of the table."""
    for name, seconds in result["median_seconds"].items():
        count, speed = result["parameters"][name], result["tokens_per_second"][name]
        yield name, f"{count:,}", f"{seconds * 1e3:,.1f}", f"{speed:,.0f}"
    yield f"{next(iter(result['median_seconds']))} / transformer", "", f"{result['ratio']:.2f}", ""
    yield "their FLOPs", "", f"{result['flops_ratio']:.2f}", ""

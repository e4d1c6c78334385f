"""Keys and values, equations (8) and (9), in units of one linear layer; how they grow with the context."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.operations import KEYS_MOVE, VALUES_MOVE
from mm_lightning.experiments.benchmark.report import report
from mm_lightning.experiments.benchmark.setup import Precision, Setup, filled, setup
from mm_lightning.experiments.benchmark.timing import (
    begin,
    flatness,
    machine,
    measure_peaks,
    medians,
    numbers,
    peak_bytes,
    ratio,
    take_turns,
)
from mm_lightning.memory.kernels import Kernels, resolve_kernels
from mm_lightning.memory.keys import average_keys
from mm_lightning.memory.values import look_ahead_values
from mm_lightning.ranges import Count, Few, Name, Place, Seed
from mm_lightning.training.compiler import check_compiler

LENGTHS = [1024, 2048, 4096, 8192, 16384, 32768]

DEFAULTS = {
    "dim": 256,
    "layers": 1,
    "heads": 4,
    "vocab_size": 2,
    "context_length": 1,
    "batch_size": 1,
    "precision": "bf16",
}

LINEAR = "linear layer"


def recurrence_command(
    lengths: list[Count] | Count | None = None,
    kernels: list[Kernels] | None = None,
    config: Place | list[Place] | None = None,
    dim: Count | None = None,
    heads: Count | None = None,
    batch_size: Count | None = None,
    tokens: Count | None = None,
    precision: Precision | None = None,
    compile: bool = False,
    device: Name = "cpu",
    threads: Few | None = None,
    repeats: Count = 7,
    seed: Seed = 0,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Time the keys of equation (8), and the values of (9), against one linear layer on the same tokens.

    Forward and backward, in turns: a d x d linear layer, the gated keys, and keys and values together, by every kind of
    kernels that runs here. The table gives medians, the time of a token, the median ratio to the linear layer in
    neighbouring runs, the time of a token relative to that at the first length, the most memory that a token holds, and
    the share of the device's bandwidth, measured by a large copy, that goes into what has to move: 8 d numbers a token
    for keys, 14 d with values.

    Args:
        lengths: tokens of a sequence: [1024, 2048, 4096, 8192, 16384, 32768] by default.
        kernels: which, of those that model.kernels of a training config takes; by default all that run here but
            reference, which is a loop over time.
        config: a training config with d, H, the micro batch and the precision (and overlays of it); what follows wins
            over it.
        dim: hidden size d; 256 by default.
        heads: heads H; 4 by default.
        batch_size: sequences; 1 by default.
        tokens: of all sequences together, in the place of batch_size: at every length as many sequences as make them
            up, so that what is compared is the length alone and not the size of tensors.
        precision: bf16 (the linear layer under autocast), or fp32; bf16 by default.
        compile: also the torch kernels as torch.compile joins them, anew for each length.
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each.
        seed: of the numbers.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """
    place, target = begin(device, threads, repeats, output, overwrite)
    what = setup(config, DEFAULTS, dim=dim, heads=heads, batch_size=batch_size, precision=precision)
    sizes = numbers(lengths, LENGTHS, "lengths")
    chosen = forms(kernels, what, place)
    peaks = measure_peaks(place, what.precision, repeats)
    if compile:
        check_compiler(place)
    found = [
        _at_length(n, chosen, one, place, repeats, seed, compile) for n, one in filled(what, sizes, tokens).items()
    ]
    settings = {name: what.settings[name] for name in ("dim", "heads", "precision")}
    settings |= {"batch_size": what.batch_size} if tokens is None else {"tokens": tokens}
    result = {
        "benchmark": "recurrence",
        "peaks": peaks,
        "lengths": found,
        "flatness": flatness(found),
        "settings": {**settings, "kernels": " ".join(chosen), "repeats": repeats, "seed": seed},
        **machine(place),
    }
    columns = ["T", "", "ms", "us/token", "linear layers", "per token, by first T", "peak bytes/token", "of bandwidth"]
    sections = (_lines(one, result["flatness"], peaks["bytes_per_second"]) for one in found)
    report(result, "keys and values, forward and backward", columns, 2, sections, target)


def forms(kernels: list[Kernels] | None, what: Setup, device: Any) -> list[Kernels]:
    """The kernels that are named, or all that run here.

    Raises:
        UserError: one that is named does not run here.
    """
    dtype = _dtype(what)
    if kernels is not None:
        return list(dict.fromkeys(resolve_kernels(one, device, dtype) for one in kernels))
    found: list[Kernels] = []
    for one in get_args(Kernels):
        if one not in ("auto", "reference"):
            try:
                found.append(resolve_kernels(one, device, dtype))
            except UserError:
                continue  # not here
    return found


def _dtype(what: Setup) -> Any:
    import torch

    return torch.bfloat16 if what.precision == "bf16" else torch.float32


def _at_length(
    length: int, kernels: list[Kernels], what: Setup, device: Any, repeats: int, seed: int, compile: bool
) -> dict[str, Any]:
    runs = _runs(length, kernels, what, device, seed, compile)
    seconds = take_turns(runs, repeats, device, least=0.01)
    tokens = what.batch_size * length
    median = medians(seconds)
    number = what.network.dim * (2 if what.precision == "bf16" else 4)
    moved = {name: tokens * number * (KEYS_MOVE + VALUES_MOVE * ("values" in name)) for name in runs if name != LINEAR}
    return {
        "length": length,
        "median_seconds": median,
        "seconds_per_token": {name: value / tokens for name, value in median.items()},
        "in_linear_layers": {name: ratio(seconds, name, LINEAR) for name in runs},
        "peak_bytes_per_token": {name: peak_bytes(run, device) / tokens for name, run in runs.items()},
        "bytes_per_second": {name: count / median[name] for name, count in moved.items()},
        "seconds": seconds,
    }


def _runs(length: int, kernels: list[Kernels], what: Setup, device: Any, seed: int, compile: bool) -> dict[str, Any]:
    """Forward and backward of everything at one length."""
    import torch
    from torch.nn import functional as F

    from mm_lightning.memory.bandwidth import AdaptiveBandwidth
    from mm_lightning.memory.documents import Documents

    torch.manual_seed(seed)
    dim, heads, dtype = what.network.dim, what.network.heads, _dtype(what)
    shape = (what.batch_size, length, heads, dim // heads)
    with device:
        x, raw, ahead, *down = (torch.randn(shape, dtype=dtype, requires_grad=n < 3) for n in range(6))
        gate, decay = (torch.randn(shape[:3], dtype=dtype) for _ in range(2))
        decay = -decay.abs()
        gamma, alpha = torch.rand(heads), torch.ones(heads)
        weight = torch.randn(dim, dim, requires_grad=True)
        documents = Documents.whole(what.batch_size, length, device)
        beta = AdaptiveBandwidth(heads)(documents.position + 1).detach()
    scalars = [x.requires_grad_() for x in (gate, decay, beta, gamma, alpha)]
    gate, decay, beta, gamma, alpha = scalars

    def linear() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = F.linear(x.flatten(-2), weight)
        torch.autograd.grad(y, [x, weight], down[0].flatten(-2))

    def make_keys(one: Kernels) -> tuple[Any, ...]:
        return average_keys(raw, gate, decay, beta, documents, one)

    def make_both(one: Kernels) -> tuple[Any, ...]:
        return *make_keys(one), look_ahead_values(ahead, gamma, alpha, documents, one)

    def keys(one: Kernels, make: Any = make_keys) -> None:
        torch.autograd.grad(make(one), [raw, gate, decay, beta], down[:2])

    def both(one: Kernels, make: Any = make_both) -> None:
        torch.autograd.grad(make(one), [raw, gate, decay, beta, ahead, gamma, alpha], down)

    found: dict[str, Any] = {LINEAR: linear}
    for one in kernels:
        found[f"keys, {one}"] = partial(keys, one)
        found[f"keys and values, {one}"] = partial(both, one)
    if compile:
        torch.compiler.reset()  # which would give up after a number of lengths
        found["keys, torch compiled"] = partial(keys, "torch", torch.compile(make_keys))
        found["keys and values, torch compiled"] = partial(both, "torch", torch.compile(make_both))
    return found


def _lines(found: dict[str, Any], flatness: dict[str, dict[int, float]], bandwidth: float) -> Iterator[tuple[str, ...]]:
    """Of the table, at one length."""
    for name, seconds in found["median_seconds"].items():
        speed = found["bytes_per_second"].get(name)
        yield (
            f"{found['length']:,}",
            name,
            f"{seconds * 1e3:,.2f}",
            f"{found['seconds_per_token'][name] * 1e6:,.3f}",
            f"{found['in_linear_layers'][name]:.2f}",
            f"{flatness[name][found['length']]:.2f}",
            f"{found['peak_bytes_per_token'][name]:,.0f}",
            "" if speed is None else f"{speed / bandwidth:.1%}",
        )

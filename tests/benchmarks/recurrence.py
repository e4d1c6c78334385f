"""Time keys and values, equations (8) and (9), in units of one linear layer, and how they grow with the context.

python tests/benchmarks/recurrence.py --threads 1 --precision fp32 --compile
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, get_args

import torch
from lengths import BY_LENGTH, measure_lengths
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.harness import Benchmark, Case, Options, measure, ready
from mm_lightning.experiments.benchmark.workload import Workload
from mm_lightning.function_command import run_function
from mm_lightning.memory.bandwidth import AdaptiveBandwidth
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels, resolve_kernels
from mm_lightning.memory.keys import average_keys
from mm_lightning.memory.values import look_ahead_values
from mm_lightning.ranges import Count
from mm_lightning.training.compiler import check_compiler

DEFAULTS = {"dim": 256, "heads": 4, "batch_size": 1, "precision": "bf16"}

KEYS_MOVE = 8
"""Tensors of d elements a token that keys read and write at least: raw to q and k; raw, k, two gradients to one."""

VALUES_MOVE = 6
"""The same for values: raw to v; raw, v and a gradient to one."""

PEAK_SIZES = {"cpu": (1024, 1 << 26), "cuda": (8192, 1 << 28)}
"""Rows of the matrices, and elements of the copy, that peaks are measured with."""


def recurrence_command(
    lengths: list[Count] | None = None,
    kernels: list[Kernels] | None = None,
    tokens: Count | None = None,
    compile: bool = False,
    **options: Annotated[Any, Options],
) -> None:
    """Time the keys of equation (8), and the values of (9), against one linear layer on the same tokens.

    Forward and backward, in turns: a d x d linear layer (under autocast in bf16), the gated keys, and keys and values
    together, by every kind of kernels that runs here. The table gives medians, the time of a token, the median ratio to
    the linear layer in neighboring runs, the time of a token relative to that at the first length, the most memory that
    a token holds, and the share of the device's bandwidth, measured by a large copy, that goes into what has to move:
    8 d elements a token for keys, 14 d with values. By default d 256, H 4, one sequence, bf16.

    Args:
        lengths: tokens of a sequence: [1024, 2048, 4096, 8192, 16384, 32768] by default.
        kernels: which, of those that model.kernels of a training config takes; by default all that run here but
            reference, which is a loop over time.
        tokens: tokens of all sequences together, in the place of batch_size: at every length as many sequences as make
            them up, so that only the length differs and not the size of tensors.
        compile: also the torch kernels as torch.compile joins them, anew for each length.
    """
    bench = Benchmark("recurrence", Options(**options), DEFAULTS)
    chosen = available_kernels(kernels, bench.work, bench.device)
    if compile:
        check_compiler(bench.device)
    peaks = measure_peaks(bench)
    groups = measure_lengths(
        bench,
        lambda work: cases(work, chosen, bench.device, bench.seed, compile),
        [2**n for n in range(10, 16)] if lengths is None else lengths,
        tokens,
    )
    share = 1 / peaks["bytes_per_second"]
    columns = {
        **BY_LENGTH,
        "linear layers": lambda row: f"{row['relative_time']:.2f}",
        "of bandwidth": lambda row: f"{row['bytes_per_second'] * share:.1%}" if "bytes" in row else "",
    }
    title, settings = "keys and values, forward and backward", {"kernels": " ".join(chosen)}
    bench.report(title, columns, groups, 2, peaks=peaks, settings=settings)


def measure_peaks(bench: Benchmark) -> dict[str, float]:
    """Return the FLOP/s of a large matrix product in the benchmark's precision, and the bytes/s of a large copy."""
    size, count = PEAK_SIZES[bench.device.type]
    a, b = (torch.randn(size, size, device=bench.device, dtype=bench.work.dtype) for _ in range(2))
    source = torch.randn(count, device=bench.device)
    copy = torch.empty_like(source)
    product = Case("product", lambda: partial(torch.matmul, a, b), {"flops": 2 * size**3})
    copying = Case("copy", lambda: partial(copy.copy_, source), {"bytes": 2 * source.nbytes})
    rows = measure([product, copying], bench.repeats, bench.device, least=0.02)
    return {key: row[key] for row, key in zip(rows, ("flops_per_second", "bytes_per_second"), strict=True)}


def available_kernels(kernels: list[Kernels] | None, work: Workload, device: torch.device) -> list[Kernels]:
    """Return the kernels that are named, or all that run here but the reference.

    Raises:
        UserError: one that is named does not run here.
    """
    if kernels is not None:
        return list(dict.fromkeys(resolve_kernels(one, device, work.dtype) for one in kernels))
    available: list[Kernels] = []
    for one in get_args(Kernels):
        if one not in ("auto", "reference"):
            try:
                available.append(resolve_kernels(one, device, work.dtype))
            except UserError:
                continue  # not here
    return available


def cases(work: Workload, kernels: list[Kernels], device: torch.device, seed: int, compile: bool) -> list[Case]:
    """Return forward and backward of everything at one length, the linear layer first."""
    torch.manual_seed(seed)
    dim, heads, dtype = work.network.dim, work.network.heads, work.dtype
    shape = (work.batch_size, work.context_length, heads, dim // heads)
    with device:
        x, raw, ahead, *gradients = (torch.randn(shape, dtype=dtype, requires_grad=n < 3) for n in range(6))
        gate, decay = (torch.randn(shape[:3], dtype=dtype) for _ in range(2))
        decay = -decay.abs()
        gamma, alpha = torch.rand(heads), torch.ones(heads)
        weight = torch.randn(dim, dim, requires_grad=True)
        documents = Documents.whole(work.batch_size, work.context_length, device)
        beta = AdaptiveBandwidth(heads)(documents.position + 1).detach()
    gate, decay, beta, gamma, alpha = (s.requires_grad_() for s in (gate, decay, beta, gamma, alpha))
    tokens = work.batch_size * work.context_length

    def linear() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = F.linear(x.flatten(-2), weight)
        torch.autograd.grad(y, [x, weight], gradients[0].flatten(-2))

    def keys(one: Kernels) -> tuple[Tensor, ...]:
        return average_keys(raw, gate, decay, beta, documents, one)

    def both(one: Kernels) -> tuple[Tensor, ...]:
        return *keys(one), look_ahead_values(ahead, gamma, alpha, documents, one)

    inputs = [raw, gate, decay, beta]
    element = tokens * dim * dtype.itemsize

    def pair(name: str, one: Kernels, join: Callable[[Any], Any] = lambda forward: forward) -> list[Case]:
        def build_keys() -> Callable[[], Any]:
            forward = join(keys)
            return lambda: torch.autograd.grad(forward(one), inputs, gradients[:2])

        def build_both() -> Callable[[], Any]:
            forward = join(both)
            return lambda: torch.autograd.grad(forward(one), [*inputs, ahead, gamma, alpha], gradients)

        moved = {"tokens": tokens, "bytes": KEYS_MOVE * element}
        all_moved = {"tokens": tokens, "bytes": (KEYS_MOVE + VALUES_MOVE) * element}
        return [Case(f"keys, {name}", build_keys, moved), Case(f"keys and values, {name}", build_both, all_moved)]

    made = [Case("linear layer", ready(linear), {"tokens": tokens})]
    for one in kernels:
        made += pair(one, one)
    if compile:
        torch.compiler.reset()  # it gives up after some lengths
        made += pair("torch compiled", "torch", torch.compile)
    return made


if __name__ == "__main__":
    run_function("recurrence", recurrence_command, sys.argv[1:])

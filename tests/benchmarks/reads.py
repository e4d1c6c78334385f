"""Time the reads of short-term and long-term memory beside a full causal read, and how they grow with the context.

python tests/benchmarks/reads.py --threads 1 --precision fp32
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from lengths import BY_LENGTH, measure_lengths
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.harness import Benchmark, Case, Options, ready
from mm_lightning.experiments.benchmark.workload import Workload
from mm_lightning.function_command import run_function
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels.fused_read import fused_attention, fused_read
from mm_lightning.ranges import AtLeastTwo, Count

DEFAULTS = {"dim": 256, "heads": 4, "batch_size": 1, "precision": "bf16"}


def reads_command(
    lengths: list[Count] | None = None,
    documents: Count = 1,
    tokens: Count | None = None,
    window: AtLeastTwo | None = None,
    **options: Annotated[Any, Options],
) -> None:
    """Time the reads of short-term and long-term memory against a full causal read of the same tokens.

    Forward and backward, in turns: scaled_dot_product_attention of whole rows, causally, by the kernels that compute
    our reads, and on a GPU also by those that torch would choose; and our reads of everything, of the short-term
    window, and of what is older than the long-term delay m, which is drawn anew for every call. The table gives
    medians, the time of a token, the median ratio to plain attention in neighboring runs, the time of a token relative
    to that at the first length, the FLOP/s on the pairs that are read, and the most memory that a token holds. By
    default d 256, H 4, one sequence, bf16.

    Args:
        lengths: tokens of a sequence: [1024, 2048, 4096, 8192] by default.
        documents: documents in each sequence, of random lengths; plain attention takes no notice of them.
        tokens: tokens of all sequences together, in the place of batch_size: at every length as many sequences as make
            them up, so that only the length differs and not the size of tensors.
        window: short-term window h; 256 by default.
    """
    bench = Benchmark("reads", Options(**options), DEFAULTS)
    if window is not None:
        bench.work = replace(bench.work, network=replace(bench.work.network, short_term_window=window))
    lengths = [1024, 2048, 4096, 8192] if lengths is None else lengths
    if lengths and not 1 <= documents <= min(lengths):
        shortest = min(lengths)
        raise UserError(f"documents must be at least 1 and at most the {shortest} tokens of a row, got {documents}")
    groups = measure_lengths(bench, lambda work: cases(work, documents, bench.device, bench.seed), lengths, tokens)
    columns = {
        **BY_LENGTH,
        "by plain attention": lambda row: f"{row['relative_time']:.2f} x",
        "GFLOP/s": lambda row: f"{row['flops_per_second'] / 1e9:,.1f}",
    }
    network = bench.work.network
    spans = {"short_term_window": network.short_term_window, "long_term_delay": list(network.long_term_delay)}
    bench.report("reads, forward and backward", columns, groups, 2, settings={"documents": documents, **spans})


def cases(work: Workload, count: int, device: torch.device, seed: int) -> list[Case]:
    """Return forward and backward of every read at one length, plain attention first.

    Counts are the pairs read (with a delay, at the mean m), and their FLOPs: q.k and the sum over values, 2 d each in
    the forward pass and twice that in the backward pass.
    """
    torch.manual_seed(seed)
    draw = random.Random(seed)
    network, batch, length = work.network, work.batch_size, work.context_length
    starts = torch.zeros(batch, length, dtype=torch.bool)
    for row in starts:
        row[[0, *draw.sample(range(1, length), count - 1)]] = True
    documents = Documents.from_starts(starts).to(device)
    shape = (batch, length, network.heads, network.head_dim)
    with device:
        q, k, v, gradient = (torch.randn(shape, dtype=work.dtype) for _ in range(4))
    q, k, v = inputs = [x.requires_grad_() for x in (q, F.normalize(k, dim=-1), v)]

    def plain(attention: Callable[..., torch.Tensor], **causal: bool) -> None:
        rows = (x.transpose(1, 2) for x in inputs)
        torch.autograd.grad(attention(*rows, scale=1.0, **causal), inputs, gradient.transpose(1, 2))

    def ours(span: Span) -> None:
        torch.autograd.grad(fused_read(q, k, v, span, documents), inputs, gradient)

    def case(name: str, call: Callable[[], None], span: Span | None = None) -> Case:
        pairs = batch * length * (length + 1) // 2 if span is None else int(span.count(documents.position).sum())
        return Case(name, ready(call), {"tokens": batch * length, "pairs": pairs, "flops": 12 * network.dim * pairs})

    low, high = network.long_term_delay
    short = network.span("short", low)
    made = [case("plain causal attention", lambda: plain(fused_attention, causal=True))]
    if device.type == "cuda":  # among its kernels those that are planned for each shape
        choice = lambda: plain(F.scaled_dot_product_attention, is_causal=True)  # noqa: E731
        made.append(case("the same by torch's choice", choice))
    delayed = lambda: ours(network.span("long", draw.randint(low, high)))  # noqa: E731
    made.append(case("full read", lambda: ours(Span(1)), Span(1)))
    made.append(case("short-term read", lambda: ours(short), short))
    made.append(case("long-term read", delayed, Span((low + high) // 2)))
    return made


if __name__ == "__main__":
    run_function("reads", reads_command, sys.argv[1:])

"""Reads of a memory, forward and backward: windowed and delayed ones beside a full causal read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.report import report
from mm_lightning.experiments.benchmark.setup import Precision, Setup, filled, setup
from mm_lightning.experiments.benchmark.timing import (
    begin,
    flatness,
    machine,
    medians,
    numbers,
    peak_bytes,
    ratio,
    take_turns,
)
from mm_lightning.ranges import AtLeastTwo, Count, Few, Name, Place, Seed

LENGTHS = [1024, 2048, 4096, 8192]

DEFAULTS = {
    "dim": 256,
    "layers": 1,
    "heads": 4,
    "vocab_size": 2,
    "context_length": 1,
    "batch_size": 1,
    "precision": "bf16",
}

PLAIN = "plain causal attention"

CHOSEN = "the same by torch's choice"
"""Of kernels on a GPU, among them those that have to be planned for each shape."""


def reads_command(
    lengths: list[Count] | Count | None = None,
    documents: Count = 1,
    config: Place | list[Place] | None = None,
    dim: Count | None = None,
    heads: Count | None = None,
    batch_size: Count | None = None,
    tokens: Count | None = None,
    window: AtLeastTwo | None = None,
    precision: Precision | None = None,
    reference: bool = False,
    device: Name = "cpu",
    threads: Few | None = None,
    repeats: Count = 7,
    seed: Seed = 0,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Time the reads of short-term and long-term memory against a full causal read of the same tokens.

    Forward and backward, in turns: scaled_dot_product_attention of whole rows, causally, by the kernels that compute
    our reads, and on a GPU also by those that torch would choose; and our reads of everything, of the short-term
    window, and of what is older than the long-term delay m, which is drawn anew for every call. The table gives
    medians, the time of a token, the median ratio to plain attention in neighbouring runs, the time of a token relative
    to that at the first length, the FLOPs of the pairs that are read by second, and the most memory that a token holds.

    Args:
        lengths: tokens of a sequence: [1024, 2048, 4096, 8192] by default.
        documents: in each sequence, of random lengths; plain attention takes no notice of them.
        config: a training config with d, H, the spans, the micro batch and the precision (and overlays of it); what
            follows wins over it.
        dim: hidden size d; 256 by default.
        heads: heads H; 4 by default.
        batch_size: sequences; 1 by default.
        tokens: of all sequences together, in the place of batch_size: at every length as many sequences as make them
            up, so that what is compared is the length alone and not the size of tensors.
        window: short-term window h; 256 by default.
        precision: of queries, keys and values; bf16 by default.
        reference: read by the T x T reference in the place of fused kernels.
        device: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each.
        seed: of the numbers, the lengths of documents and the delays m.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """
    from dataclasses import replace

    place, target = begin(device, threads, repeats, output, overwrite)
    what = setup(config, DEFAULTS, dim=dim, heads=heads, batch_size=batch_size, precision=precision)
    if window is not None:
        what = replace(what, network=replace(what.network, short_term_window=window))
    sizes = numbers(lengths, LENGTHS, "lengths")
    if not 1 <= documents <= min(sizes):
        raise UserError(f"documents must be at least 1 and at most the {min(sizes)} tokens of a row, got {documents}")
    found = [
        _at_length(n, documents, one, place, repeats, seed, reference) for n, one in filled(what, sizes, tokens).items()
    ]
    network = what.network
    result = {
        "benchmark": "reads",
        "lengths": found,
        "flatness": flatness(found),
        "settings": {
            **{name: what.settings[name] for name in ("dim", "heads", "precision")},
            **({"batch_size": what.batch_size} if tokens is None else {"tokens": tokens}),
            "documents": documents,
            "short_term_window": network.short_term_window,
            "long_term_delay": list(network.long_term_delay),
            "reference": reference,
            "repeats": repeats,
            "seed": seed,
        },
        **machine(place),
    }
    columns = ["T", "", "ms", "us/token", "by plain attention", "per token, by first T", "GFLOP/s", "peak bytes/token"]
    lines = (_lines(one, result["flatness"]) for one in found)
    report(result, "reads, forward and backward", columns, 2, lines, target)


def _at_length(
    length: int, documents: int, what: Setup, device: Any, repeats: int, seed: int, reference: bool
) -> dict[str, Any]:
    runs, pairs = _runs(length, documents, what, device, seed, reference)
    seconds = take_turns(runs, repeats, device, least=0.01)
    tokens = what.batch_size * length
    median = medians(seconds)
    # q.k and the sum over values, 2 d each in the forward pass and twice that in the backward pass
    flops = {name: 12 * what.network.dim * count for name, count in pairs.items()}
    return {
        "length": length,
        "median_seconds": median,
        "seconds_per_token": {name: value / tokens for name, value in median.items()},
        "by_plain": {name: ratio(seconds, name, PLAIN) for name in runs},
        "pairs": pairs,
        "flops_per_second": {name: flops[name] / value for name, value in median.items()},
        "peak_bytes_per_token": {name: peak_bytes(run, device) / tokens for name, run in runs.items()},
        "seconds": seconds,
    }


def _runs(
    length: int, count: int, what: Setup, device: Any, seed: int, reference: bool
) -> tuple[dict[str, Any], dict[str, int]]:
    """Forward and backward of every read at one length, and how many pairs each reads; with a delay, at the mean m."""
    import torch
    from torch.nn import functional as F

    from mm_lightning.memory.documents import Documents, Span
    from mm_lightning.memory.kernels.fused_read import fused_attention, fused_read
    from mm_lightning.memory.retrieval import read_reference

    torch.manual_seed(seed)
    draw = random.Random(seed)
    network, batch = what.network, what.batch_size
    starts = torch.zeros(batch, length, dtype=torch.bool)
    for row in starts:
        row[[0, *draw.sample(range(1, length), count - 1)]] = True
    documents = Documents.from_starts(starts).to(device)
    shape = (batch, length, network.heads, network.head_dim)
    dtype = torch.bfloat16 if what.precision == "bf16" else torch.float32
    with device:
        q, k, v, down = (torch.randn(shape, dtype=dtype) for _ in range(4))
    k = F.normalize(k, dim=-1)
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def plain(attention: Any, **causal: bool) -> None:
        rows = (x.transpose(1, 2) for x in inputs)
        torch.autograd.grad(attention(*rows, scale=1.0, **causal), inputs, down.transpose(1, 2))

    def ours(span: Span) -> None:
        read = read_reference if reference else fused_read
        torch.autograd.grad(read(*inputs, span, documents), inputs, down)

    low, high = network.long_term_delay
    short = network.span("short", low)
    runs = {PLAIN: lambda: plain(fused_attention, causal=True)}
    if device.type == "cuda":
        runs[CHOSEN] = lambda: plain(F.scaled_dot_product_attention, is_causal=True)
    runs |= {
        "full read": lambda: ours(Span(1)),
        "short-term read": lambda: ours(short),
        "long-term read": lambda: ours(network.span("long", draw.randint(low, high))),
    }
    spans = {"full read": Span(1), "short-term read": short, "long-term read": Span((low + high) // 2)}
    pairs = {name: int(span.count(documents.position).sum()) for name, span in spans.items()}
    return runs, {name: pairs.get(name, batch * length * (length + 1) // 2) for name in runs}


def _lines(found: dict[str, Any], flatness: dict[str, dict[int, float]]) -> Iterator[tuple[str, ...]]:
    """Of the table, at one length."""
    for name, seconds in found["median_seconds"].items():
        yield (
            f"{found['length']:,}",
            name,
            f"{seconds * 1e3:,.2f}",
            f"{found['seconds_per_token'][name] * 1e6:,.3f}",
            f"{found['by_plain'][name]:.2f} x",
            f"{flatness[name][found['length']]:.2f}",
            f"{found['flops_per_second'][name] / 1e9:,.1f}",
            f"{found['peak_bytes_per_token'][name]:,.0f}",
        )

"""What the benchmarks over lengths of a sequence share: workloads by length, their groups of rows, and columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.harness import Benchmark, Case, Columns, Row
from mm_lightning.experiments.benchmark.workload import Workload

BY_LENGTH: Columns = {
    "T": lambda row: f"{row['T']:,}",
    "": lambda row: row["case"],
    "ms": lambda row: f"{row['median_seconds'] * 1e3:,.2f}",
    "us/token": lambda row: f"{1e6 / row['tokens_per_second']:,.3f}",
    "per token, by first T": lambda row: f"{row['growth']:.2f}",
    "peak bytes/token": lambda row: f"{row['peak_bytes'] / row['tokens']:,.0f}",
}
"""Columns of :func:`measure_lengths`, two of them names."""


def measure_lengths(
    bench: Benchmark, cases: Callable[[Workload], Sequence[Case]], lengths: Sequence[int], tokens: int | None
) -> list[list[Row]]:
    """Return groups of rows by length of a sequence T, for operations forward and backward.

    `growth` is the seconds per token by those of the case of this name at the first length.

    Args:
        bench: the benchmark.
        cases: makes the cases of a workload.
        lengths: tokens of a sequence.
        tokens: of all sequences of a workload together, in the place of its batch size.

    Raises:
        UserError: there is no length, or `tokens` is no multiple of one.
    """
    if not lengths:
        raise UserError("lengths is empty: name one or more whole numbers")
    for length in lengths:
        if tokens is not None and (tokens < length or tokens % length):
            raise UserError(f"tokens must be a multiple of all lengths, got {tokens} tokens and a length of {length}")
    if tokens is not None:
        del bench.settings["batch_size"]
        bench.settings["tokens"] = tokens
    groups = []
    for n in lengths:
        work = replace(bench.work, context_length=n, batch_size=tokens // n if tokens else bench.work.batch_size)
        groups.append(bench.measure(cases(work), {"T": n}, least=0.01, peak=True))
    first = {row["case"]: row["tokens_per_second"] for row in groups[0]}
    for row in itertools.chain(*groups):
        row["growth"] = first[row["case"]] / row["tokens_per_second"]
    return groups

"""Time the training loader against plain memory-mapped reads of the same sequences, and against the network.

python tests/benchmarks/loader.py --config configs/quickstart.yaml --workers 0 2 --threads 1

In turns: the loader of `mm fit` with each number of workers; the same sequences in the same order from memory-mapped
files, as int64 and nothing else; and training steps of the config's network. The data must be prepared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from mm_lightning.data import TextDataModule, mixture
from mm_lightning.experiments.benchmark.harness import Benchmark, Case, Options, ready
from mm_lightning.experiments.benchmark.step import DEFAULTS, TrainingStep
from mm_lightning.training.parse_fit import parse_fit


def data_module(data: Any, workers: int, seed: int) -> TextDataModule:
    """Return the data module of a config's data, set up."""
    sizes = {name: data[name] for name in ("context_length", "global_batch_size", "micro_batch_size")}
    module = TextDataModule(data.path, **sizes, num_workers=workers, seed=seed)
    module.setup("fit")
    return module


def endless(loader: Any) -> Generator[Any]:
    """Yield batches epoch after epoch."""
    while True:
        yield from loader


class MappedReader:
    """Read sequences from memory-mapped shards in the order of training."""

    def __init__(self, data: Any, seed: int) -> None:
        module = data_module(data, 0, seed)
        self.length = data.context_length + 1
        shards = [
            (s.folder / "train" / shard.file, shard, np.dtype(s.manifest.dtype))
            for s in module.sets
            for shard in s.split("train").shards
        ]
        self.files = [
            np.memmap(path, dtype, "r", shard.bytes - shard.tokens * dtype.itemsize, shard.tokens)
            for path, shard, dtype in shards
        ]
        self.ends = np.cumsum([shard.tokens // self.length for _, shard, _ in shards])
        sizes = (data.micro_batch_size, data.global_batch_size)
        self.order = mixture.training_order(module.sets, data.context_length, *sizes, seed).since(0)

    def read(self, count: int) -> np.ndarray:
        """Return the next sequences, (count, T + 1) int64."""
        return np.stack([self._sequence(number) for number in islice(self.order, count)])

    def _sequence(self, number: int) -> np.ndarray:
        file = int(np.searchsorted(self.ends, number, "right"))
        first = (number - (self.ends[file - 1] if file else 0)) * self.length
        return self.files[file][first : first + self.length].astype(np.int64)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True)
    parser.add_argument("--workers", nargs="+", type=int, default=[0])
    parser.add_argument("--batches", type=int, default=200, help="micro batches of a timed run")
    for name in ("--threads", "--repeats"):
        parser.add_argument(name, type=int)
    parser.add_argument("--output")
    given = parser.parse_args(argv)
    options = Options(config=given.config, threads=given.threads, repeats=given.repeats, output=given.output)
    bench = Benchmark("loader", options, DEFAULTS)
    data = parse_fit([word for path in given.config for word in ("--config", path)]).data
    tokens = bench.work.batch_size * bench.work.context_length
    streams = {workers: endless(data_module(data, workers, bench.seed).train_dataloader()) for workers in given.workers}
    mapped = MappedReader(data, bench.seed)

    def take(stream: Generator[Any]) -> None:
        for _ in islice(stream, given.batches):
            pass

    def read() -> None:
        for _ in range(given.batches):
            mapped.read(bench.work.batch_size)

    def case(name: str, call: Callable[[], None]) -> Case:
        return Case(name, ready(call), {"tokens": tokens * given.batches})

    network = TrainingStep(bench.work.network, bench.work, bench.device, bench.seed)
    loaders = [case(f"loader, {n} workers", partial(take, stream)) for n, stream in streams.items()]
    step = Case("network, a training step", ready(network), {"tokens": tokens})
    try:
        rows = bench.measure([case("memory-mapped read", read), *loaders, step])
    finally:
        for stream in streams.values():
            stream.close()  # its workers, which the end of the process would wait for
    columns = {
        "": lambda row: row["case"],
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "by plain reading": lambda row: f"{row['tokens_per_second'] / rows[0]['tokens_per_second']:.2f} x",
        "by the network": lambda row: f"{row['tokens_per_second'] / rows[-1]['tokens_per_second']:,.1f} x",
    }
    bench.report("reading training data", columns, [rows], settings={"data": str(data.path), "batches": given.batches})


if __name__ == "__main__":
    main()

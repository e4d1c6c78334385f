"""The loader of training beside the plainest way to read the same tokens, and beside what the network consumes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from mm_lightning.experiments.benchmark.report import report
from mm_lightning.experiments.benchmark.setup import Setup, setup
from mm_lightning.experiments.benchmark.timing import begin, machine, medians, numbers, ratio, take_turns
from mm_lightning.ranges import Count, Few, Name, Place, Seed, Workers

MAPPED = "memory-mapped read"
NETWORK = "network, a training step"


def data_command(
    config: Place | list[Place],
    workers: list[Workers] | Workers | None = None,
    batches: Count = 200,
    device: Name = "cpu",
    threads: Few | None = None,
    repeats: Count = 5,
    seed: Seed = 0,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Time the training loader against plain reading, and against what the network takes in.

    In turns: the loader of `mm fit` with so many worker processes, batches with documents and targets, ready for the
    network; the same sequences in the same order from memory-mapped files, as int64 numbers and nothing else; and
    training steps of the config's network on tokens that are there. The table gives medians of tokens per second, and
    each way's median ratios to plain reading and to the network in neighbouring runs.

    Args:
        config: a training config (and overlays of it), whose data is prepared.
        workers: processes that load; 0 is the training process itself. The config's by default.
        batches: micro batches of a timed run.
        device: what the network runs on: cpu, cuda, cuda:1, ...
        threads: CPU threads; torch's choice by default.
        repeats: timed runs of each.
        seed: of the order of sequences, and of the network.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """
    from mm_lightning.experiments.benchmark.step import TrainingStep

    place, target = begin(device, threads, repeats, output, overwrite)
    what = setup(config, {})
    counts = numbers(workers, [what.fit.data.num_workers], "workers")
    streams = {f"loader, {n} workers": Stream(loader(what, n, seed)) for n in counts}
    runs: dict[str, Any] = {name: partial(stream.take, batches) for name, stream in streams.items()}
    runs[MAPPED] = Mapped(what, seed, batches)
    step = TrainingStep(what.fit.model.network, what, place, seed, what.fit.model.kernels)
    try:
        seconds = take_turns({**runs, NETWORK: step}, repeats, place)
    finally:
        for stream in streams.values():
            stream.close()
    tokens = what.batch_size * what.context_length
    of_run = {name: tokens * (1 if name == NETWORK else batches) for name in seconds}
    result = {
        "benchmark": "data",
        "tokens_per_second": {name: of_run[name] / value for name, value in medians(seconds).items()},
        "by_mapped": {name: ratio(seconds, MAPPED, name) for name in runs},
        "by_network": {name: batches * ratio(seconds, NETWORK, name) for name in runs},
        "seconds": seconds,
        "settings": {
            "config": str(config),
            "data": str(what.fit.data.path),
            **what.settings,
            "batches": batches,
            "repeats": repeats,
            "seed": seed,
        },
        **machine(place),
    }
    columns = ["", "tokens/s", "by plain reading", "by the network"]
    report(result, "reading training data", columns, 1, [_lines(result)], target)


def module_of(what: Setup, workers: int, seed: int) -> Any:
    """The data module of a config, set up.

    Raises:
        UserError: its data is not prepared, or damaged.
    """
    from mm_lightning.data import TextDataModule

    data = what.fit.data
    sizes = {name: data[name] for name in ("context_length", "global_batch_size", "micro_batch_size")}
    module = TextDataModule(data.path, **sizes, num_workers=workers, seed=seed)
    module.setup("fit")
    return module


def loader(what: Setup, workers: int, seed: int) -> Any:
    """The loader of training with so many workers."""
    return module_of(what, workers, seed).train_dataloader()


class Stream:
    """Batches of a loader without end, epoch after epoch."""

    def __init__(self, loader: Any) -> None:
        self._batches = self._endless(loader)

    @staticmethod
    def _endless(loader: Any) -> Generator[Any]:
        while True:
            yield from loader

    def close(self) -> None:
        """Ends its workers, for which a process that ends would wait."""
        self._batches.close()

    def take(self, count: int) -> None:
        """Reads so many more."""
        for _ in islice(self._batches, count):
            pass


class Mapped:
    """Reads sequences from memory-mapped shards in the order of training, so many batches with each call."""

    def __init__(self, what: Setup, seed: int, batches: int) -> None:
        from mm_lightning.data import mixture

        module = module_of(what, 0, seed)
        self.length, self.batch, self.batches = what.context_length + 1, what.batch_size, batches
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
        sizes = (self.batch, what.fit.data.global_batch_size)
        self.order = mixture.training_order(module.sets, what.context_length, *sizes, seed).since(0)

    def __call__(self) -> None:
        for _ in range(self.batches):
            np.stack([self.sequence(number) for number in islice(self.order, self.batch)])

    def sequence(self, number: int) -> np.ndarray:
        """(T + 1,) int64"""
        file = int(np.searchsorted(self.ends, number, "right"))
        first = (number - (self.ends[file - 1] if file else 0)) * self.length
        return self.files[file][first : first + self.length].astype(np.int64)


def _lines(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of the table."""
    for name, speed in result["tokens_per_second"].items():
        mapped, network = result["by_mapped"].get(name), result["by_network"].get(name)
        yield (
            name,
            f"{speed:,.0f}",
            "" if mapped is None else f"{mapped:.2f} x",
            "" if network is None else f"{network:,.1f} x",
        )

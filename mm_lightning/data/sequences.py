"""The sequences of a split, the order of training and evaluation, and a loader that resumes anywhere in it.

The order of training is one list for the whole run, decided by the seed and the epoch alone: optimizer step s gets the
same sequences whatever the number of devices, of loader workers and of sequences per forward pass. To resume, only the
number of sequences served is needed.
"""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from io import FileIO
from itertools import accumulate, cycle, islice
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mm_lightning.data.manifest import Shard
from mm_lightning.data.verify import shard_problems
from mm_lightning.data.workers import Worker, WorkerDied, start_server
from mm_lightning.errors import UserError
from mm_lightning.retry import patiently

# Shards that are shuffled together: enough to mix sources, few enough to stay near each other on a disk.
_WINDOW = 64

_MAX_STARTS = 3  # starts of loader workers that die before they have given a batch

_MAX_OPEN_FILES = 2 * _WINDOW  # in each process


class Sequences(Dataset):
    """Sequences of `length` consecutive tokens from litdata shards, by number, read a batch at a time.

    A shard's size is checked when it is opened and with each read, and its checksum once by one of the processes that
    read it: damage during training ends in an error that names the shard. Files are read, not mapped: where storage
    fails under a mapping, the process is killed by a signal.

    Args:
        shards: the files and their manifest entries, in order.
        length: tokens in a sequence.
        dtype: of the tokens in the files.
        part: rank and number of the processes that share the work of checksums.
    """

    def __init__(
        self, shards: list[tuple[Path, Shard]], length: int, dtype: str, part: tuple[int, int] = (0, 1)
    ) -> None:
        self._shards, self._length, self._dtype, self._part = shards, length, np.dtype(dtype), part
        self._ends = list(accumulate(shard.tokens // length for _, shard in shards))
        token = self._dtype.itemsize
        self._size = length * token
        # The offset in each file at which sequence 0 would begin, were all earlier shards' sequences in it too. The
        # bytes of a file beyond its tokens are litdata's header.
        self._origins = [
            shard.bytes - shard.tokens * token - begin * self._size
            for (_, shard), begin in zip(shards, [0, *self._ends], strict=False)
        ]
        self._files: dict[int, FileIO] = {}  # by shard, the first opened first
        self._summed: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which opens files of its own."""
        return {**vars(self), "_files": {}}

    def for_worker(self, number: int, workers: int) -> Sequences:
        """Return a copy for one of this process's loader workers, which share its checksums."""
        rank, ranks = self._part
        part = rank * workers + number, ranks * workers
        return Sequences(self._shards, self._length, self._dtype.name, part)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        """Return the (len(indices), length) tokens, of the files' dtype.

        Raises:
            UserError: a shard is missing or damaged, or cannot be read.
        """
        data = b"".join(map(self._read, indices))
        return np.frombuffer(data, self._dtype).reshape(len(indices), self._length)

    def _read(self, index: int) -> bytes:
        number = bisect_right(self._ends, index)
        file = self._files.get(number) or self._open(number)
        at = self._origins[number] + index * self._size
        data = patiently(partial(os.pread, file.fileno(), self._size, at), file.name)
        if len(data) < self._size:
            raise UserError(f"shard {file.name} is truncated (after it was opened): {_mend(file.name)}")
        return data

    def _open(self, number: int) -> FileIO:
        rank, ranks = self._part
        path, shard = self._shards[number]
        checksum = number % ranks == rank and number not in self._summed
        problems = patiently(lambda: shard_problems(path, shard, checksum), str(path))
        if problems:
            raise UserError(f"{problems[0]}: {_mend(path)}")
        if checksum:
            self._summed.add(number)
        if len(self._files) == _MAX_OPEN_FILES:
            self._files.pop(next(iter(self._files))).close()
        self._files[number] = patiently(partial(FileIO, str(path)), str(path))
        return self._files[number]


def _mend(shard: str | Path) -> str:
    return f"run mm data verify {quote(str(Path(shard).parent.parent))}, mend it and go on with --resume"


class TrainingOrder(DistributedSampler):
    """The shuffled order of training on one device; a DistributedSampler, so that Lightning does not replace it.

    The devices take turns of a batch each along one list, which is shuffled anew for each epoch.

    Args:
        shards: the number of sequences in each shard.
        batch: sequences in a batch of one device.
        multiple: an epoch is cut to a multiple of so many sequences, itself a multiple of a batch of every device.
        seed: of the shuffling.
        rank: of this device.
        world_size: number of devices.
    """

    def __init__(
        self, shards: list[int], batch: int, multiple: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._shards, self._batch, self._seed, self._rank = shards, batch, seed, rank
        self.world_size, self.multiple = world_size, multiple
        self.total = sum(shards) // multiple * multiple
        self.start = 0  # sequences served before, in all epochs, to all devices
        self.skip = 0  # sequences of this device to leave out, a multiple of a batch

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: `start` decides the epoch. (Lightning's is one too high after a resume at an epoch's end.)"""

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[int]:
        skipped = self.skip * self.world_size
        start = self.start + skipped
        for position, number in enumerate(islice(self.since(start), self.total - skipped), start):
            if position // self._batch % self.world_size == self._rank:
                yield number

    def since(self, position: int) -> Iterator[int]:
        """Yield the endless list of the whole run from a position on."""
        epoch, offset = divmod(position, self.total)
        while True:
            yield from islice(self._epoch(epoch, offset), self.total - offset)
            epoch, offset = epoch + 1, 0

    def _epoch(self, epoch: int, offset: int) -> Iterator[int]:
        """Yield the list of an epoch from `offset` on."""
        # RandomState, unlike newer generators, gives the same numbers in every version of numpy.
        order = np.random.RandomState([self._seed, epoch]).permutation(len(self._shards))
        ends = np.cumsum(self._shards)
        for window in range(0, len(order), _WINDOW):
            chosen = order[window : window + _WINDOW]
            size = sum(self._shards[n] for n in chosen)
            if offset < size:
                block = np.concatenate([np.arange(ends[n] - self._shards[n], ends[n]) for n in chosen])
                np.random.RandomState([self._seed, epoch, window]).shuffle(block)
                yield from block[offset:].tolist()
            offset = max(0, offset - size)


class EvaluationOrder(DistributedSampler):
    """The order of evaluation: all sequences in turn, dealt to the devices; at most world_size - 1 are left out.

    Args:
        count: the number of sequences.
        limit: use only so many, evenly spaced.
        rank: of this device.
        world_size: number of devices.
    """

    def __init__(self, count: int, limit: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        used = min(count, limit or count)
        self.skip = 0  # sequences of this device to leave out
        self._mine = (np.arange(used // world_size * world_size) * count // used)[rank::world_size]

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: every evaluation reads the same sequences."""

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine[self.skip :].tolist())


class PlainLoader(DataLoader):
    """A loader over `Sequences` whose workers, if it has any, are processes that stay for further iterations.

    When a worker dies, all are restarted and read again the batches not served yet, up to `_MAX_STARTS` times a batch.
    """

    _workers: tuple[Worker, ...] = ()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = self.batch_sampler  # in `mm predict` Lightning's own, while the loader has no batch size
        read = partial(_read_batch, self.dataset, self.collate_fn)
        served = deaths = 0
        while True:
            batches.sampler.skip = served * batches.batch_size
            try:
                for batch in self._read_ahead() if self.num_workers else map(read, batches):
                    served, deaths = served + 1, 0
                    yield batch.pin_memory() if self.pin_memory else batch
                return
            except WorkerDied as death:
                deaths += 1
                self._restart(str(death), deaths)

    def _read_ahead(self) -> Iterator[Any]:
        """Yield the batches of the workers, which take turns and are each `prefetch_factor` batches ahead."""
        assert isinstance(self.dataset, Sequences)
        if not self._workers:
            parts = [self.dataset.for_worker(n, self.num_workers) for n in range(self.num_workers)]
            reads = [partial(_read_batch, part, self.collate_fn) for part in parts]
            self._workers = tuple(Worker(n, read) for n, read in enumerate(reads))
        for worker in self._workers:
            worker.forget()  # an iteration may be left before its end
        asked: deque[Worker] = deque()
        for worker, indices in zip(cycle(self._workers), self.batch_sampler or ()):
            worker.ask(indices)
            asked.append(worker)
            if len(asked) == self.num_workers * (self.prefetch_factor or 1):
                yield asked.popleft().receive(self.timeout)
        while asked:
            yield asked.popleft().receive(self.timeout)

    def _restart(self, death: str, deaths: int) -> None:
        """End the other workers, so that the next iteration starts all of them.

        Raises:
            UserError: the workers have died `_MAX_STARTS` times without a batch.
        """
        for worker in self._workers:
            worker.end()
        self._workers = ()
        if deaths == _MAX_STARTS:
            raise UserError(
                f"{death}; so did those that took its place, {_MAX_STARTS} times without a batch: `--resume` goes on "
                f"from the newest checkpoint"
            )
        print(f"mm: {death}: the loader's workers are started anew, no batch is lost", file=sys.stderr, flush=True)
        start_server()


def _read_batch(sequences: Any, collate: Callable[..., Any], indices: list[int]) -> Any:
    return collate(sequences.__getitems__(indices))


class TrainingLoader(PlainLoader):
    """A loader over a `TrainingOrder` with a state, which Lightning stores in checkpoints.

    It is one endless stream: each `iter()` serves the next `len(loader)` batches after those served so far.
    """

    _served = 0  # sequences, in all epochs, to all devices

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        order = self.sampler
        assert isinstance(order, TrainingOrder)
        assert self.batch_size
        order.start = self._served
        for batch in super().__iter__():
            self._served += self.batch_size * order.world_size
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of sequences served to all devices since the beginning of the run."""
        return {"sequences": self._served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a saved state with the next `iter()`."""
        self._served = state["sequences"]

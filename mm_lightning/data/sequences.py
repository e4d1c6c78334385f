"""The sequences of a split, the order they are served in, and a loader that can go on in the middle of it.

The order of training is one list for the whole run, decided by the seed and the epoch alone: optimisation step s gets
the same sequences whatever the number of devices, of loader workers and of sequences per forward pass. Going on after
an interruption needs only the number of sequences served.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata import StreamingDataset, TokensLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from mm_lightning.data.manifest import Shard, shard_problems
from mm_lightning.data.retry import patiently
from mm_lightning.errors import UserError

# litdata copies the tensor it makes of a read-only mapping, so that nothing can write there.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

# Shards that are shuffled together: enough to mix sources, few enough to stay near each other on a disk.
_WINDOW = 64


class Sequences(Dataset):
    """Sequences of `length` consecutive tokens from the litdata shards of a folder, by number.

    A shard's size is checked whenever it is turned to, and its checksum once by one of the processes that read it, so
    that damage while training runs ends it with the shard's name.

    Args:
        folder: of the shards and their index.json.
        length: tokens in a sequence.
        shards: of the manifest, in order.
        part: which of how many training processes this one is: they share the checksums.
    """

    def __init__(
        self, folder: str | os.PathLike, length: int, shards: list[Shard], part: tuple[int, int] = (0, 1)
    ) -> None:
        self._folder, self._shards, self._part = Path(folder), shards, part
        self._ends = np.cumsum([shard.tokens // length for shard in shards])
        self._last = -1  # the shard of the last sequence
        self._summed: set[int] = set()
        self._stream = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=length), shuffle=False)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Tensor:
        """(length,) int64

        Raises:
            UserError: the shard is missing or damaged.
        """
        number = int(np.searchsorted(self._ends, index, "right"))
        if number != self._last:
            self._check(number)
        return torch.as_tensor(self._stream[int(index)]).to(torch.int64)

    def _check(self, number: int) -> None:
        worker = get_worker_info()
        workers, place = (worker.num_workers, worker.id) if worker else (1, 0)
        rank, ranks = self._part
        mine = number % (ranks * workers) == rank * workers + place
        path = self._folder / self._shards[number].file
        checksum = mine and number not in self._summed
        problems = patiently(lambda: shard_problems(path, self._shards[number], checksum), str(path))
        if problems:
            raise UserError(f"{problems[0]}: run mm data verify {self._folder.parent}, mend it and go on with --resume")
        if checksum:
            self._summed.add(number)
        self._last = number


class TrainingOrder(DistributedSampler):
    """The shuffled sequences that one device gets; a DistributedSampler, so that Lightning leaves it alone.

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
        self.world_size = world_size
        self.total = sum(shards) // multiple * multiple
        self.start = 0  # sequences served before, in all epochs, to all devices

    def set_epoch(self, epoch: int) -> None:
        """Nothing: `start` says the epoch. (Lightning counts one more after going on at an epoch's end.)"""

    def __len__(self) -> int:
        return self.total // self.world_size

    def __iter__(self) -> Iterator[int]:
        for position, number in enumerate(islice(self.since(self.start), self.total), self.start):
            if position // self._batch % self.world_size == self._rank:
                yield number

    def since(self, position: int) -> Iterator[int]:
        """The endless list of the whole run from a position on."""
        epoch, offset = divmod(position, self.total)
        while True:
            yield from islice(self._epoch(epoch, offset), self.total - offset)
            epoch, offset = epoch + 1, 0

    def _epoch(self, epoch: int, offset: int) -> Iterator[int]:
        """The list of an epoch from `offset` on."""
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
    """The sequences in order, dealt to the devices one by one; at most world_size - 1 are left out.

    Args:
        count: the number of sequences.
        limit: use only so many, evenly spaced.
        rank: of this device.
        world_size: number of devices.
    """

    def __init__(self, count: int, limit: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        used = min(count, limit or count)
        self._mine = (np.arange(used // world_size * world_size) * count // used)[rank::world_size]

    def set_epoch(self, epoch: int) -> None:
        """Nothing: every evaluation sees the same."""

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine.tolist())


class PlainLoader(DataLoader):
    """A loader that passes on a mistake found in a worker process without the worker's traceback."""

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).split("UserError: ")[-1].strip()) from None


class TrainingLoader(PlainLoader):
    """A loader over a `TrainingOrder` that saves how far it is; Lightning stores that in checkpoints.

    It is one endless stream: each `iter()` serves the next `len(loader)` batches after those served so far.
    """

    _served = 0  # sequences, in all epochs, to all devices

    def __iter__(self) -> Iterator[Any]:
        order = self.sampler
        assert isinstance(order, TrainingOrder)
        assert self.batch_size
        order.start = self._served
        for batch in super().__iter__():
            self._served += self.batch_size * order.world_size
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many sequences were served to all devices since the beginning of the run."""
        return {"sequences": self._served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a saved state with the next `iter()`."""
        self._served = state["sequences"]

"""Data sets that are trained on together, each with its share of the sequences.

As with one data set, the order of training is one list for the whole run: the set and sequence at position n depend on
(seed, n) alone, not on the order in which the sets are named.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mm_lightning.data.manifest import Manifest, Split
from mm_lightning.data.sequences import TrainingOrder
from mm_lightning.data.verify import check
from mm_lightning.errors import UserError

# Every set has its share within so many sequences; no share is less than one of them.
_BLOCK = 1 << 14


@dataclass(frozen=True)
class DataSet:
    """A prepared folder in training.

    Attributes:
        folder: the folder.
        name: the shortest end of its path that no other set has.
        share: of the training sequences of all sets together.
        manifest: of the folder.
    """

    folder: Path
    name: str
    share: Fraction
    manifest: Manifest

    def split(self, name: str) -> Split:
        """Return one of its splits.

        Raises:
            UserError: it has no such split.
        """
        if name not in self.manifest.splits:
            raise UserError(f"{self.folder} has no {name} split: prepare it with a validation_fraction above 0")
        return self.manifest.splits[name]

    def counts(self, context_length: int) -> list[int]:
        """Return the number of training sequences in each shard."""
        return [shard.tokens // (context_length + 1) for shard in self.split("train").shards]


def folders(path: str | os.PathLike | dict[str, float]) -> dict[Path, float]:
    """Return the folders and weights that `data.path` names.

    Raises:
        UserError: no folder, one twice, or a weight that is no share.
    """
    weights = path if isinstance(path, dict) else {str(path): 1.0}
    by_folder: dict[Path, float] = {}
    places: dict[Path, str] = {}
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"data.path: the weight of {name} is {weight}, it must be above 0: leave out unused data")
        folder = Path(name).expanduser()
        before = places.setdefault(folder.resolve(), name)
        if before != name:
            raise UserError(f"data.path: {before} and {name} are the same folder: name it once, with one weight")
        by_folder[folder] = weight
    if not by_folder:
        raise UserError("data.path is empty: name a prepared folder, or several as {FOLDER: WEIGHT, ...}")
    for folder, share in zip(by_folder, exact_shares(list(by_folder.values())), strict=True):
        if share * _BLOCK < 1:
            raise UserError(
                f"data.path: the weight of {folder} is {by_folder[folder]} of {sum(by_folder.values()):g}, less than a "
                f"sequence in {_BLOCK:,}: give it more, or leave it out"
            )
    return by_folder


def exact_shares(weights: list[float]) -> list[Fraction]:
    """Return the weights divided by their sum, each taken as it is written: 0.3 of 0.3 and 0.7 is 3/10."""
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def read(weights: dict[Path, float], context_length: int | None = None) -> list[DataSet]:
    """Return the sets with their manifests, sorted by fingerprint.

    With `context_length` they are checked first, as before training.

    Raises:
        UserError: a folder is missing, damaged or too small for the context, or has another tokenizer than the first.
    """
    names = short_names(list(weights))
    sets = []
    for folder, name, share in zip(weights, names, exact_shares(list(weights.values())), strict=True):
        manifest = check(folder, context_length=context_length) if context_length else Manifest.load(folder)
        sets.append(DataSet(folder, name, share, manifest))
    sets.sort(key=lambda s: (s.manifest.fingerprint, s.manifest.content))
    first = sets[0]
    for other in sets[1:]:
        one, two = first.manifest.tokenizer, other.manifest.tokenizer
        if one["sha256"] != two["sha256"]:
            raise UserError(
                f"{first.folder} and {other.folder} have different tokenizers, {one['name']} ({one['sha256'][:12]}) "
                f"and {two['name']} ({two['sha256'][:12]}): prepare one again with --tokenizer {first.folder}"
            )
    return sets


def short_names(paths: list[Path]) -> list[str]:
    """Return the shortest ends of the paths, of equally many parts, that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    ends = (["/".join(p[-n:]).lstrip("/") for p in parts] for n in range(1, max(map(len, parts)) + 1))
    return next(names for names in ends if len(set(names)) == len(names))


def mean(sets: list[DataSet], values: list[float]) -> float:
    """Return the mean of one value a set, weighted by share."""
    total = math.fsum(s.share * value for s, value in zip(sets, values, strict=True))
    return total / float(sum(s.share for s in sets))


def bits_per_byte(sets: list[DataSet], loss: float) -> float:
    """Return bits per byte of the mixture's validation text, from its loss in nats per predicted token."""
    return loss / mean(sets, [1 / s.manifest.bits_per_byte(1.0) for s in sets])  # the mean of bytes per token


def training_order(
    sets: list[DataSet],
    context_length: int,
    batch: int,
    multiple: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> TrainingOrder:
    """Return the order of training on the sets; the other arguments are those of :class:`TrainingOrder`."""
    counts = [s.counts(context_length) for s in sets]
    if len(sets) == 1:
        return TrainingOrder(counts[0], batch, multiple, seed, rank, world_size)
    return MixedOrder(counts, [s.share for s in sets], batch, multiple, seed, rank, world_size)


class MixedOrder(TrainingOrder):
    """The order of training on several sets; sequences are numbered through, set after set.

    Each set is one list of its own, shuffled anew whenever it is used up. After every 16,384 sequences each set has
    given its share, rounded up or down; within them its turns are spread evenly, each moved a little at random. An
    epoch is as long as all sets together.

    Args:
        sets: the number of sequences in each shard of each set.
        shares: of the sets; they add up to 1.
        batch: sequences in a batch of one device.
        multiple: an epoch is cut to a multiple of so many sequences.
        seed: of the shuffling.
        rank: of this device.
        world_size: number of devices.
    """

    def __init__(
        self,
        sets: list[list[int]],
        shares: list[Fraction],
        batch: int,
        multiple: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__([count for counts in sets for count in counts], batch, multiple, seed, rank, world_size)
        seeds = [int(np.random.RandomState([seed, n]).randint(2**31)) for n in range(len(sets))]
        self._sets = [TrainingOrder(counts, 1, 1, set_seed) for counts, set_seed in zip(sets, seeds, strict=True)]
        self._begins = [0, *accumulate(order.total for order in self._sets)]
        self._cuts = list(accumulate(shares))

    def since(self, position: int) -> Iterator[int]:
        """Yield the endless list of the whole run from a position on."""
        block, skip = divmod(position, _BLOCK)
        turns = self._turns(block)
        given = self._given(block) + np.bincount(turns[:skip], minlength=len(self._sets))
        lists = [order.since(count) for order, count in zip(self._sets, given.tolist(), strict=True)]
        while True:
            for turn in turns[skip:].tolist():
                yield self._begins[turn] + next(lists[turn])
            block, skip = block + 1, 0
            turns = self._turns(block)

    def _given(self, blocks: int) -> np.ndarray:
        """Return the (sets,) number of sequences of each set in the first `blocks` blocks; they add up to all."""
        return np.diff([math.floor(blocks * _BLOCK * upto) for upto in self._cuts], prepend=0)

    def _turns(self, block: int) -> np.ndarray:
        """Return the (_BLOCK,) set that each sequence of a block is from."""
        random = np.random.RandomState([self._seed, block])
        counts = self._given(block + 1) - self._given(block)
        times = np.concatenate([(np.arange(count) + random.random_sample(count)) / count for count in counts])
        return np.repeat(np.arange(len(counts)), counts)[np.argsort(times, kind="stable")]


def describe(sets: list[DataSet]) -> list[dict[str, Any]]:
    """Return a run's record of its data: fingerprint, content hash, share and path of each set."""
    return [{**_identity(s), "share": str(s.share), "path": str(s.folder)} for s in sets]


def _identity(data: DataSet) -> dict[str, str]:
    return {"fingerprint": data.manifest.fingerprint, "content": data.manifest.content}


def differing(recorded: list[dict[str, Any]], now: list[DataSet]) -> str | None:
    """Describe how data or their shares differ from those that `describe` recorded; None if they do not.

    Earlier versions recorded fingerprints alone, which see the names and sizes of the sources.
    """
    key = "content" if all("content" in data for data in recorded) else "fingerprint"
    before, after = (
        sorted((data[key][:12], data["share"]) for data in described) for described in (recorded, describe(now))
    )
    if before == after:
        return None
    new, old = (
        " + ".join(value if share == "1" else f"{share} x {value}" for value, share in data) for data in (after, before)
    )
    return f"{key} {new} instead of {old}"

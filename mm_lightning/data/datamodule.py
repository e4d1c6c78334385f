"""Batches of packed documents from a prepared folder, for Lightning."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader

from mm_lightning.data import mixture
from mm_lightning.data.batch import Batch, Packed
from mm_lightning.data.folder import reuse
from mm_lightning.data.generator import Generator, generate_folder
from mm_lightning.data.manifest import FILE, Manifest
from mm_lightning.data.mixture import DataSet
from mm_lightning.data.prepare import check_tokenizer, prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.sequences import EvaluationOrder, PlainLoader, Sequences, TrainingLoader
from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mm_lightning.data.workers import start_server
from mm_lightning.errors import UserError
from mm_lightning.ranges import Count, Place, Positive, Seed, Workers, checked

_WORKER_TIMEOUT = 300  # seconds


class TextDataModule(lightning.LightningDataModule):
    """The data module of a prepared folder, or of several in given proportions: batches of packed documents.

    The sequences of an optimizer step depend on `seed` and `global_batch_size` alone, not on the number of devices and
    workers.

    Args:
        path: the prepared folder (`mm data prepare`), or several with weights, as in {data/web: 0.7, data/code: 0.3}:
            the share of the training sequences that each gives (weights need not add up to 1). Each is read to its
            end before any of it comes again, shuffled anew; all must have the same tokenizer. Validation is of each
            that has a validation split, apart and as the mean by weight.
        context_length: tokens in a sequence.
        global_batch_size: sequences in an optimizer step, over all devices.
        micro_batch_size: sequences in a forward pass of one device.
        num_workers: processes that load data for each device; 0 loads in the training process.
        seed: of the order of training sequences.
        validation_sequences: evaluate only so many sequences of a folder, evenly spaced over its validation split.
        prepare: what to prepare in `path`, which is one folder then, if nothing is there yet.
        generate: a generator, by class_path and init_args, that makes texts in `path` if nothing is there yet, in rows
            for `context_length`; instead of `prepare`. mm_lightning.data has regbench.RegBenchConfig, facts.FactsConfig
            and mqar.MQARConfig.

    Attributes:
        sets: the prepared folders with their shares and manifests, after `setup`.
        tokenizer: of all of them, after `setup`.
    """

    sets: list[DataSet]
    tokenizer: Tokenizer

    @checked("data.")
    def __init__(
        self,
        path: Place | dict[Place, Positive],
        context_length: Count = 1024,
        global_batch_size: Count = 8,
        micro_batch_size: Count = 8,
        num_workers: Workers = 2,
        seed: Seed = 0,
        validation_sequences: Count | None = None,
        prepare: PrepareConfig | None = None,
        generate: Generator | None = None,
    ) -> None:
        super().__init__()
        if global_batch_size % micro_batch_size:
            raise UserError(
                f"data: global_batch_size {global_batch_size} is not a multiple of micro_batch_size {micro_batch_size}"
            )
        named = [name for name, maker in (("prepare", prepare), ("generate", generate)) if maker is not None]
        if len(named) > 1:
            raise UserError("data: prepare and generate both say what to prepare: set one of them to null")
        self.weights = mixture.folders(path)
        if named and len(self.weights) > 1:
            raise UserError(f"data: {named[0]} prepares one folder, and path names {len(self.weights)}: set it to null")
        self.context_length = context_length
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.validation_sequences = validation_sequences
        self.prepare, self.generate = prepare, generate
        self._prepared = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which belongs to no trainer."""
        return {**vars(self), "trainer": None}

    @property
    def path(self) -> Path:
        """The prepared folder, or the first of several."""
        return next(iter(self.weights))

    @property
    def manifest(self) -> Manifest:
        """The manifest of the prepared folder, or of one of several, after `setup`."""
        return self.sets[0].manifest

    @property
    def validated(self) -> list[DataSet]:
        """The sets that have a validation split."""
        return [s for s in self.sets if "validation" in s.manifest.splits]

    def prepare_data(self) -> None:
        """Prepare the folder on first use; processes of one or many nodes wait for each other.

        Lightning calls this in one process of each node, `mm fit` before that in every process.
        """
        if self._prepared:
            return
        self._prepared = True
        if self.generate is not None:
            generate_folder(self.generate, self.path, self.context_length)
        if self.prepare is None:
            return
        if (self.path / FILE).exists():
            check_tokenizer(self.prepare, reuse(self.path, self.prepare.reuse_settings()), self.path)
        else:
            prepare(self.prepare, self.path)

    def setup(self, stage: str | None = None) -> None:
        """Read the manifests and check that training can start from the folders.

        Raises:
            UserError: a folder is missing, damaged, too small for the context or the batch, or has another tokenizer.
        """
        self.sets = mixture.read(self.weights, self.context_length)
        self.tokenizer = load_tokenizer(self.path)
        if stage in ("fit", None):
            self._check_batches()

    def _check_batches(self) -> None:
        _, world_size = self._place()
        together = self.micro_batch_size * world_size
        if self.global_batch_size % together:
            raise UserError(
                f"data: global_batch_size {self.global_batch_size} is not a multiple of {together}, micro_batch_size "
                f"{self.micro_batch_size} on {world_size} devices"
            )
        if self.trainer is not None:
            self._accumulate(self.global_batch_size // together)
        count = sum(sum(s.counts(self.context_length)) for s in self.sets)
        if count < self.global_batch_size:
            raise UserError(
                f"{' + '.join(map(str, self.weights))} has {count} training sequences of {self.context_length} tokens, "
                f"fewer than global_batch_size {self.global_batch_size}: prepare more text, or a smaller batch or "
                f"context"
            )

    def _accumulate(self, times: int) -> None:
        """Set the trainer's gradient accumulation, so that an optimizer step takes the global batch.

        Raises:
            UserError: the trainer was built with another.
        """
        assert self.trainer is not None
        given = self.trainer.accumulate_grad_batches
        if given not in (1, times):
            raise UserError(
                f"Trainer(accumulate_grad_batches={given}) is not data.global_batch_size {self.global_batch_size} of "
                f"micro_batch_size {self.micro_batch_size} on {self._place()[1]} devices ({times}): leave it out"
            )
        trainer, module = self.trainer, getattr(self.trainer, "lightning_module", None)
        if times > 1 and module is not None and not module.automatic_optimization:
            raise UserError(
                f"data.global_batch_size {self.global_batch_size} is {times} micro batches a device, which Lightning "
                f"adds up with automatic optimization only: make micro_batch_size {self.micro_batch_size * times}, or "
                f"global_batch_size {self.global_batch_size // times} and add them up in training_step"
            )
        if any(isinstance(c, GradientAccumulationScheduler) for c in getattr(trainer, "callbacks", [])):
            raise UserError(
                "GradientAccumulationScheduler is not for TextDataModule: accumulation follows from "
                "data.global_batch_size and data.micro_batch_size, and each step has as many tokens"
            )
        self.trainer.accumulate_grad_batches = times

    def _whole_steps(self, loader: DataLoader) -> DataLoader:
        """Return the loader, after a check that an epoch of the trainer is a whole number of optimizer steps.

        Raises:
            UserError: the trainer would end each epoch with a step of fewer sequences.
        """
        trainer: Any = self.trainer
        if trainer is None or trainer.fast_dev_run:
            return loader
        limit, size = trainer.limit_train_batches, trainer.accumulate_grad_batches
        batches = min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)
        if batches % size:
            name = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
            raise UserError(
                f"trainer.{name} leaves {batches} batches an epoch for each process, and a step takes {size} of them "
                f"(data.global_batch_size): choose a multiple of {size}"
            )
        return loader

    def train_dataloader(self) -> DataLoader:
        """Return the loader of batches of `micro_batch_size` sequences, shuffled anew in each epoch.

        An epoch is a whole number of optimizer steps. With `overfit_batches` the order is fixed, and one folder alone
        is read.
        """
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self._whole_steps(self._loader(self.sets[0], "train", None))
        place = self._place()
        batches = (self.micro_batch_size, self.global_batch_size)
        order = mixture.training_order(self.sets, self.context_length, *batches, self.seed, *place)
        loader = TrainingLoader(self._sequences(self.sets, "train", place), sampler=order, **self._options())
        return self._whole_steps(loader)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the loader of the validation split in order, or one for each set that has one."""
        return self._evaluation(self.validation_sequences) if self.validated else []

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the loaders of whole validation splits, whatever `validation_sequences` says."""
        return self._evaluation(None)

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the loaders of `val_dataloader`."""
        return self._evaluation(self.validation_sequences)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy a batch to the device, asynchronously where its memory allows."""
        return batch.to(device, non_blocking=True)

    def _evaluation(self, limit: int | None) -> DataLoader | list[DataLoader]:
        loaders = [self._loader(s, "validation", limit) for s in self.validated or self.sets]
        return loaders if len(loaders) > 1 else loaders[0]

    def _loader(self, data: DataSet, split: str, limit: int | None) -> DataLoader:
        rank, world_size = self._place()
        count = data.split(split).sequences(self.context_length + 1)
        if count < world_size:
            raise UserError(f"{data.folder} has {count} {split} sequences for {world_size} devices: prepare more text")
        order = EvaluationOrder(count, limit and max(limit, world_size), rank, world_size)
        return PlainLoader(self._sequences([data], split, (rank, world_size)), sampler=order, **self._options())

    def _sequences(self, sets: list[DataSet], split: str, place: tuple[int, int]) -> Sequences:
        shards = [(s.folder / split / shard.file, shard) for s in sets for shard in s.split(split).shards]
        return Sequences(shards, self.context_length + 1, sets[0].manifest.dtype, place)

    def _options(self) -> dict[str, Any]:
        collate = partial(
            Packed if self.num_workers else Batch.from_sequences, bos=self.tokenizer.bos, eos=self.tokenizer.eos
        )
        options: dict[str, Any] = {
            "batch_size": self.micro_batch_size,
            "collate_fn": collate,
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            # its own generator, so that loading draws nothing from that of training
            "generator": torch.Generator().manual_seed(self.seed),
        }
        if self.num_workers:
            start_server()
            options["timeout"] = _WORKER_TIMEOUT
        return options

    def _place(self) -> tuple[int, int]:
        """Return this device's rank and the number of devices."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

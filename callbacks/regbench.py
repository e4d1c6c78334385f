"""Measure in-context learning of the languages of RegBench."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from mm_lightning.callbacks.validation_metrics import ValidationMetrics
from mm_lightning.data import Batch, Manifest
from mm_lightning.data.regbench import ALLOWED, BASELINES
from mm_lightning.data.regbench_metrics import measures
from mm_lightning.data.shards import read_shard
from mm_lightning.errors import UserError
from mm_lightning.training.lightning_internals import datamodule_of, find_datamodule
from mm_lightning.training.module import LanguageModule


class RegBench(ValidationMetrics):
    """Log the two metrics of RegBench at each validation and in `mm test`, over all positions that a letter follows:

    - `validation/accuracy`: share of most probable next letters that the automaton allows,
    - `validation/total_variation`: distance between the distributions of the next letter and the automaton's.

    The scores of simple predictors are copied from the data to baselines.json in the run folder. Needs data from
    `data.generate` or `mm data regbench`.
    """

    def __init__(self) -> None:
        super().__init__(measures())

    def setup(self, trainer: Trainer, pl_module: LanguageModule, stage: str) -> None:
        """Read the letters that the automata allow."""
        data = find_datamodule(trainer)
        if data is None or len(data.sets) > 1 or ALLOWED not in data.manifest.files:
            path = "this" if data is None else " and ".join(map(str, data.weights))
            raise UserError(
                f"callback RegBench: {path} is not RegBench data: generate some as configs/regbench.yaml does, or "
                "leave the callback out"
            )
        self._allowed = read_truth(data.path, data.manifest)

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Copy the baselines to the run folder of `mm fit`."""
        if trainer.is_global_zero and getattr(pl_module, "run_folder", None) is not None:
            shutil.copyfile(datamodule_of(trainer).path / BASELINES, pl_module.run_folder.path / BASELINES)

    def add(self, module: LanguageModule, batch: Batch) -> None:
        """Add a batch, whichever sequences are in it."""
        rows = [row.tobytes() for row in batch.tokens.cpu().numpy().astype(np.uint16)]
        allowed = torch.stack([self._allowed[row] for row in rows]).to(module.device).long()
        self.metrics.update(module.network(batch.tokens, batch.documents), allowed)


def read_truth(folder: Path, manifest: Manifest) -> dict[bytes, Tensor]:
    """Return the (T,) int32 masks of the letters that may follow each position of each validation sequence.

    Sequences are named by the bytes of their tokens as uint16, without the last one.
    """
    split, length = manifest.splits["validation"], (manifest.context_length or 0) + 1
    shards = [read_shard(folder / "validation" / s.file, manifest.dtype, s.tokens) for s in split.shards]
    rows = np.concatenate(shards).reshape(-1, length)[:, :-1]
    masks = torch.from_numpy(np.load(folder / ALLOWED).astype(np.int32))
    return {row.tobytes(): mask for row, mask in zip(rows, masks, strict=True)}

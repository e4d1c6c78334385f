"""How well the languages of RegBench are learned in context."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mm_lightning.data import Batch, Manifest
from mm_lightning.data.regbench import ALLOWED, BASELINES
from mm_lightning.data.regbench_metrics import measures
from mm_lightning.data.shards import read_shard
from mm_lightning.errors import UserError


class RegBench(Callback):
    """Logs RegBench's two measures at each validation (`mm test` too), over all positions where a letter follows:

    - `validation/accuracy`: share of most probable next letters that the automaton allows,
    - `validation/total_variation`: distance of the next letter's distribution from the automaton's.

    What simple predictors reach is copied from the data to baselines.json in the run folder. Needs data from
    `data.regbench` or `mm data regbench`.
    """

    validation_metrics = ("validation/accuracy", "validation/total_variation")

    def __init__(self) -> None:
        self.measures = measures()
        self._allowed: dict[bytes, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads what the automata allow."""
        data = trainer.datamodule
        if data is None or len(data.sets) > 1 or ALLOWED not in data.manifest.files:
            path = "this" if data is None else " and ".join(map(str, data.weights))
            raise UserError(f"callback RegBench: {path} is not RegBench data: set data.regbench, or leave it out")
        self._allowed = read_truth(data.path, data.manifest)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the baselines on the first process."""
        if trainer.is_global_zero and pl_module.run_folder is not None:
            shutil.copyfile(trainer.datamodule.path / BASELINES, pl_module.run_folder.path / BASELINES)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins anew."""
        self.measures.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch, whichever of the rows are in it."""
        rows = [row.tobytes() for row in batch.tokens.cpu().numpy().astype(np.uint16)]
        allowed = torch.stack([self._allowed[row] for row in rows]).to(pl_module.device).long()
        with trainer.precision_plugin.forward_context():
            logits = pl_module.network(batch.tokens, batch.documents)
        self.measures.update(logits, allowed)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the means over all devices."""
        split = "test" if trainer.testing else "validation"
        values = {f"{split}/{name}": value.float() for name, value in self.measures.compute().items()}
        pl_module.log_dict(values, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def read_truth(folder: Path, manifest: Manifest) -> dict[bytes, Tensor]:
    """For each row of the validation split, by the bytes of its tokens as uint16 without the last one: (T,) int32 masks
    of the letters that may come next."""
    split, length = manifest.splits["validation"], (manifest.context_length or 0) + 1
    shards = [read_shard(folder / "validation" / s.file, manifest.dtype, s.tokens) for s in split.shards]
    rows = np.concatenate(shards).reshape(-1, length)[:, :-1]
    masks = torch.from_numpy(np.load(folder / ALLOWED).astype(np.int32))
    return {row.tobytes(): mask for row, mask in zip(rows, masks, strict=True)}

"""How fast training goes: tokens seen, tokens per second, model FLOPs utilisation."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mm_lightning.networks.cost import training_flops_per_token
from mm_lightning.training.peak_flops import peak_flops


class Throughput(Callback):
    """Logs at every log step, over all devices:

    - `train/tokens`: tokens of all steps since the first of the run, whatever batch or context each had, those
      whose update `BadStepGuard` left out included,
    - `train/tokens_per_second`: since the last log step, validation and checkpoints left out,
    - `train/mfu`: the share of the devices' peak that useful FLOPs reach, where the peak is known (not on CPUs).
    """

    def __init__(self) -> None:
        self.tokens_per_second = 0.0
        self._mark = 0.0  # up to where time is counted
        self._seconds = 0.0  # counted since the last log step
        self._logged_step = self._logged_tokens = 0
        self.interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out what a token costs and what the devices can do."""
        data = trainer.datamodule
        self._token_flops = training_flops_per_token(pl_module.config, data.context_length)
        reduced = trainer.precision.startswith(("bf16", "16"))
        peak = peak_flops(pl_module.device, torch.bfloat16 if reduced else torch.float32)
        self._peak = peak * trainer.world_size if peak else None
        self._mark, self._seconds = time.perf_counter(), 0.0
        self._logged_step, self._logged_tokens = trainer.global_step, pl_module.trained_tokens

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forgets the time of a validation or of a checkpoint's writing, but not that of waiting for data."""
        if self.interrupted:
            self._mark, self.interrupted = time.perf_counter(), False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts time; logs at log steps."""
        now = time.perf_counter()
        self._seconds, self._mark = self._seconds + now - self._mark, now
        step = trainer.global_step
        if step < self._logged_step:  # gone back to a checkpoint
            self._logged_step, self._logged_tokens, self._seconds = step, pl_module.trained_tokens, 0.0
        if step == self._logged_step or step % trainer.log_every_n_steps:
            return
        tokens = pl_module.trained_tokens
        self.tokens_per_second = (tokens - self._logged_tokens) / max(self._seconds, 1e-9)
        self._logged_step, self._logged_tokens, self._seconds = step, tokens, 0.0
        values = {
            "train/tokens": float(tokens),
            "train/tokens_per_second": self.tokens_per_second,
        }
        if self._peak:
            values["train/mfu"] = self.tokens_per_second * self._token_flops / self._peak
        pl_module.log_train(values)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Its time does not count."""
        self.interrupted = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Its time does not count."""
        self.interrupted = True

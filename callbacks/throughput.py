"""Log tokens, tokens per second and model FLOPs utilization."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from mm_lightning.networks.cost import training_flops_per_token
from mm_lightning.training.lightning_internals import datamodule_of, log_interval
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.peak_flops import peak_flops


class Throughput(Callback):
    """Log at every log step, over all devices:

    - `train/tokens`: tokens of all steps since the first one of the run, whatever batch or context each had, with those
      whose update `BadStepGuard` skipped; `train/tokens_per_parameter` and `train/flops` (model FLOPs, forward and
      backward) follow from them,
    - `train/tokens_per_second`: since the last log step, without the time of validations and checkpoints,
    - `train/mfu`: model FLOPs as a share of the peak of the devices, where the peak is known (not on CPUs).
    """

    tokens_per_second = 0.0
    _interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Compute the FLOPs of a token and the peak of the devices."""
        data = datamodule_of(trainer)
        self._token_flops = training_flops_per_token(pl_module.config, data.context_length)
        reduced = trainer.precision.startswith(("bf16", "16"))
        peak = peak_flops(pl_module.device, torch.bfloat16 if reduced else torch.float32)
        self._peak = peak * trainer.world_size if peak else None
        self._counted_until, self._seconds = time.perf_counter(), 0.0  # since the last log step
        self._logged_step, self._logged_tokens = trainer.global_step, pl_module.trained_tokens

    def on_train_batch_start(self, trainer: Trainer, pl_module: LanguageModule, batch: Any, batch_idx: int) -> None:
        """Skip the time of a validation or a checkpoint, but not that of waiting for data."""
        if self._interrupted:
            self._counted_until, self._interrupted = time.perf_counter(), False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        """Count the time; log at log steps."""
        now = time.perf_counter()
        self._seconds, self._counted_until = self._seconds + now - self._counted_until, now
        step = trainer.global_step
        if step < self._logged_step:  # rolled back to a checkpoint
            self._logged_step, self._logged_tokens, self._seconds = step, pl_module.trained_tokens, 0.0
        if step == self._logged_step or step % log_interval(trainer):
            return
        tokens = pl_module.trained_tokens
        self.tokens_per_second = (tokens - self._logged_tokens) / max(self._seconds, 1e-9)
        self._logged_step, self._logged_tokens, self._seconds = step, tokens, 0.0
        values = {
            "train/tokens": float(tokens),
            "train/tokens_per_parameter": tokens / pl_module.parameter_count,
            "train/flops": float(tokens * self._token_flops),
            "train/tokens_per_second": self.tokens_per_second,
        }
        if self._peak:
            values["train/mfu"] = self.tokens_per_second * self._token_flops / self._peak
        pl_module.log_train(values)

    def skip_time(self, *_: Any) -> None:
        """Leave out the time between the last batch and the next one, as of a validation or a checkpoint."""
        self._interrupted = True

    on_validation_end = on_save_checkpoint = skip_time  # type: ignore[assignment]

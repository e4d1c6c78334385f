"""Progress bar in a terminal; none elsewhere, where the lines of each log step are printed alone."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar

from mm_lightning import console
from mm_lightning.training.module import LanguageModule


class Progress(ProgressBar):
    """Show finished and remaining optimization steps, or batches in an evaluation."""

    _bar: Any = None
    _enabled = True

    def disable(self) -> None:
        """Turn the bar off, as Lightning does on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Turn the bar on."""
        self._enabled = True

    def _start(self, title: str, total: float, done: int = 0) -> None:
        # on a pipe a training prints its log lines alone
        if self._enabled and (sys.stderr.isatty() or title != "training"):
            self._bar = console.Progress(title, None if total == float("inf") else total, done)

    def _stop(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _set(self, done: float) -> None:
        if self._bar is not None:
            self._bar.update(done)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self._start("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModule, *_: Any) -> None:
        self._set(trainer.global_step)

    on_train_end = on_exception = _stop  # type: ignore[assignment]

    def on_validation_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Start a bar in `mm validate`; in training, that of the training stays."""
        if trainer.state.fn != "fit":
            self._start("validating", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LanguageModule, _: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn != "fit":
            self._set(sum(trainer.num_val_batches[:dataloader_idx]) + batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        if trainer.state.fn != "fit":
            self._stop()

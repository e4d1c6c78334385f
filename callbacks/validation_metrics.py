"""Base class of callbacks that measure the network at each validation and in `mm test`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer
from torchmetrics import MetricCollection

from mm_lightning.data import Batch
from mm_lightning.training.module import LanguageModule


class ValidationMetrics(Callback):
    """Log metrics over all devices as `validation/NAME`, in `mm test` as `test/NAME`.

    Args:
        metrics: what :meth:`add` updates with each batch.
    """

    def __init__(self, metrics: MetricCollection) -> None:
        self.metrics = metrics
        self.validation_metrics = [f"validation/{name}" for name in metrics]

    @abstractmethod
    def add(self, module: LanguageModule, batch: Batch) -> None:
        """Add a batch; called in the precision of the run."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        self.metrics.to(pl_module.device).reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LanguageModule, _: Any, batch: Batch, *at: int
    ) -> None:
        with trainer.precision_plugin.forward_context():
            self.add(pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        split = "test" if trainer.testing else "validation"
        values = {f"{split}/{name}": value.float() for name, value in self.metrics.compute().items()}
        pl_module.log_dict(values, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start  # type: ignore[assignment]
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]
    on_test_epoch_end = on_validation_epoch_end  # type: ignore[assignment]

"""Metrics that a callback may wait for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mm_lightning.errors import UserError
from mm_lightning.options import nearest

KNOWN = ("mm_lightning.", "lightning.")
"""Packages whose callbacks and modules log only what they say beforehand."""


def metric_names(trainer: Trainer, module: LightningModule) -> list[str] | None:
    """Return the metrics that validation is going to log; None where a user's class may log others."""
    if any(not type(part).__module__.startswith(KNOWN) for part in (module, *trainer.callbacks)):
        return None
    if not trainer.enable_validation:
        return []
    further = [name for callback in trainer.callbacks for name in getattr(callback, "validation_metrics", ())]
    return [*module.validation_metrics, *further]


def check_metric(callback: Callback, key: str, metric: Any, names: Collection[str]) -> None:
    """Check that a metric exists.

    Raises:
        UserError: naming the callback, its argument and the metrics that there are.
    """
    if metric in names:
        return
    there = ", ".join(sorted(map(str, names))) or "none, because nothing is validated"
    near = nearest(str(metric).replace("val_", "validation/"), names)
    hint = f": did you mean {near}?" if near else ""
    raise UserError(f"{type(callback).__name__}: {key} is {metric!r}, metrics are {there}{hint}")

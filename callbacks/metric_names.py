"""Check the metrics that callbacks monitor."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lightning.pytorch import Callback, Trainer

from mm_lightning.errors import UserError
from mm_lightning.options import nearest
from mm_lightning.training.lightning_internals import callbacks_of
from mm_lightning.training.module import LanguageModule

DECLARING = ("mm_lightning.", "lightning.")
"""Packages whose callbacks and modules log only metrics that they declare in `validation_metrics`."""


def metric_names(trainer: Trainer, module: LanguageModule) -> list[str] | None:
    """Return the metrics that validation will log; None if a class of the user may log others."""
    parts = [module, *callbacks_of(trainer, Callback)]
    if any(not type(part).__module__.startswith(DECLARING) for part in parts):
        return None
    if not trainer.enable_validation:
        return []
    return [name for part in parts for name in getattr(part, "validation_metrics", ())]


def check_metric(callback: Callback, key: str, metric: Any, names: Collection[str]) -> None:
    """Check that a metric exists.

    Raises:
        UserError: naming the callback, its argument and the metrics that there are.
    """
    if metric in names:
        return
    logged = ", ".join(sorted(map(str, names))) or "none, because nothing is validated"
    near = nearest(str(metric).replace("val_", "validation/"), names)
    hint = f": did you mean {near}?" if near else ""
    raise UserError(f"{type(callback).__name__}: {key} is {metric!r}, metrics are {logged}{hint}")

"""The Trainer options that `mm fit` refuses, in addition to those that Lightning refuses."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import lightning
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mm_lightning.errors import UserError
from mm_lightning.ranges import Count, Name, Natural, NonNegative, Place, Positive, Range, Share
from mm_lightning.training import lightning_internals as internals
from mm_lightning.training.accumulation import agreed

Batches = Annotated[int, Range(0)] | Share
"""A number of batches, or a share of them."""

TRAINER_TYPES: dict[str, Any] = {
    "max_steps": Annotated[int, Range(-1)],
    "max_epochs": Annotated[int, Range(-1)] | None,
    "min_steps": Natural | None,
    "min_epochs": Natural | None,
    "log_every_n_steps": Count | None,
    "check_val_every_n_epoch": Count | None,
    "val_check_interval": Count | Positive | str | dict | timedelta | None,
    "num_sanity_val_steps": Annotated[int, Range(-1)] | None,
    "limit_train_batches": Batches | None,
    "limit_val_batches": Batches | None,
    "limit_test_batches": Batches | None,
    "limit_predict_batches": Batches | None,
    "overfit_batches": Batches | None,
    "gradient_clip_val": NonNegative | None,  # below 0 it would reverse gradients
    "devices": list[Natural] | Annotated[int, Range(-1, 100_000)] | Name,
    "num_nodes": Annotated[int, Range(1, 100_000)],
    "default_root_dir": Place | None,
}
"""The types, with their ranges, of the Trainer options that are numbers or paths."""

REFUSED_OPTIONS: dict[str, tuple[Any, str]] = {
    "accumulate_grad_batches": (1, "cannot be set: it follows from data.global_batch_size and data.micro_batch_size"),
    "barebones": (False, "leaves out the loggers and checkpoints that a run is read by: mm benchmark step times steps"),
    "reload_dataloaders_every_n_epochs": (0, "would begin each epoch with the order of the first: leave it out"),
    "use_distributed_sampler": (False, "would divide the data a second time: the loaders divide them among devices"),
}
"""Options that must keep their defaults: these, and the reason."""


def option_mistakes(trainer: Namespace) -> Iterator[tuple[str, UserError]]:
    """Yield the invalid options of the Trainer with their errors."""
    for name, (default, reason) in REFUSED_OPTIONS.items():
        if trainer.get(name, default) != default:
            yield f"trainer.{name}", UserError(f"trainer.{name} {str(trainer[name]).lower()} {reason}")
    for name in ("val_check_interval", "max_time"):
        value = trainer.get(name)
        if isinstance(value, (str, Mapping, timedelta)):
            try:
                check_duration(f"trainer.{name}", value)
            except UserError as error:
                yield f"trainer.{name}", error
    for least_name, most_name in (("min_steps", "max_steps"), ("min_epochs", "max_epochs")):
        least, most = trainer.get(least_name), trainer.get(most_name)
        if least and most and 0 < most < least:
            wrong = f"trainer.{least_name} {least} is above trainer.{most_name} {most}"
            yield f"trainer.{least_name}", UserError(wrong)


def check_duration(name: str, value: str | Mapping[str, Any] | timedelta) -> None:
    """Check that a duration is valid for Lightning and above 0.

    Raises:
        UserError: it is not.
    """
    try:
        seconds = Timer(dict(value) if isinstance(value, Mapping) else value).time_remaining() or 0.0
    except (MisconfigurationException, TypeError, OverflowError):  # an unknown unit, or not a number
        seconds = 0.0
    if not seconds > 0:
        steps = "" if name.endswith("max_time") else "a number of steps, or "
        raise UserError(
            f"{name} takes {steps}a time above 0 as days:hours:minutes:seconds, such as 00:00:30:00, or as "
            f"{{minutes: 30}}, got {value}"
        )


class WholeSteps(Callback):
    """Let validation begin after whole optimization steps only, by the clock on all processes at once.

    Lightning looks at each process's own clock, in the middle of a step too, and cuts an epoch's last step short.
    """

    _seconds: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the clock of validation over from Lightning."""
        size = trainer.accumulate_grad_batches
        if isinstance(trainer.val_check_batch, int):  # a fraction of an epoch
            trainer.val_check_batch = max(size, trainer.val_check_batch // size * size)
        if self._seconds is None:
            self._seconds = internals.validation_interval(trainer)
        if self._seconds is not None:
            internals.set_validation_interval(trainer, math.inf)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Ask for a validation when it is time; with several processes, every trainer.log_every_n_steps steps."""
        if self._seconds is None:
            return
        whole = not internals.accumulating(trainer)
        due = whole and agreed(trainer, internals.since_validation(trainer) >= self._seconds)
        internals.set_validation_interval(trainer, 0.0 if due else math.inf)


def refused_by_lightning(error: BaseException) -> bool:
    """Return whether Lightning itself raised an error, by a line that begins with `raise`, to refuse an option."""
    kinds = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, kinds) or not frames:
        return False
    within = Path(frames[-1].filename).is_relative_to(Path(lightning.__file__).parent)
    return within and (frames[-1].line or "").startswith("raise ")

"""Lightning's own callbacks in `mm fit`: which are refused, and why; docs/callbacks.md has the table.

The metrics that callbacks monitor are checked here, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch import callbacks as lightning
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

from mm_lightning.callbacks.checkpoints import Checkpoints
from mm_lightning.checkpoint.plain_values import to_plain_values
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.options import nearest
from mm_lightning.training.lightning_internals import callbacks_of, checks_at_epoch_end
from mm_lightning.training.module import LanguageModule

REFUSED: dict[type[Callback], str] = {
    lightning.BackboneFinetuning: "the network has no part named backbone: --model.initial_weights trains all of it on",
    lightning.BatchSizeFinder: "set data.micro_batch_size: mm cost and mm fit --plan say what fits",
    lightning.GradientAccumulationScheduler: (
        "accumulation follows from data.global_batch_size and data.micro_batch_size, and each step has as many tokens"
    ),
    lightning.LearningRateFinder: (
        "the run would not have the rate that config.yaml names: compare values of model.learning_rate by mm sweep"
    ),
    lightning.ModelCheckpoint: (
        "--resume looks for checkpoints where Checkpoints saves them: name that (every_n_steps, every_n_minutes, keep, "
        "best)"
    ),
    lightning.ModelPruning: "it looks for weights before the network is built, and would prune nothing: leave it out",
    lightning.OnExceptionCheckpoint: (
        "it saves in the middle of a step, where no run can go on: Checkpoints saves every_n_steps or every_n_minutes, "
        "and a signal saves first"
    ),
    lightning.SpikeDetection: "BadStepGuard, which every run has, skips the updates of spikes (sigma, on_bad_step)",
    lightning.ThroughputMonitor: "it counts batches of validation as steps: every run logs train/tokens_per_second",
    lightning.StochasticWeightAveraging: (
        "it averages by epochs and replaces the learning-rate schedule: name EMAWeightAveraging or WeightAveraging, "
        "which average by steps"
    ),
}
"""Callbacks (and those derived from them) that do not work in `mm fit`, with what to use instead."""

BASE_CLASSES = (lightning.BaseFinetuning,)
"""Base classes, which silently do nothing by themselves."""

DECLARING = ("mm_lightning.", "lightning.")
"""Packages whose callbacks and modules log only metrics that they declare in `validation_metrics`."""


def check_callbacks(callbacks: Sequence[Callback], max_time: Any = None) -> None:
    """Refuse callbacks of a config that would do harm, or nothing.

    Args:
        callbacks: those that a config names.
        max_time: trainer.max_time.

    Raises:
        UserError: naming the callback and what to use instead.
    """
    for callback in callbacks:
        name = type(callback).__name__
        for kind, reason in REFUSED.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks: {name} is not for mm fit: {reason}")
        if type(callback) in BASE_CLASSES:
            raise UserError(f"trainer.callbacks: {name} does nothing by itself: name a class derived from it")
        if isinstance(callback, lightning.Timer) and max_time is not None:
            raise UserError("trainer.max_time and the callback Timer both say when to stop: give one of them")


def check_averaging(trainer: Trainer) -> None:
    """Refuse averaging of weights where no process has them whole.

    Raises:
        UserError: with the strategy.
    """
    averaging = callbacks_of(trainer, lightning.WeightAveraging)
    if averaging and isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy)):
        strategy = type(trainer.strategy).__name__.removesuffix("Strategy")
        raise UserError(
            f"trainer.callbacks: {type(averaging[0]).__name__} needs whole weights on every device, which {strategy} "
            f"divides: set trainer.strategy to ddp, or leave it out"
        )


def check_callback_state(callback: Callback) -> None:
    """Check that a checkpoint with the state of a callback could be loaded: nothing that could run code is read.

    Raises:
        UserError: it could not: the state holds a value that cannot be converted.
    """
    to_plain_values({"callbacks": {callback.state_key: callback.state_dict()}})


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


class CheckCallbacks(Callback):
    """Check the metrics that other callbacks monitor, and log why training ends early."""

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Check monitored metrics against those that validation logs, unless a class of the user may log others."""
        early_stops = callbacks_of(trainer, lightning.EarlyStopping)
        monitored: list[tuple[Callback, str, Any]] = [(c, "monitor", c.monitor) for c in early_stops if c.strict]
        monitored += [(c, "best", c.best) for c in callbacks_of(trainer, Checkpoints) if c.best is not None]
        names = metric_names(trainer, pl_module)
        for callback, key, metric in monitored:
            if names is not None and not str(metric).startswith("train/"):
                check_metric(callback, key, metric, names)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Check that the state of each callback can be loaded from a checkpoint.

        Raises:
            UserError: with the callback.
        """
        for callback in callbacks_of(trainer, Callback):
            if not type(callback).__module__.startswith(DECLARING):
                check_callback_state(callback)
        self._begin = trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LanguageModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of averaged weights without the callback that averages: its moments belong to others."""
        if "current_model_state" in checkpoint and not callbacks_of(trainer, lightning.WeightAveraging):
            raise UserError(
                "the checkpoint holds averaged weights beside those in training: name its EMAWeightAveraging or "
                "WeightAveraging in trainer.callbacks, or start a new run from the averages: --model.initial_weights"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Check metrics that are monitored after validation against those that were logged."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_logged(trainer, at_epoch_end=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Check metrics that are monitored at the end of an epoch."""
        self._check_logged(trainer, at_epoch_end=True)

    @staticmethod
    def _check_logged(trainer: Trainer, at_epoch_end: bool) -> None:
        for callback in callbacks_of(trainer, lightning.EarlyStopping):
            if callback.strict and checks_at_epoch_end(callback) == at_epoch_end:
                check_metric(callback, "monitor", callback.monitor, list(trainer.callback_metrics))

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModule) -> None:
        """Log why training has ended before its last step."""
        step = trainer.global_step
        if step == self._begin or 0 < trainer.max_steps <= step:
            return
        for callback in callbacks_of(trainer, lightning.EarlyStopping):
            if callback.stopping_reason_message:
                reason = callback.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
                say(f"EarlyStopping ended training after step {step}: {reason}")
        for timer in callbacks_of(trainer, lightning.Timer):
            if (left := timer.time_remaining()) is not None and left <= 0:
                say(f"training ended after step {step}: its time is over (trainer.max_time or Timer)")

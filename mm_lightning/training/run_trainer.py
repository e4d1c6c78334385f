"""The Trainer of a command: callbacks, loggers and checkpoint writer of its config, and those that are always there."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger

import mm_lightning.callbacks as ours
from mm_lightning.callbacks.lightning_callbacks import CheckCallbacks, check_averaging, check_callbacks
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.checkpoint.trainer_io import AtomicCheckpointIO
from mm_lightning.training.check_config import check_devices
from mm_lightning.training.lightning_internals import validation_interval
from mm_lightning.training.loggers import MetricsFile, ProgressLines, TensorBoard
from mm_lightning.training.record_run import RecordRun
from mm_lightning.training.tracked_runs import prepare_loggers
from mm_lightning.training.trainer_options import WholeSteps


def build_trainer(
    config: dict[str, Any],
    callbacks: list[Callback],
    folder: RunFolder,
    record: RecordRun | None,
    slurm_job: str | None,
) -> Trainer:
    """Build the Trainer of a command.

    Args:
        config: the arguments of the Trainer, changed in place.
        callbacks: further callbacks, which come last.
        folder: the run folder.
        record: writes the run folder of a training; None for other commands.
        slurm_job: the Slurm job that a pre-empted run queues again; None for none.

    Raises:
        UserError: a callback, a device or a strategy of the config cannot be used.
    """
    callbacks = [*run_callbacks(config, record, slurm_job), *callbacks]
    savers = [callback for callback in callbacks if isinstance(callback, ours.Checkpoints)]
    folder.on_failure = savers[0].on_failure if savers else "stop"
    config["logger"] = run_loggers(config, folder if record else None)
    plugins = config.get("plugins") or []
    config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
    config["default_root_dir"] = config.get("default_root_dir") or str(folder.root)
    if record is None:
        config["enable_checkpointing"] = False
    dropped: tuple[type[Callback], ...] = (Checkpoint,) if config.get("enable_checkpointing") is False else ()
    dropped = (Checkpoint, ours.Summary) if config.get("fast_dev_run") else dropped
    config["callbacks"] = [callback for callback in callbacks if not isinstance(callback, dropped)]
    check_devices(config.get("accelerator", "auto"), config.get("devices"))
    trainer = Trainer(**config)
    if validation_interval(trainer) is not None:
        trainer.val_check_interval = None  # type: ignore[assignment]  # which Lightning leaves out, and looks at
    check_averaging(trainer)
    return trainer


def run_loggers(config: dict[str, Any], folder: RunFolder | None) -> list[Logger]:
    """Return the loggers of a config, in training (with a folder) after those that other commands read a run by."""
    named = config.get("logger")
    further = [] if named in (None, True, False) else [named] if isinstance(named, Logger) else list(named)
    if folder is None:
        return further
    prepare_loggers(further, folder)
    return [TensorBoard(folder), MetricsFile(folder), ProgressLines(config["max_steps"]), *further]


ONCE = (ours.Checkpoints, ours.Preemption, ours.Throughput, ours.GradientNorm, ours.Watchdog, ours.BadStepGuard)
"""Callbacks of which a run has one."""


def last_of_each(named: list[Callback]) -> list[Callback]:
    """Return callbacks without those of ONCE that a later one replaces: an overlay may add its own `Checkpoints`."""
    last = {type(callback): callback for callback in named}
    return [callback for callback in named if type(callback) not in ONCE or last[type(callback)] is callback]


def run_callbacks(config: dict[str, Any], record: RecordRun | None, slurm_job: str | None) -> list[Callback]:
    """Return the callbacks of a command in their order; one that a config names replaces the default of its class.

    Args:
        config: the arguments of the Trainer.
        record: writes the run folder of a training; None for other commands.
        slurm_job: the Slurm job that a pre-empted run queues again; None for none.

    Raises:
        UserError: a callback of the config would do harm in a training, or nothing.
    """
    named = config.get("callbacks") or []
    named = last_of_each(named if isinstance(named, list) else [named])
    always: list[Callback] = []
    if record is not None:
        check_callbacks(named, config.get("max_time"))
        # before Preemption, so that the checkpoint of a signal includes averaged weights
        averaging = [callback for callback in named if isinstance(callback, WeightAveraging)]
        named = [callback for callback in named if callback not in averaging]
        always = [CheckCallbacks(), WholeSteps(), record, *averaging]
        defaults = [ours.Preemption(slurm_job), ours.Throughput(), ours.GradientNorm(), ours.Watchdog()]
        if not str(config.get("precision")).startswith("16"):
            # the loss scaler of fp16 skips updates itself: non-finite gradients are how it finds its scale
            defaults.append(ours.BadStepGuard())
        always += [callback for callback in defaults if not any(isinstance(c, type(callback)) for c in named)]
        # a config whose list of callbacks replaces another's must still save checkpoints
        saves = any(isinstance(c, Checkpoint) and type(c) is not Checkpoint for c in named)
        if config.get("enable_checkpointing") is not False and not saves:
            always.append(ours.Checkpoints())
    shows = any(isinstance(c, ProgressBar) and type(c) is not ProgressBar for c in named)
    if config.get("enable_progress_bar") is not False and not shows:
        named = [callback for callback in named if type(callback) is not ProgressBar]  # the base class shows nothing
        always.append(ours.Progress())
    return [*always, *named]

"""Resuming from a checkpoint: loop progress, changed settings, a validation that is due, a run without steps left."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import timedelta
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from mm_lightning.checkpoint import METADATA_KEY, network_config, network_metadata, tokenizer_metadata
from mm_lightning.checkpoint.network_loading import CHANGEABLE_FIELDS, list_changes
from mm_lightning.console import say
from mm_lightning.data import TextDataModule
from mm_lightning.errors import UserError
from mm_lightning.training.choices import Choice
from mm_lightning.training.lightning_internals import callbacks_of, find_datamodule, finished_epochs, set_rates
from mm_lightning.training.loggers import MetricsFile
from mm_lightning.training.optimizers import ParameterGroup, optimizer_class_of


def rescale_progress(checkpoint: dict[str, Any], accumulate: int) -> bool:
    """Convert the batch counts of a checkpoint's loops to this run's number of processes.

    Lightning counts batches of one process. With another number of processes a step of the same global batch is another
    number of them, and accumulation, validation and epochs would begin in the middle of a step.

    Args:
        checkpoint: as Lightning loads it; changed in place.
        accumulate: batches of one process in an optimization step of this run.

    Returns:
        True if it was saved after a step whose validation, if one was due, had yet to begin.
    """
    loops = checkpoint["loops"]["fit_loop"]
    progress, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    total, steps = progress["total"], checkpoint["global_step"]
    unfinished = total["processed"] - total["completed"]  # 1 in the hook at the end of a batch
    before = total["ready"]
    for counts in (total, progress["current"]) if before else ():
        counts["ready"] = counts["started"] = counts["processed"] = counts["ready"] * steps * accumulate // before
        counts["completed"] = counts["processed"] - unfinished
    # Lightning does not begin to count an epoch whose first step follows a resume at the end of the epoch before.
    for counts in (epochs["total"], epochs["current"]) if unfinished else ():
        counts["ready"] = counts["started"] = counts["processed"] + 1
        counts["completed"] = counts["processed"]
    return unfinished > 0


DATA_OPTIONS = {
    "content": "data.path of content",
    "fingerprint": "data.path of fingerprint",
    "context_length": "data.context_length",
    "global_batch_size": "data.global_batch_size",
    "seed": "seed_everything",
}
"""Settings and fingerprints that determine the tokens of a step, with the option that sets each."""

MODEL_SETTINGS = (
    *("learning_rate", "warmup_steps", "final_learning_rate", "weight_decay", "betas"),
    *("optimizer", "schedule", "decay_steps", "parameter_groups"),
)
TRAINER_SETTINGS = ("max_steps", "max_epochs", "precision", "gradient_clip_val", "gradient_clip_algorithm")
LOGGED_ON_RESTORE = {
    *(f"model.{name}" for name in MODEL_SETTINGS),
    *(f"trainer.{name}" for name in TRAINER_SETTINGS),
    *(f"model.network.{name}" for name in CHANGEABLE_FIELDS),
    *("data.context_length", "data.global_batch_size", "seed_everything", "run"),
}
"""Settings whose changes are logged when the checkpoint is restored, which holds their exact values."""


def data_identity(data: TextDataModule) -> dict[str, Any]:
    """Return the settings and fingerprints that determine the tokens of a step, as checkpoints keep them."""
    hashes = {
        name: " + ".join(f"{s.share} x " * (s.share < 1) + getattr(s.manifest, name)[:12] for s in data.sets)
        for name in ("content", "fingerprint")
    }
    return {name: hashes[name] if name in hashes else getattr(data, name) for name in DATA_OPTIONS}


def data_changes(about: dict[str, Any], data: TextDataModule) -> str | None:
    """Return the warning for a resumed run whose data differ from the checkpoint's; None if they do not.

    Args:
        about: the metadata of the checkpoint.
        data: the data module of this run.

    Raises:
        UserError: the tokens mean something else than what the network has learned.
    """
    saved, tokenizer = about["tokenizer"], data.tokenizer
    if saved and saved["sha256"] != tokenizer.sha256:
        raise UserError(
            f"the checkpoint was trained with the tokenizer {saved['name']} ({saved['sha256'][:8]}), {data.path} was "
            f"prepared with {tokenizer.name} ({tokenizer.sha256[:8]}): resume with data of the first, or start a new "
            f"run with the checkpoint's weights: --model.initial_weights"
        )
    settings = data_identity(data)
    before = about.get("data") or settings  # earlier versions saved nothing, or the fingerprint without the content
    if "content" in before:
        del settings["fingerprint"]
    before, settings = ({DATA_OPTIONS[n]: x for n, x in d.items() if n in DATA_OPTIONS} for d in (before, settings))
    differences = list_changes(before, settings)
    if not differences:
        return None
    return (
        f"WARNING: resuming with {', '.join(differences)}: weights, optimizer and step go on, but the data "
        f"come in another order from here, so that this epoch may repeat or miss some of them"
    )


class OptimizerSettings:
    """The settings of optimizer, schedule and loss scale that a run was built with.

    Restoring a checkpoint, with DeepSpeed or without, replaces them by the checkpoint's; `apply` puts them back.

    Args:
        trainer: the trainer of the run, before a checkpoint is restored.
    """

    def __init__(self, trainer: Trainer) -> None:
        restored = ("params", "lr")
        self.groups = [
            [{name: value for name, value in group.items() if name not in restored} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self.base_rates = [list(config.scheduler.base_lrs) for config in trainer.lr_scheduler_configs]
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)  # of fp16 without DeepSpeed
        names = ("growth_factor", "backoff_factor", "growth_interval") if self.scaler is not None else ()
        self.scaling = {name: getattr(self.scaler, f"get_{name}")() for name in names}

    def apply(self, trainer: Trainer) -> None:
        """Put the settings back, with the learning rate that they give at the step that was reached.

        Where the checkpoint has the same settings, nothing changes by a bit.
        """
        for optimizer, groups in zip(trainer.optimizers, self.groups, strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(settings)
        for config, base in zip(trainer.lr_scheduler_configs, self.base_rates, strict=True):
            scheduler: Any = config.scheduler  # a LambdaLR, whatever model.schedule names
            scheduler.base_lrs = list(base)
            rates = zip(base, scheduler.lr_lambdas, strict=True)
            set_rates(scheduler, [rate * factor(scheduler.last_epoch) for rate, factor in rates])
        for name, value in self.scaling.items():
            getattr(self.scaler, f"set_{name}")(value)

    def keep(self, trainer: Trainer, changed: list[str]) -> None:
        """Apply the settings, and log in one line what a resumed run changes.

        Args:
            trainer: the trainer of the run.
            changed: the settings that differ from the checkpoint's.
        """
        before = learning_rate(trainer)
        self.apply(trainer)
        if (rate := learning_rate(trainer)) != before:
            changed = [*changed, f"learning rate of step {trainer.global_step + 1}: {rate:.3g} instead of {before:.3g}"]
        if changed:
            say(f"resuming with {', '.join(changed)}")


def learning_rate(trainer: Trainer) -> float:
    """Return the learning rate that the optimizer uses in the next step."""
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def checkpoint_metadata(module: Any) -> dict[str, Any]:
    """Return the metadata of a checkpoint of a LanguageModule, from which its network is rebuilt without its YAML."""
    data = find_datamodule(module.trainer)
    tokenizer, context = (None, None) if data is None else (tokenizer_metadata(data.tokenizer), data.context_length)
    metadata = network_metadata(module.config, tokenizer, context)
    metadata |= {"recipe": recipe(module), "tokens": module.trained_tokens}
    return metadata if data is None else {**metadata, "data": data_identity(data)}


def saved_tokens(checkpoint: dict[str, Any], data: TextDataModule | None) -> int:
    """Return the tokens that a checkpoint was trained on; those of earlier versions had steps of one size."""
    metadata = checkpoint.get(METADATA_KEY, {})
    sizes = {} if data is None else {name: getattr(data, name) for name in ("global_batch_size", "context_length")}
    sizes |= {name: value for name, value in metadata.get("data", {}).items() if name in sizes}
    return metadata.get("tokens", checkpoint["global_step"] * math.prod(sizes.values()) if sizes else 0)


def recipe(module: LightningModule) -> dict[str, Any]:
    """Return the settings that decide what an optimization step does with its tokens, as checkpoints keep them."""
    values = {f"model.{name}": _plain(getattr(module, name)) for name in MODEL_SETTINGS}
    return values | {f"trainer.{name}": getattr(module.trainer, name) for name in TRAINER_SETTINGS}


def changed_recipe(checkpoint: dict[str, Any], module: Any) -> list[str]:
    """Return the settings of a resumed run that differ from the checkpoint's, each with both values.

    Args:
        checkpoint: the checkpoint as Lightning loads it.
        module: the LanguageModule of this run.

    Raises:
        UserError: the optimizer's states are of another class, or of other parameter groups.
    """
    settings, about = recipe(module), checkpoint[METADATA_KEY]
    before = about.get("recipe")
    check_states(before or {}, settings)
    if before is None:  # earlier versions saved none: read it from the optimizer's state
        group: dict[str, Any] = next((state["param_groups"][0] for state in checkpoint.get("optimizer_states", [])), {})
        names = {"model.learning_rate": "initial_lr", "model.weight_decay": "weight_decay", "model.betas": "betas"}
        before = {name: group[key] for name, key in names.items() if key in group}
    was, fields = network_config(about).to_dict()["fields"], module.config.to_dict()["fields"]
    changeable = {name: fields[name] for name in sorted(CHANGEABLE_FIELDS & fields.keys())}
    before = {name: _plain(value) for name, value in before.items()}
    return list_changes(before, settings) + list_changes(was, changeable, "model.network.")


def check_states(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that the optimizer's states of a checkpoint are those that a run needs.

    Args:
        before: the recipe of the checkpoint; those of earlier versions do not name their optimizer, AdamW.
        now: the recipe of the run.

    Raises:
        UserError: they are of another optimizer, or of other parameter groups.
    """
    was, is_now = (Choice(recipe.get("model.optimizer", "adamw")) for recipe in (before, now))
    changed = optimizer_class_of(was) is not optimizer_class_of(is_now)
    patterns = [[group["pattern"] for group in r.get("model.parameter_groups") or []] for r in (before, now)]
    if changed or patterns[0] != patterns[1]:
        name, pair = ("optimizer", (was, is_now)) if changed else ("parameter_groups", patterns)
        raise UserError(
            f"the checkpoint was trained with model.{name} {pair[0]}, this run has {pair[1]}: the states of the "
            f"optimizer do not fit: leave it as it was, or start a new run with the weights: --model.initial_weights"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(element) for element in value]
    if isinstance(value, Choice):
        return value.plain()
    return asdict(value) if isinstance(value, ParameterGroup) else value


def refuse_nothing(trainer: Trainer) -> NoReturn:
    """End a run that ended before its first step.

    Raises:
        UserError: it says why, and what to change.
        SystemExit: on other processes than the first, which reports it.
    """
    if not trainer.is_global_zero:
        raise SystemExit(0)
    step, loop = trainer.global_step, trainer.fit_loop
    where = f"{trainer.ckpt_path} is at step {step}" if trainer.ckpt_path else f"the run is at step {step}"
    timer = next(iter(callbacks_of(trainer, Timer)), None)
    if trainer.limit_train_batches == 0:
        why = "trainer.limit_train_batches is 0: leave it out"
    elif loop.max_batches == 0:
        why = "there is no batch in an epoch: prepare more text, or raise trainer.limit_train_batches"
    elif 0 < trainer.max_steps <= step:
        why = f"{where} and trainer.max_steps is {trainer.max_steps}: raise it"
    elif trainer.max_epochs not in (None, -1) and finished_epochs(trainer) >= trainer.max_epochs:
        why = f"{where}, at the end of epoch {trainer.max_epochs}, and trainer.max_epochs is that: raise it"
    elif timer is not None and (left := timer.time_remaining() or 0.0) <= 0:
        elapsed = timer.time_elapsed()
        spent, limit = (timedelta(seconds=round(seconds)) for seconds in (elapsed, elapsed + left))
        why = f"{where} after {spent} of training and trainer.max_time is {limit}: raise it"
    else:
        why = f"{where} and a callback stops it there"
    raise UserError(f"nothing to train: {why}")


def validate_if_due(trainer: Trainer) -> None:
    """Run the validation that was due right after the checkpoint was saved, which Lightning skips.

    Where the run has logged it already, before it was killed, it is run for callbacks alone and not logged again.
    """
    loop = trainer.fit_loop.epoch_loop
    every = trainer.val_check_interval
    if not (trainer.enable_validation and isinstance(every, int) and loop.total_batch_idx >= 0):
        return
    if (loop.total_batch_idx + 1) % every:
        return
    loop.val_loop.restarting = False
    loggers = trainer.loggers
    known = any("validation/loss" in logger.logged for logger in loggers if isinstance(logger, MetricsFile))
    if trainer.strategy.broadcast(known):
        trainer.loggers = []
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    trainer.loggers = loggers

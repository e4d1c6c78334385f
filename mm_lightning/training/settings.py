"""What configs say: whether a command can do it, and whether it is what a run was trained with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from mm_lightning.errors import UserError
from mm_lightning.training.config_files import leaves
from mm_lightning.training.memory_plan import count_devices
from mm_lightning.training.trainer_options import check_options
from mm_lightning.yaml_text import load_yaml, read_yaml

DECIDE_THE_LOSS = (
    "model.network",
    "data.path",
    "data.context_length",
    "data.validation_sequences",
    "trainer.precision",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
)


def check_settings(config: Namespace) -> None:
    """Check that a training command can do what its config says.

    Raises:
        UserError: it cannot; the error names the key.
    """
    trainer = config.trainer
    if not config.run:
        raise UserError("run must name a folder, as in --run runs/mine")
    if isinstance(trainer.strategy, str) and any(kind in trainer.strategy for kind in ("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy {trainer.strategy} starts processes out of one that has begun: choose ddp")
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            "trainer.accumulate_grad_batches follows from data.global_batch_size and data.micro_batch_size: "
            "set these and leave it out"
        )
    if not 0 <= config.seed_everything < 1 << 32:
        raise UserError(f"seed_everything must be at least 0 and below 2^32, got {config.seed_everything}")
    check_options(trainer)


def check_devices(accelerator: str | object, devices: int | str | list[int] | None) -> None:
    """Check that this machine has the devices, before a process is started for each.

    Without a GPU, `auto` means processes on the CPU, one for each core at the most.

    Raises:
        UserError: it has fewer than are asked for.
    """
    named = None if devices is None else count_devices(devices)
    if accelerator not in ("auto", "gpu", "cuda") or named is None:
        return
    count = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if named <= count or (accelerator == "auto" and not count and named <= (os.cpu_count() or 1)):
        return
    fewer = f"--trainer.devices {count}, or " if count else ""
    raise UserError(
        f"trainer.devices is {devices}, but this machine has {count or 'no'} GPU{'s' if count > 1 else ''}: use {fewer}"
        f"its CPU: --trainer.devices 1 --trainer.accelerator cpu. (--plan {named} checks a run for another machine)"
    )


def changed(of_the_run: Path, config: str) -> dict[str, Any]:
    """Return the settings that decide a validation loss and differ from a run's config.yaml, by dotted name.

    Args:
        of_the_run: the file.
        config: this command's, as YAML.
    """
    was, now = read_yaml(of_the_run), load_yaml(config, "the config")
    return {name: value for name, (_, value) in differences(was, now).items() if name.startswith(DECIDE_THE_LOSS)}


def differences(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two configs, by dotted name: the value before and the value now."""
    before = dict(leaves(was))
    return {
        name.replace("init_args.", ""): (before.get(name), value)
        for name, value in leaves(now)
        if value != before.get(name)
    }

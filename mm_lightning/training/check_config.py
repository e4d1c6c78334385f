"""Check the values of a config, and compare configs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
from jsonargparse import Namespace

from mm_lightning.errors import UserError
from mm_lightning.ranges import accept, hints
from mm_lightning.training.command_options import option_types
from mm_lightning.training.config_files import flatten_config
from mm_lightning.training.memory_estimate import count_devices
from mm_lightning.training.tracked_runs import logger_mistakes
from mm_lightning.training.trainer_options import option_mistakes
from mm_lightning.user_classes import import_object


def config_errors(config: Namespace) -> Iterator[tuple[str, UserError]]:
    """Expand `~` in the paths of a training command's config; yield the keys of invalid values, and the errors."""
    for key, values, types in typed_sections(config):
        for name, hint in types.items():
            if name not in values:
                continue
            full = f"{key}.{name}".lstrip(".")
            try:
                value = accept(hint, values[name], full)
            except UserError as error:
                yield full, error
                continue
            if key in ("", "trainer", "model"):  # the data module keeps names as they are written
                values[name] = value
    if config.get("gpu_memory") is not None and config.plan is None:
        yield "gpu_memory", UserError("gpu_memory is checked by a dry run alone: add --plan DEVICES, or leave it out")
    trainer = config.trainer
    if isinstance(trainer.strategy, str) and any(kind in trainer.strategy for kind in ("spawn", "fork", "notebook")):
        wrong = f"trainer.strategy {trainer.strategy} spawns processes from one that already runs: choose ddp"
        yield "trainer.strategy", UserError(wrong)
    yield from option_mistakes(trainer)
    yield from logger_mistakes(trainer)


def typed_sections(config: Namespace) -> Iterator[tuple[str, Namespace, dict[str, Any]]]:
    """Yield the sections of a config whose values have types: key, values and types."""
    for key, types in option_types().items():
        section = config.get(key) if key else config
        if isinstance(section, Namespace):
            yield key, section, types
    chosen = config.trainer.get("callbacks")
    for key, part in (
        ("model.network", config.model.get("network")),
        ("data.generate", config.data.get("generate")),
        ("trainer.strategy", config.trainer.get("strategy")),
        *(("trainer.callbacks", one) for one in (chosen if isinstance(chosen, list) else [chosen])),
    ):
        if isinstance(part, Namespace) and "class_path" in part and isinstance(part.get("init_args"), Namespace):
            kind = import_object(part.class_path)  # or a function that returns one
            has_init = isinstance(kind, type) and not dataclasses.is_dataclass(kind)
            types = hints(kind.__init__ if has_init else kind)  # type: ignore[misc]
            yield key if key in ("model.network", "data.generate") else f"{key}.{kind.__name__}", part.init_args, types


def check_devices(accelerator: str | object, devices: int | str | list[int] | None) -> None:
    """Check that this machine has the devices, before a process is launched for each.

    Without a GPU, `auto` means processes on the CPU, at most one for each core.

    Raises:
        UserError: it has fewer devices.
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


def config_differences(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two configs, by dotted name: old and new value.

    A setting that the earlier config lacks, of a section that both have, was added since: its default changes nothing.
    """
    before = dict(flatten_config(was))
    sections = {name.rpartition(".")[0] for name in before}
    return {
        name.replace("init_args.", ""): (before.get(name), value)
        for name, value in flatten_config(now)
        if value != before.get(name) and (name in before or name.rpartition(".")[0] not in sections)
    }

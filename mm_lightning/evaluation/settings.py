"""The settings of tasks, as words of a command line or as YAML has them."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.definitions import DEFINITIONS
from mm_lightning.evaluation.registry import find_task, task_names
from mm_lightning.evaluation.task import Task


def make_tasks(names: str | Sequence[str], given: dict[str, Any]) -> list[Task]:
    """The tasks of these names, with the settings that were given: None stands for the default.

    Args:
        names: of tasks and groups of them, separated by commas too.
        given: by name. Whole numbers may be words such as 4k, lists may be one value or words separated by commas.

    Tasks that run programs of the network and were named by a group only are left out unless `run_code` is given
    (:func:`left_out`).

    Raises:
        UserError: there is no such task, a setting that none of them has, or one that is of another type.
    """
    without = left_out(names, given)
    kinds = [find_task(name) for name in task_names([names] if isinstance(names, str) else names)]
    kinds = [kind for kind in kinds if kind.name not in without]
    if not kinds:
        raise UserError("tasks names nothing to ask")
    # --run_code false is the default, which tasks that run nothing take too
    given = {name: value for name, value in given.items() if value is not None and (name, value) != ("run_code", False)}
    settings = {kind: _types(kind) for kind in kinds}
    for name in given:
        if not any(name in own for own in settings.values()):
            raise UserError(f"{name} is for none of the tasks {', '.join(kind.name for kind in kinds)}: leave it out")
    return [
        kind(**{name: typed(name, given[name], own[name]) for name in given if name in own})
        for kind, own in settings.items()
    ]


def _types(kind: type[Task]) -> dict[str, str]:
    """Return the types of a task's settings in words: `int`, `list[int]`; those that may be None likewise."""
    plain = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    found = {}
    for name in names:
        union = typing.get_origin(plain[name]) in (typing.Union, types.UnionType)
        one = typing.get_args(plain[name])[0] if union else plain[name]
        found[name] = one.__name__ if type(one) is type else str(one)
    return found


def left_out(names: str | Sequence[str], given: dict[str, Any]) -> list[str]:
    """Return the tasks that run a network's programs and are named by a group only; none if `run_code` is given."""
    if given.get("run_code"):
        return []
    named = [name for word in ([names] if isinstance(names, str) else names) for name in word.split(",")]
    runs_code = [name for name, definition in DEFINITIONS.items() if definition.runs_code]
    return [name for name in task_names(named) if name in runs_code and name not in named]


def left_out_line(names: Sequence[str]) -> str:
    """Return the line that says which tasks were left out."""
    return f"left out: {', '.join(names)}, which run programs of the network: run_code (--run_code) asks them too"


def typed(name: str, value: Any, kind: str) -> Any:
    """A setting as the task takes it.

    Args:
        name: of the setting.
        value: as it was given.
        kind: the annotation of the task's field.

    Raises:
        UserError: it is no such thing.
    """
    if kind.startswith("list"):
        values = list(value) if isinstance(value, list | tuple) else [value]
        if name != "text":  # paths may hold commas
            values = [part for one in values for part in (one.split(",") if isinstance(one, str) else [one])]
        return [typed(name, one, kind.removeprefix("list[")) for one in values]
    if kind.startswith("int"):
        found = re.fullmatch(r"(-?\d+)([kK]?)", "" if isinstance(value, bool) else str(value))
        if not found:
            raise UserError(f"{name} takes whole numbers, such as 4096 or 4k, got {value!r}")
        return int(found[1]) * (1024 if found[2] else 1)
    wanted, words = (bool, "true or false") if kind == "bool" else (str, "words")
    if not isinstance(value, wanted):
        raise UserError(f"{name} takes {words}, got {value!r}")
    return value

"""The fields of tasks as options: of `mm evaluate`, and of the callback Evaluation in YAML."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from mm_lightning.class_options import NEEDED, Option, field_default, field_help
from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.definitions import DEFINITIONS
from mm_lightning.evaluation.registry import GROUPS, TASKS, find_task, task_names
from mm_lightning.evaluation.task import Task
from mm_lightning.ranges import Name, accept, hints

_types = functools.cache(typing.get_type_hints)


def task_options(names: Sequence[str], built_in: bool = True) -> dict[str, Option]:
    """Return the options of all built-in tasks, and of those of a user's own modules among some names; only of the
    tasks that are named where `built_in` is false.

    Tasks with fields of one name share an option. Its type is that of words, which :func:`make_tasks` reads as each
    task's field states; None stands for the default of each task.
    """
    named = task_names(names)
    kinds = [
        find_task(n) for n in ([*TASKS, *(n for n in named if n not in TASKS and "." in n)] if built_in else named)
    ]
    by_name: dict[str, list[type[Task]]] = {}
    for kind in kinds:
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            by_name.setdefault(field.name, []).append(kind)
    options = {}
    for name, same in by_name.items():
        hint = functools.reduce(operator.or_, [_words(kind, name) for kind in same], None)
        options[name] = Option(hint, None, _help(name, same))
    return options


def _words(kind: type[Task], name: str) -> Any:
    """Return the type by which a command line takes a field: whole numbers as text, for 4k, and lists as words."""
    plain = _plain(kind, name)
    if typing.get_origin(plain) is list:
        return list[Name]
    return Name if plain is int else hints(kind)[name]


def _plain(kind: type[Task], name: str) -> Any:
    """Return the type of a field without what it states, and without None."""
    hint = _types(kind)[name]
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    return members[0] if len(members) == 1 else hint


def _help(name: str, kinds: Iterable[type[Task]]) -> str:
    """Return what the tasks say of an option, each thing once, with their defaults and the tasks it is for."""
    uses: dict[str, dict[str, list[str]]] = {}
    for kind in kinds:
        (field,) = (field for field in dataclasses.fields(kind) if field.name == name)  # type: ignore[arg-type]
        default = field_default(field)
        text = re.sub(r"(?<!\.)\.$", "", field_help(kind, name))
        uses.setdefault(text, {}).setdefault(_default_words(default), []).append(kind.name)
    parts = []
    for text, defaults in uses.items():
        listed = ", ".join(f"{words} ({', '.join(_group_names(tasks))})".strip() for words, tasks in defaults.items())
        parts.append(f"{text}{' ' if '' in defaults else ', by default '}{listed}")
    return "; ".join(parts)


def _default_words(default: Any) -> str:
    """Return a default as it is typed; empty where the description says what is done without the option."""
    if isinstance(default, list | tuple):
        return " ".join(map(_default_words, default))
    if default is None or default is NEEDED or isinstance(default, bool):
        return ""
    return f"{default // 1024}k" if isinstance(default, int) and default and default % 1024 == 0 else str(default)


def _group_names(tasks: Sequence[str]) -> list[str]:
    """Return the groups that some tasks are, and the tasks beside them, in the order of the tasks."""
    left, first = set(tasks), {}
    for group, members in sorted(GROUPS.items(), key=lambda entry: -len(entry[1])):
        if left & set(members) and set(members) <= set(tasks):
            first[group] = min(map(tasks.index, members))
            left -= set(members)
    first |= {task: tasks.index(task) for task in left}
    return sorted(first, key=first.__getitem__)


def make_tasks(names: str | Sequence[str], given: dict[str, Any], prefix: str = "") -> list[Task]:
    """Return the tasks of these names, with the options that were given: None stands for the default.

    Args:
        names: of tasks, groups of them and classes in a user's own modules, separated by commas too.
        given: by name. Whole numbers may be words such as 4k, lists may be one value or words separated by commas.
        prefix: what the name of an option begins with in messages.

    Tasks that run programs of the network and were named by a group only are left out unless `run_code` is given
    (:func:`left_out`).

    Raises:
        UserError: there is no such task, an option that none of them has, or one that is of another type.
    """
    without = left_out(names, given)
    kinds = [find_task(name) for name in task_names([names] if isinstance(names, str) else names)]
    kinds = [kind for kind in kinds if kind.name not in without]
    if not kinds:
        raise UserError("tasks names nothing to ask")
    # --run_code false is the default, which tasks that run nothing take too
    given = {name: value for name, value in given.items() if value is not None and (name, value) != ("run_code", False)}
    fields = {kind: [field.name for field in dataclasses.fields(kind)] for kind in kinds}  # type: ignore[arg-type]
    for name in given:
        if not any(name in names_of_kind for names_of_kind in fields.values()):
            of_all = ", ".join(kind.name for kind in kinds)
            raise UserError(f"{prefix}{name} is for none of the tasks {of_all}: leave it out")
    for kind in kinds:
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if field_default(field) is NEEDED and field.name not in given:
                raise UserError(f"{prefix}{field.name} is missing: {kind.name} needs it")
    return [
        kind(**{name: _value(kind, name, given[name], prefix) for name in given if name in fields[kind]})
        for kind in kinds
    ]


def _value(kind: type[Task], name: str, value: Any, prefix: str) -> Any:
    """Return the value of a field, of the type and in the range that it states."""
    option = f"{prefix}{name}"
    return accept(hints(kind).get(name), typed(option, value, _plain(kind, name), split=name != "text"), option)


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


def typed(option: str, value: Any, kind: Any, split: bool = True) -> Any:
    """Return the value of an option as a field of some type takes it.

    Args:
        option: for messages.
        value: as it was given.
        kind: the type, without None.
        split: whether commas separate the words of a list; paths may hold them.

    Raises:
        UserError: it is of another type.
    """
    if typing.get_origin(kind) is list:
        values = list(value) if isinstance(value, list | tuple) else [value]
        if split:
            values = [part for one in values for part in (one.split(",") if isinstance(one, str) else [one])]
        return [typed(option, one, typing.get_args(kind)[0]) for one in values]
    if kind is int:
        number = re.fullmatch(r"(-?\d+)([kK]?)", "" if isinstance(value, bool) else str(value))
        if not number:
            raise UserError(f"{option} takes whole numbers, such as 4096 or 4k, got {value!r}")
        return int(number[1]) * (1024 if number[2] else 1)
    text = kind is str or typing.get_origin(kind) is Literal
    if (text or kind is bool) and not isinstance(value, str if text else bool):
        raise UserError(f"{option} takes {'words' if text else 'true or false'}, got {value!r}")
    return value

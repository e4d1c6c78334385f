"""Parts of a network that a user has written: classes of other modules, named by `class_path`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from mm_lightning.errors import UserError
from mm_lightning.ranges import Name

Kind = TypeVar("Kind", bound=type)
Part = TypeVar("Part", bound=nn.Module)
Spec = dict[Name, Any]
"""{class_path: module.Class, init_args: {...}} of a part."""


def load_class(path: str, base: Kind) -> Kind:
    """Return a class by its module and name.

    Args:
        path: module.Class.
        base: what it must be derived from.

    Raises:
        UserError: it cannot be imported, or is not of this kind.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot find the class {path} ({error}): install its package, or name the folder of its file in PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{path} is not derived from {base.__module__}.{base.__qualname__}")
    return found  # type: ignore[return-value]


def check_part(setting: str, value: str | Spec) -> None:
    """Check the setting of a part: the name of a kind, or a class.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, str):
        return
    if "class_path" not in value or set(value) - {"class_path", "init_args"}:
        raise UserError(f"{setting} takes the name of a kind, or class_path and init_args of a class; got {value}")


def build_part(spec: Spec, base: type[Part], dim: int, heads: int, std: Callable[[int], float]) -> Part:
    """Return a part of a class that a user has written.

    Args:
        spec: its class, and what its constructor takes besides the others here.
        base: what the class must be derived from.
        dim: d.
        heads: H.
        std: the initial standard deviation of a matrix, by its fan-in.

    Raises:
        UserError: there is no such class, or its constructor takes other arguments.
    """
    found = load_class(spec["class_path"], base)
    settings = spec.get("init_args") or {}
    try:
        return found(dim, heads, std, **settings)
    except TypeError as error:
        raise UserError(
            f"{spec['class_path']} cannot be built: {error}; its constructor is given dim, heads, std and init_args "
            f"{settings}"
        ) from error

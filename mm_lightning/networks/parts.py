"""Build the parts of a memory whose classes a configuration names by `class_path`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from mm_lightning.errors import UserError
from mm_lightning.ranges import Name
from mm_lightning.user_classes import load_class

Part = TypeVar("Part", bound=nn.Module)
Spec = dict[Name, Any]
"""A user's class for one part: {class_path: module.Class, init_args: {...}}."""


def check_part(setting: str, value: str | Spec) -> None:
    """Check that the setting of a part is the name of a built-in kind or {class_path, init_args}.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, str):
        return
    if "class_path" not in value or set(value) - {"class_path", "init_args"}:
        raise UserError(f"{setting} takes the name of a kind, or class_path and init_args of a class; got {value}")


def build_part(spec: Spec, base: type[Part], dim: int, heads: int, std: Callable[[int], float]) -> Part:
    """Build a part of a user's class, as Class(dim, heads, std, **init_args).

    Args:
        spec: class_path, and init_args for the constructor.
        base: the class it must be derived from.
        dim: d.
        heads: H.
        std: function of a matrix's fan-in, its initial standard deviation (Table 6).

    Raises:
        UserError: there is no such class, or its constructor takes other arguments.
    """
    part_class = load_class(spec["class_path"], base)
    settings = spec.get("init_args") or {}
    try:
        return part_class(dim, heads, std, **settings)
    except TypeError as error:
        raise UserError(
            f"{spec['class_path']} cannot be built: {error}; its constructor is given dim, heads, std and init_args "
            f"{settings}"
        ) from error

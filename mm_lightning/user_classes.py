"""Import the classes of a user's own modules that a configuration or an option names by `class_path`."""

from __future__ import annotations

import importlib
from typing import TypeVar

from mm_lightning.errors import UserError

Kind = TypeVar("Kind", bound=type)


def where_modules_are_found(path: str) -> str:
    """Return what to do when the module of a class cannot be imported, for an error."""
    file = f"{path.split('.')[0]}.py"
    return f"run mm in the folder of {file}, name that folder in PYTHONPATH, or install its package"


def load_class(path: str, base: Kind) -> Kind:
    """Import a class by its module and name.

    Args:
        path: module.Class.
        base: the class it must be derived from.

    Raises:
        UserError: it cannot be imported, or is derived from another class.
    """
    module, _, name = path.rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import the class {path} ({error}): {where_modules_are_found(path)}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UserError(f"{path} is not derived from {base.__module__}.{base.__qualname__}")
    return loaded  # type: ignore[return-value]

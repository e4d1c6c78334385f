"""Import the classes of a user's own modules that a configuration or an option names by `class_path`."""

from __future__ import annotations

import importlib
import traceback
from typing import Any, TypeVar

from mm_lightning.errors import UserError

Kind = TypeVar("Kind", bound=type)


def where_modules_are_found(path: str) -> str:
    """Return what to do when the module of a class cannot be imported, for an error."""
    file = f"{path.split('.')[0]}.py"
    return f"run mm in the folder of {file}, name that folder in PYTHONPATH, or install its package"


def load_class(path: str, base: Kind) -> Kind:
    """Import a class by its module and name; one within another class as module.Outer.Inner.

    Args:
        path: module.Class.
        base: the class it must be derived from.

    Raises:
        UserError: it cannot be imported, or is derived from another class.
    """
    try:
        loaded = import_object(path)
    except Exception as error:  # whatever a module raises while it is imported
        raise UserError(f"cannot import the class {path}: {_reason(path, error)}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UserError(f"{path} is not derived from {base.__module__}.{base.__qualname__}")
    return loaded  # type: ignore[return-value]


def import_object(path: str) -> Any:
    """Import what module.Class names, or module.Outer.Inner."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module or "." not in module:
            raise
        return getattr(import_object(module), name)


def _reason(path: str, error: Exception) -> str:
    """Return why a class cannot be imported and what to do."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    last = [line for line in traceback.extract_tb(error.__traceback__) if "importlib" not in line.filename][-1]
    if last.filename == __file__:  # no line of its module failed: there is none, or it lacks the class
        return f"{error}: {where_modules_are_found(path)}"
    return f"{last.filename}, line {last.lineno}: {type(error).__name__}: {error}"

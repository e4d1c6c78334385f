"""Classes of torch by their name, and a user's by class_path, with the arguments of their constructors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from jsonargparse.typing import register_type

from mm_lightning.errors import UserError
from mm_lightning.options import nearest
from mm_lightning.user_classes import load_class

Kind = TypeVar("Kind", bound=type)


@dataclass(init=False, repr=False)
class Choice:
    """The value of a setting that names a class: `adamw`, or {class_path: SGD, init_args: {momentum: 0.9}}.

    Args:
        value: a name, or class_path and init_args.

    Raises:
        ValueError: it is neither.
    """

    name: str
    init_args: dict[str, Any]

    def __init__(self, value: str | dict[str, Any] | Choice) -> None:
        value = value.plain() if isinstance(value, Choice) else value
        spec: Any = {"class_path": value} if isinstance(value, str) else value
        allowed = isinstance(spec, dict) and not set(spec) - {"class_path", "init_args"}
        if not allowed or not isinstance(spec.get("class_path"), str) or not spec["class_path"].strip():
            raise ValueError(f"takes a name, or class_path and init_args of a class, got {value}")
        self.name, self.init_args = spec["class_path"], dict(spec.get("init_args") or {})

    def plain(self) -> str | dict[str, Any]:
        """Return the value as it is written in YAML."""
        return {"class_path": self.name, "init_args": self.init_args} if self.init_args else self.name

    def __str__(self) -> str:
        return str(self.plain())

    __repr__ = __str__


# A type of its own: jsonargparse takes a dict with class_path for an object that it builds itself.
register_type(Choice, Choice.plain, Choice)


def named_class(setting: str, name: str, base: Kind, module: ModuleType, names: Sequence[str]) -> Kind:
    """Return the class that a choice names.

    Args:
        setting: the dotted key, for messages.
        name: a class of torch in any case (adamw), or module.Class.
        base: the class it must be derived from.
        module: of torch, with its classes.
        names: further names that are taken, for messages.

    Raises:
        UserError: there is no such class.
    """
    if "." in name:
        return load_class(name, base)
    classes = {
        key.lower(): value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    if name.lower() not in classes:
        known = {word.lower(): word for word in (*names, *(value.__name__ for value in classes.values()))}
        near = nearest(name.lower(), known)
        others = f"there are {', '.join(known.values())}, and module.Class of your own"
        hint = f"did you mean {known[near]}?" if near else others
        raise UserError(f"{setting}: there is no {name}: {hint}")
    return classes[name.lower()]  # type: ignore[return-value]

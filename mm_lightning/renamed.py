"""Names that earlier versions had: each keeps working, and one line says its present name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mm_lightning.console import say_once
from mm_lightning.errors import UserError
from mm_lightning.yaml_text import load_yaml, one_line

OPTIONS = {"--long_budget": "--read_budget", "--neighbours": "--neighbors", "--queries": "--repeats"}

MOVED = {
    "benchmark data": "tests/benchmarks/loader.py",
    **{f"benchmark {name}": f"tests/benchmarks/{name}.py" for name in ("reads", "recurrence", "roofline", "startup")},
}
"""Commands that are scripts of the repository now."""

CLASSES = {
    "Guard": "BadStepGuard",
    "mm_lightning.callbacks.Guard": "mm_lightning.callbacks.BadStepGuard",
    "mm_lightning.callbacks.guard.Guard": "mm_lightning.callbacks.BadStepGuard",
}
"""Classes as configs name them; by the short ones checkpoints keep the states of callbacks."""

VALUES = {"class_path": CLASSES, "callbacks": CLASSES, "kernels": {"native": "numba"}}
"""Values by the last part of the key, or of the option, that takes them."""


def _current(names: Mapping[str, str], name: str) -> str:
    if name in names:
        say_once(f"mm: {name.rsplit('.', 1)[-1]} is now called {names[name].rsplit('.', 1)[-1]}")
    return names.get(name, name)


def current_values(value: Any, key: str = "") -> Any:
    """Return the value of a config's key, or a whole config, with present names in the place of old ones.

    Keys are texts, as those of options are: numbers have a meaning in sweeps alone.
    """
    if isinstance(value, dict):
        return {str(name): current_values(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [current_values(inner, key) for inner in value]
    names = VALUES.get(key.rstrip("+").rsplit(".", 1)[-1], {})
    return _current(names, value) if isinstance(value, str) else value


def current_options(words: Iterable[str]) -> list[str]:
    """Return the words of a command line with present names of options and values in the place of old ones."""
    option, current = "", []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            option = _current(OPTIONS, name)
            current.append(option + equals + _current_text(value, option.removeprefix("--")))
        else:
            current.append(_current_text(word, option.removeprefix("--")))
    return current


def _current_text(text: str, option: str) -> str:
    """Return what an option is given: a name, or names, keys and values as YAML."""
    named = option.rstrip("+").rsplit(".", 1)[-1] in VALUES or option.startswith(("trainer", "model"))
    if named and text.startswith(("[", "{")):
        try:
            value = load_yaml(text, option)
        except UserError:  # which the parser reports
            return text
        current = current_values(value, option)
        return text if current == value else one_line(current)
    return current_values(text, option)


def rename_callback_states(states: dict[str, Any]) -> None:
    """Give the states of callbacks in a checkpoint, in place, the keys by which their classes look for them now."""
    for key in list(states):
        states[_current(CLASSES, key)] = states.pop(key)


def current_attribute(module: str, name: str) -> Any:
    """Return what a module has under a present name, for its `__getattr__`.

    Raises:
        AttributeError: the name is no old one.
    """
    import importlib

    path = f"{module}.{name}"
    if path not in CLASSES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new_module, _, new_name = _current(CLASSES, path).rpartition(".")
    return getattr(importlib.import_module(new_module), new_name)

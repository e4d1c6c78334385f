"""Names that earlier versions had: each keeps working, and one line says its present name."""

from __future__ import annotations

import re
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

GENERATORS = {
    "regbench": "mm_lightning.data.regbench.RegBenchConfig",
    "facts": "mm_lightning.data.facts.FactsConfig",
}
"""Classes of `data.generate` by the keys of the section `data` that held their fields."""

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
        current = {str(name): current_values(inner, str(name)) for name, inner in value.items()}
        return _with_generator(current) if key == "data" else current
    if isinstance(value, list):
        return [current_values(inner, key) for inner in value]
    names = VALUES.get(key.rstrip("+").rsplit(".", 1)[-1], {})
    return _current(names, value) if isinstance(value, str) else value


def _with_generator(data: dict[str, Any]) -> dict[str, Any]:
    """Return a section `data` whose generator is under `generate`."""
    current = {key: value for key, value in data.items() if key not in GENERATORS}
    for key in GENERATORS.keys() & data.keys():
        made = None if data[key] is None else {"class_path": _generator(key), "init_args": data[key]}
        current["generate"] = made or current.get("generate")
    return current


def _generator(key: str) -> str:
    """Return the class that is named by a key of earlier versions, which a line says."""
    say_once(f"mm: data.{key} is now called data.generate, with class_path {GENERATORS[key]}")
    return GENERATORS[key]


def current_options(words: Iterable[str]) -> list[str]:
    """Return the words of a command line with present names of options and values in the place of old ones."""
    option, section, current = "", "", []
    for word in words:
        text, before = word, ""
        if word.startswith("--"):
            name, equals, text = word.partition("=")
            option = _current(OPTIONS, name)
            generator = re.fullmatch(rf"--data\.({'|'.join(GENERATORS)})(?:\.(.+))?", option)
            section = generator[1] if generator and not generator[2] else ""
            if generator and generator[2]:  # a setting of the generator
                current.append(f"--data.generate={_generator(generator[1])}")
                option = f"--data.generate.init_args.{generator[2]}"
            elif section:
                option = "--data.generate"
            before = option + equals
            if not equals:
                current.append(before)
                continue
        current.append(before + (_section_text(text, section) or _current_text(text, option.removeprefix("--"))))
    return current


def _section_text(text: str, key: str) -> str:
    """Return what `data.generate` is given in the place of a key of earlier versions; empty for no such key."""
    return one_line(_with_generator({key: load_yaml(text, f"data.{key}")})["generate"]) if key else ""


def _current_text(text: str, option: str) -> str:
    """Return what an option is given: a name, or names, keys and values as YAML."""
    named = option.rstrip("+").rsplit(".", 1)[-1] in VALUES or option.startswith(("trainer", "model", "data"))
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

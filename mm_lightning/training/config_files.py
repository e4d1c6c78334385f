"""YAML files that build on each other.

A config may begin with `base: other.yaml` (or a list of files, paths relative to the file that names them): the base
files are read first, in order, then the file itself, exactly as if each had been given with its own `--config`. Where
there is no such file, the name is that of a config that the package ships: `base: quickstart`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.options import OptionParser
from mm_lightning.ranges import Place, accept, expand_home
from mm_lightning.redaction import HIDDEN, redact_values
from mm_lightning.renamed import current_values
from mm_lightning.shipped import resolve_config, suggest_config
from mm_lightning.yaml_text import locate, one_line, read_yaml

SECTIONS = ("trainer", "model", "data")


@dataclass
class ConfigFile:
    """A config file: its path and its values without `base`."""

    path: str
    values: dict[str, Any]

    def __post_init__(self) -> None:
        self.values = current_values(self.values)


def read_chain(path: str | Path, above: tuple[Path, ...] = ()) -> list[ConfigFile]:
    """Return a config file preceded by its base files, lowest base first.

    Raises:
        UserError: a file is missing, is not a YAML mapping, or is based on itself.
    """
    path = resolve_config(path, beside=above[-1] if above else None)
    if path.resolve() in [file.resolve() for file in above]:
        raise UserError(f"config files are based on each other: {' -> '.join(map(str, [*above, path]))}")
    values = read_config(path, above[-1] if above else None)
    chain = []
    if "base" in values:
        for base in base_names(path, values.pop("base")):
            chain += read_chain(expand_home(base), (*above, path))
    _fill_secrets(values)
    _check_shape(path, values)
    return [*chain, ConfigFile(str(path), values)]


def _check_shape(path: Path, values: dict[str, Any]) -> None:
    """Reject keys and sections that the parser cannot handle; drop sections whose keys are all commented out."""
    for key in list(values):
        if key in ("config", "help", "print_config") or (key == "plan" and values[key] is not None):
            hint = ": a config builds on others by `base`" if key == "config" else f", as in --{key}: leave it out"
            raise UserError(f"{key} in {path} is an option of the command line{hint}")
        if key in SECTIONS and values[key] is None:
            del values[key]
        elif key in SECTIONS and not isinstance(values[key], dict):
            line, _ = locate(path, [key])
            raise UserError(f"{key} in {path}, line {line} must hold `key: value` lines, got {one_line(values[key])}")
    for name, value in named_values(values):
        if name.rsplit(".", 1)[-1] == "class_path" and not (isinstance(value, str) and value):
            line, _ = locate(path, name.split("."), str(value))
            raise UserError(f"{name} in {path}, line {line} must name a class, got {one_line(value)}")


def read_config(path: str | Path, named_by: Path | None = None) -> dict[str, Any]:
    """Return the keys and values of a config or sweep file.

    Args:
        path: the file.
        named_by: the file that names it, for error messages.

    Raises:
        UserError: it is missing or does not hold a mapping.
    """
    path = Path(path)
    if not path.is_file():
        where = f" (named by {named_by})" if named_by else ""
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"config file {path} {wrong}{where}: {suggest_config(path)}")
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config file {path} must hold `key: value` lines, got a {type(values).__name__}")
    return values


SECRETS_VARIABLE = "MM_LIGHTNING_SECRETS"
"""Environment variable by which `mm sweep` passes secrets, which config.yaml omits, to its runs: JSON by dotted key."""


def export_secrets(configs: Iterable[dict[str, Any]]) -> None:
    """Export the secrets of configs, which their files omit, to processes that are started later.

    Raises:
        UserError: two configs differ in a secret.
    """
    secrets: dict[str, Any] = {}
    for config in configs:
        hidden = dict(flatten_config(redact_values(config)))
        for key, value in flatten_config(config):
            if hidden.get(key) != value and secrets.setdefault(key, value) != value:
                raise UserError(f"the runs differ in {key}, which holds a secret: give all of them the same")
    if secrets:
        os.environ[SECRETS_VARIABLE] = json.dumps(secrets)


def _fill_secrets(values: dict[str, Any]) -> None:
    """Replace redacted values by the secrets that a parent process has exported."""
    for key, value in json.loads(os.environ.get(SECRETS_VARIABLE, "{}")).items():
        *above, last = key.split(".")
        section: Any = values
        for name in above:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section and HIDDEN in json.dumps(section[last], default=str):
            section[last] = value


def base_names(path: Path, names: Any) -> list[str]:
    """Return the file names that the key `base` of a config holds, one or a list.

    Raises:
        UserError: the value is neither a file name nor a list of file names.
    """
    listed = names if isinstance(names, list) else [names]
    if not listed or any(not isinstance(name, str) or not name.strip() or "\0" in name for name in listed):
        where = f"{path}, line {locate(path, ['base'])[0]}"
        raise UserError(f"base in {where} must be the name of a file or a list of names, got {one_line(names)}")
    return listed


def flatten_config(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of each setting in a nested config; weights of data sets stay together."""
    if not isinstance(values, dict) or name == "data.path":
        yield name, values
        return
    for key, value in values.items():
        yield from flatten_config(value, f"{name}.{key}" if name else str(key))


def named_values(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of all keys of nested mappings and lists, with their values."""
    items = values.items() if isinstance(values, Mapping) else ()
    for key, value in items:
        name = f"{above}{key}"
        yield name, value
        yield from named_values(value, f"{name}.")
    if isinstance(values, list):
        for value in values:
            yield from named_values(value, above)


def option_texts(options: Sequence[str], alone: str = "") -> dict[str, str]:
    """Return the texts of command-line options by their names: the last of each, `alone` for one without a text."""
    texts = {}
    for word, following in zip(options, [*options, "--"][1:], strict=True):
        name, equals, text = word.partition("=")
        if name.startswith("--"):
            following = alone if following.startswith("--") else following
            texts[name.removeprefix("--")] = text if equals else following
    return texts


def split_configs(args: list[str]) -> tuple[list[str], list[str]]:
    """Split command-line arguments into the values of `--config` and the other arguments.

    In any order on the command line, options override configs.
    """
    parser = OptionParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", action="append", nargs="?", default=[])
    known, others = parser.parse_known_args(args)
    if None in known.config:
        raise UserError("--config needs a file, as in --config configs/quickstart.yaml")
    return [accept(Place, path, "--config") for path in known.config], others

"""YAML files that build on each other, and one-line answers to what a config gets wrong.

A config may begin with `base: other.yaml` (or a list of files, paths relative to the file that names them): the base
files are read first, in order, then the file itself, exactly as if each had been given with its own `--config`. Where
there is no such file, the name is that of a config that the package ships: `base: quickstart`.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.options import nearest, parser_options, wrong_value
from mm_lightning.ranges import Place, accept, expand_home
from mm_lightning.redaction import HIDDEN, redact_values
from mm_lightning.renamed import current_values
from mm_lightning.shipped import resolve_config, suggest_config
from mm_lightning.synonyms import synonym
from mm_lightning.yaml_text import locate, one_line, read_yaml

SECTIONS = ("trainer", "model", "data")


@dataclass
class ConfigFile:
    """One file of a chain: where it came from and its keys, without `base`."""

    path: str
    values: dict[str, Any]

    def __post_init__(self) -> None:
        self.values = current_values(self.values)


def read_chain(path: str | Path, above: tuple[Path, ...] = ()) -> list[ConfigFile]:
    """A config file preceded by the files that it is based on, the lowest base first.

    Raises:
        UserError: a file is missing, is not a YAML mapping, or is based on itself.
    """
    path = resolve_config(path, beside=above[-1] if above else None)
    if path.resolve() in [file.resolve() for file in above]:
        raise UserError(f"config files are based on each other: {' -> '.join(map(str, [*above, path]))}")
    values = read_config(path, above[-1] if above else None)
    chain = []
    if "base" in values:
        for base in base_names(path, "base", values.pop("base")):
            chain += read_chain(expand_home(base), (*above, path))
    _fill_secrets(values)
    _check_shape(path, values)
    return [*chain, ConfigFile(str(path), values)]


def _check_shape(path: Path, values: dict[str, Any]) -> None:
    """Refuse keys and sections that the parser fails on; drop a section whose keys are all commented out."""
    for key in list(values):
        if key in ("config", "help", "print_config"):
            raise UserError(f"{key} in {path} is an option of the command line: a config builds on others by `base`")
        if key in SECTIONS and values[key] is None:
            del values[key]
        elif key in SECTIONS and not isinstance(values[key], dict):
            line = (locate(path, [key]) or (1,))[0]
            raise UserError(f"{key} in {path}, line {line} must hold `key: value` lines, got {one_line(values[key])}")
    for name, value in _walk(values):
        if name.rsplit(".", 1)[-1] == "class_path" and not (isinstance(value, str) and value):
            line = (locate(path, name.split("."), str(value)) or (1,))[0]
            raise UserError(f"{name} in {path}, line {line} must name a class, got {one_line(value)}")


def read_config(path: str | Path, named_by: Path | None = None) -> dict[str, Any]:
    """Return the keys and values of a config or sweep file.

    Args:
        path: the file.
        named_by: the file that names it, for the message where it is missing.

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
        raise UserError(f"config file {path} must hold `key: value` lines, found a {type(values).__name__}")
    return values


SECRETS_VARIABLE = "MM_LIGHTNING_SECRETS"
"""The environment variable by which `mm sweep` hands its runs what their config.yaml hides: JSON, by dotted key."""


def export_secrets(configs: Iterable[dict[str, Any]]) -> None:
    """Let processes that are started from now on find the secrets that the files of these configs do not hold.

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
    """Put what another process of this program has handed on in the place of what is hidden."""
    for key, value in json.loads(os.environ.get(SECRETS_VARIABLE, "{}")).items():
        *above, last = key.split(".")
        section: Any = values
        for name in above:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section and HIDDEN in json.dumps(section[last], default=str):
            section[last] = value


def base_names(path: Path, key: str, names: Any) -> list[str]:
    """Return the files that a key of a file names, one or a list of them.

    Raises:
        UserError: they are no texts.
    """
    listed = names if isinstance(names, list) else [names]
    if not listed or any(not isinstance(name, str) or not name.strip() or "\0" in name for name in listed):
        line = f", line {found[0]}" if (found := locate(path, key.split("."))) else ""
        raise UserError(f"{key} in {path}{line} must be the name of a file or a list of names, got {one_line(names)}")
    return listed


def flatten_config(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what lies in nested mappings of a config, each with its dotted name; weights of data sets stay together."""
    if not isinstance(values, dict) or name == "data.path":
        yield name, values
        return
    for key, value in values.items():
        yield from flatten_config(value, f"{name}.{key}" if name else str(key))


def split_configs(args: list[str]) -> tuple[list[str], list[str]]:
    """Split command-line arguments into the values of `--config` and all others.

    Whatever the order on the command line, configs are read first and single options win over them.
    """
    configs, others = [], []
    rest = iter(args)
    for arg in rest:
        if arg in ("--config", "-c"):
            value = next(rest, None)
            if value is None:
                raise UserError("--config needs a file, as in --config configs/quickstart.yaml")
            configs.append(accept(Place, value, "--config"))
        elif arg.startswith("--config="):
            configs.append(accept(Place, arg.removeprefix("--config="), "--config"))
        else:
            others.append(arg)
    return configs, others


def explain_parser_error(message: str, files: list[ConfigFile], known: list[str], options: Sequence[str] = ()) -> str:
    """Return a parser's message as one line that names the key, its file and the nearest key that exists.

    Args:
        message: what jsonargparse said.
        files: the config files that were read, in order.
        known: the dotted names of all options.
        options: the rest of the command line, whose values win over those of files.
    """
    message = " ".join(message.split())
    typed = [_short_name(option.removeprefix("--").partition("=")[0]) for option in options]
    wrong_class = re.search(r"class_path '([\w.]+)': (.+?)(?= - (?:Expected|Not a|Problem)|$)", message)
    if wrong_class and not re.match(
        r"(?:No module named|Parser key|Option|Group|Validation failed|Unknown|Key) ", wrong_class[2]
    ):
        key = re.search(r'Parser key "([\w.]+)"', message)
        owner, text = wrong_class[1].rsplit(".", 1)[-1], wrong_class[2].rstrip(".")
        if missing := re.fullmatch(r"the following arguments are required: (.+)", text):
            text = f"needs {missing[1]}, in init_args"
        place = f"config key {key[1]}{_where(key[1], files)}: " if key else ""
        return f"{place}{owner} {text}" if missing else f"{place}{owner}: {text}"
    if found := re.search(r"unrecognized arguments: --(no_)?([\w.\-]+)", message):
        return _unknown_key_message("option --", found[2], known, "", "", known)
    if found := re.search(r"class_path '([\w.]+)': Option '([\w.]+)' is not accepted", message):
        key, owner = found[2], found[1].rsplit(".", 1)[-1]
        return _unknown_key_message("config key ", key, _parameters(found[1]), _where(key, files), f" of {owner}")
    if found := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        key = f"{found[1]}.{found[2]}"
    elif found := re.search(r"(?:Option|does not accept option) '([\w.]+)'", message):
        key = found[1]
    elif found := re.search(r'Parser key "([\w.]+)":.* dot import path string: (\S+)', message):
        return f"config key {found[1]}: there is no class {found[2]} for it{_where(found[1], files)}"
    elif found := re.search(r"Parser key \"([\w.]+)\":.* Given value: \{'init_args': ", message):
        start = f"config key {found[1]}{_where(found[1], files)} has init_args, but nothing says of which class"
        return f"{start}: name it as {found[1]}.class_path, or put the config that does so before"
    elif wrong := wrong_value(message):
        return _wrong_value_message(*wrong, files, typed)
    elif found := re.search(r"class_path '([\w.]+)': No module named", message):
        place = _locate("class_path", files, found[1])
        return f"there is no class {found[1]}" + (f", which {place[0]} names in line {place[1]}" if place else "")
    elif found := re.search(r'^(?:Spaces not allowed in keys|Empty nested key): "(.*)"', message):
        return f'unknown config key "{found[1]}"{_where(found[1], files)}: `--print_config` shows every key'
    elif found := re.search(r"arguments are required: (.+)", message):
        missing = re.sub(r"\b(fit|validate|test|predict)\.", "", found[1])
        return f"nothing says what {missing} is: name a config, as in --config configs/quickstart.yaml"
    elif found := re.search(r"unrecognized arguments: (\S+\.ya?ml)\b", message):
        return f"{found[1]} belongs to no option: did you mean --config {found[1]}?"
    else:
        return message.replace("Parser key ", "config key ")
    parts = key.split(".")
    depth = next((n for n in range(1, len(parts) + 1) if not _is_prefix(parts[:n], known)), len(parts))
    key = ".".join(parts[:depth])
    siblings = sorted({".".join(name.split(".")[:depth]) for name in known if name.count(".") >= depth - 1})
    return _unknown_key_message("config key ", key, siblings, _where(key, files), "", known)


def _unknown_key_message(
    kind: str, key: str, known: list[str], where: str, owner: str, options: Sequence[str] = ()
) -> str:
    meant = synonym(key, options)
    near = [meant] if meant else [name for name in known if name.startswith(key)]
    near = near or [name for name in [nearest(key, known)] if name]
    if not near:  # right name, wrong section
        near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]][:1]
    prefix = "--" if kind.endswith("--") else ""
    hint = f"did you mean {prefix}{near[0]}?" if near else "`--print_config` shows every key"
    if key.rsplit(".", 1)[-1] in ("optimizer", "optim") and not owner:
        hint = "it is AdamW, of model.learning_rate, model.betas and model.weight_decay"
    return f"unknown {kind}{key}{owner}{where}: {hint}"


def _is_prefix(parts: list[str], known: list[str]) -> bool:
    name = ".".join(parts)
    return any(option == name or option.startswith(name + ".") for option in known)


def _parameters(class_path: str) -> list[str]:
    """The names that a class takes, found without failing on one that cannot be imported."""
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    cls = getattr(__import__(module, fromlist=[name]), name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "x", fail_untyped=False)
    names = [option.dest.removeprefix("x.") for option in parser_options(parser) if option.dest.startswith("x.")]
    return names or list(inspect.signature(cls).parameters)


def _where(key: str, files: list[ConfigFile]) -> str:
    """Return " in FILE, line N" for the last file that has a key of this dotted name, else ""."""
    place = _locate(key, files, None)
    return f" in {place[0]}, line {place[1]}" if place else ""


def _locate(key: str, files: list[ConfigFile], value: str | None) -> tuple[str, int, str] | None:
    """Return file, line and value as written of the last file that has a key of this dotted name."""
    for file in reversed(files):
        for name, _ in _walk(file.values):
            if _short_name(name) == _short_name(key) or _short_name(name).endswith("." + _short_name(key)):
                line, written = locate(file.path, name.rstrip("+").split("."), value) or (1, "")
                return file.path, line, written
    return None


def _wrong_value_message(key: str, kind: str, got: str, files: list[ConfigFile], typed: list[str]) -> str:
    """Return the message for a value that a key does not take; where quotes would make it a text, it says so."""
    place = None if _short_name(key) in typed else _locate(key, files, got)
    if place is None:
        return f"config key {key} takes {kind}, got {got}"
    path, line, written = place
    written = written or ("nothing" if got == "None" else got)
    hint = ""
    if "a text" in kind and written == "nothing":
        hint = ": give it one, or leave the key out"
    elif ("a text" in kind or "texts" in kind) and re.fullmatch(r"True|False|None|[-+.\w]+", got):
        hint = f': put it in quotes, "{written}"'
    return f"config key {key} in {path}, line {line} takes {kind}, got {written}{hint}"


def _short_name(name: str) -> str:
    """A dotted name as it may be typed: model.network.dim for model.network.init_args.dim."""
    return name.replace("init_args.", "").rstrip("+")


def _walk(values: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted names of all keys of nested mappings and lists, with their values."""
    items = values.items() if isinstance(values, Mapping) else ()
    for key, value in items:
        name = f"{above}{key}"
        yield name, value
        yield from _walk(value, f"{name}.")
    if isinstance(values, list):
        for value in values:
            yield from _walk(value, above)

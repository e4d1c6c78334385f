"""One-line explanations of what a config or an option gets wrong: the key, its file and line, and the nearest key."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence

from mm_lightning.errors import UserError
from mm_lightning.options import nearest, wrong_value
from mm_lightning.shipped import resolve_config
from mm_lightning.synonyms import synonym
from mm_lightning.training.config_files import ConfigFile, named_values, option_texts
from mm_lightning.user_classes import load_class, where_modules_are_found
from mm_lightning.yaml_text import locate

CLASSES = {
    "model.network": ("mm_lightning.networks",),
    "trainer.callbacks": ("mm_lightning.callbacks", "lightning.pytorch.callbacks"),
    "trainer.logger": ("lightning.pytorch.loggers",),
    "trainer.strategy": ("lightning.pytorch.strategies",),
    "data.generate": (),
}
"""Modules whose classes a key takes by their short names."""


def explain_parser_error(message: str, files: list[ConfigFile], known: list[str], options: Sequence[str] = ()) -> str:
    """Return a parser's message as one line that names the key, its file and the nearest key that exists.

    Args:
        message: jsonargparse's error.
        files: the config files that were read, in order.
        known: the dotted names of all options.
        options: the rest of the command line, whose values win over those of files.
    """
    message = " ".join(message.split())
    typed = [_short_name(name) for name in option_texts(options)]
    if line := _wrong_class(message, files):
        return line
    if match := re.search(r"unrecognized arguments: --(no_)?([\w.\-]+)", message):
        return _unknown_key_message("option --", match[2], known, "", "", known)
    if match := re.search(r"class_path '([\w.]+)': Option '([\w.]+)' is not accepted", message):
        key, owner = match[2], match[1].rsplit(".", 1)[-1]
        return _unknown_key_message("config key ", key, _parameters(match[1]), _where(key, files), f" of {owner}")
    if match := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        key = f"{match[1]}.{match[2]}"
    elif match := re.search(r"(?:Option|does not accept option) '([\w.]+)'", message):
        key = match[1]
    elif match := re.search(r'Parser key "([\w.]+)":.* dot import path string: (\S+)', message):
        return _unknown_class_message(match[1], match[2], "" if match[1] in typed else _where(match[1], files))
    elif match := re.search(r"Parser key \"([\w.]+)\":.* Given value: \{'init_args': ", message):
        start = f"config key {match[1]}{_where(match[1], files)} has init_args, but nothing says of which class"
        return f"{start}: name it as {match[1]}.class_path, or put the config that does so before"
    elif wrong := wrong_value(message):
        return _wrong_value_message(*wrong, files, typed)
    elif match := re.search(r"No module named '([\w.]+)'", message):
        return _missing_module(match[1], files)
    elif match := re.search(r'^(?:Spaces not allowed in keys|Empty nested key): "(.*)"', message):
        return f'unknown config key "{match[1]}"{_where(match[1], files)}: `--print_config` shows every key'
    elif match := re.search(r"arguments are required: (.+)", message):
        options = match[1].replace("model.", "--model.").replace("data.", "--data.")
        return f"not set: {match[1]}: name a config, as in --config configs/quickstart.yaml, or give {options}"
    elif match := re.search(r"unrecognized arguments: (\S+)", message):
        return _stray_word_message(match[1])
    else:
        return message.replace("Parser key ", "config key ")
    parts = key.split(".")
    prefixes = [".".join(parts[: n + 1]) for n in range(len(parts))]
    key = next((name for name in prefixes if not any(f"{option}.".startswith(f"{name}.") for option in known)), key)
    depth = key.count(".") + 1
    siblings = sorted({".".join(name.split(".")[:depth]) for name in known if name.count(".") >= depth - 1})
    return _unknown_key_message("config key ", key, siblings, _where(key, files), "", known)


def _stray_word_message(word: str) -> str:
    """Return the message for a word that belongs to no option: a config, a setting without --, or a path."""
    name, equals, _ = word.partition("=")
    if equals and "." in name:
        meant = f"--{word}"
    elif word.endswith((".yaml", ".yml")) or resolve_config(word).is_file():
        meant = f"--config {word}"
    else:
        return f"{word} belongs to no option: a value follows the name of its option, as in --config {word}"
    return f"{word} belongs to no option: did you mean {meant}?"


def _unknown_class_message(key: str, name: str, where: str) -> str:
    """Return the message for a class that does not exist, with the name that was probably meant."""
    start = f"config key {key}{where}: there is no class {name}"
    if "." in name:
        return f"{start}: {where_modules_are_found(name)}"
    known = [
        word for module in CLASSES.get(key, ()) for word in vars(importlib.import_module(module)) if word[0].isupper()
    ]
    if key == "model.network":  # named by their configs
        known = [word for word in known if word.endswith("Config") and word != "NetworkConfig"]
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(known)}" if known else "name it as module.Class"
    return f"{start}: {hint}"


def _missing_module(module: str, files: list[ConfigFile]) -> str:
    """Return the message for a module that cannot be imported, with the class that a file names of it, if one does."""
    for file in reversed(files):
        for name, value in named_values(file.values):
            if name.endswith("class_path") and f"{value}.".startswith(f"{module}."):
                line, _ = locate(file.path, name.split("."), value)
                start = f"there is no class {value}, which {file.path} names in line {line}"
                return f"{start}: {where_modules_are_found(value)}"
    return f"there is no module {module}: {where_modules_are_found(module)}"


def broken_module(files: list[ConfigFile], options: Sequence[str]) -> UserError | None:
    """Return what is wrong with the module of a class that files or options name, if it fails while it is imported."""
    values = [*(pair for file in files for pair in named_values(file.values)), *option_texts(options).items()]
    for name, value in values:
        if (name.endswith("class_path") or name.rstrip("+") in CLASSES) and isinstance(value, str) and "." in value:
            try:
                load_class(value, object)
            except UserError as error:
                if where_modules_are_found(value) not in str(error):
                    return error
    return None


def _wrong_class(message: str, files: list[ConfigFile]) -> str | None:
    """Return the message for a class that refuses its arguments in its own words; None for any other message."""
    refusal = re.search(r"class_path '([\w.]+)': (.+?)(?= - (?:Expected|Not a|Problem)|$)", message)
    if not refusal or re.match(
        r"(?:No module named|Parser key|Option|Group|Validation failed|Unknown|Key) ", refusal[2]
    ):
        return None
    owner, text = refusal[1].rsplit(".", 1)[-1], refusal[2].rstrip(".")
    key = re.search(r'Parser key "([\w.]+)"', message)
    place = f"config key {key[1]}{_where(key[1], files)}: " if key else ""
    if missing := re.fullmatch(r"the following arguments are required: (.+)", text):
        return f"{place}{owner} needs {missing[1]}, in init_args"
    return f"{place}{owner}: {text}"


def _unknown_key_message(
    kind: str, key: str, known: list[str], where: str, owner: str, options: Sequence[str] = ()
) -> str:
    longer = next((name for name in known if name.startswith(key)), None)
    elsewhere = next((name for name in known if name.split(".")[-1] == key.split(".")[-1]), None)  # another section
    begun = longer if "." in key else None  # trainer.device, of which only trainer.devices begins so
    meant = begun or synonym(key, options) or longer or nearest(key, known) or elsewhere
    prefix = "--" if kind.endswith("--") else ""
    hint = f"did you mean {prefix}{meant}?" if meant else "`--print_config` shows every key"
    return f"unknown {kind}{key}{owner}{where}: {hint}"


def _parameters(class_path: str) -> list[str]:
    """Return the names of a class's arguments, without failing on a type that cannot be imported."""
    from jsonargparse import ArgumentParser

    cls = load_class(class_path, object)
    names = ArgumentParser(exit_on_error=False).add_class_arguments(cls, "x", fail_untyped=False)
    return [name.removeprefix("x.") for name in names] or list(inspect.signature(cls).parameters)


def _where(key: str, files: list[ConfigFile]) -> str:
    """Return " in FILE, line N" for the last file that has a key of this dotted name, else ""."""
    place = _locate(key, files, None)
    return f" in {place[0]}, line {place[1]}" if place else ""


def _locate(key: str, files: list[ConfigFile], value: str | None) -> tuple[str, int, str] | None:
    """Return file, line and value as written of the last file that has a key of this dotted name."""
    for file in reversed(files):
        for name, _ in named_values(file.values):
            if _short_name(name) == _short_name(key) or _short_name(name).endswith("." + _short_name(key)):
                return file.path, *locate(file.path, name.rstrip("+").split("."), value)
    return None


def _wrong_value_message(key: str, kind: str, got: str, files: list[ConfigFile], typed: list[str]) -> str:
    """Return the message for an invalid value of a key, with a hint where quotes would make it a string."""
    place = None if _short_name(key) in typed else _locate(key, files, got)
    if place is None:
        return f"config key {key} takes {kind}, got {got}"
    path, line, written = place
    written = written or ("nothing" if got == "None" else got)
    hint = ""
    if "a text" in kind and written == "nothing":
        hint = ": give it one, or leave the key out"
    elif ("a text" in kind or "texts" in kind) and re.fullmatch(r"[-+.\w]+", written):
        hint = f': put it in quotes, "{written}"'
    return f"config key {key} in {path}, line {line} takes {kind}, got {written}{hint}"


def _short_name(name: str) -> str:
    """Return the short form of a dotted name: model.network.dim for model.network.init_args.dim."""
    return name.replace("init_args.", "").rstrip("+")

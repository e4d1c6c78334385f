"""One-line explanations of what a config or an option gets wrong: the key, its file and line, and the nearest key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from mm_lightning.options import nearest, wrong_value
from mm_lightning.synonyms import synonym
from mm_lightning.training.config_files import ConfigFile, named_values, option_texts
from mm_lightning.user_classes import where_modules_are_found
from mm_lightning.yaml_text import locate


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
        return f"config key {match[1]}: there is no class {match[2]} for it{_where(match[1], files)}"
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
    elif match := re.search(r"unrecognized arguments: (\S+\.ya?ml)\b", message):
        return f"{match[1]} belongs to no option: did you mean --config {match[1]}?"
    else:
        return message.replace("Parser key ", "config key ")
    parts = key.split(".")
    depth = next((n for n in range(1, len(parts) + 1) if not _is_prefix(parts[:n], known)), len(parts))
    key = ".".join(parts[:depth])
    siblings = sorted({".".join(name.split(".")[:depth]) for name in known if name.count(".") >= depth - 1})
    return _unknown_key_message("config key ", key, siblings, _where(key, files), "", known)


def _missing_module(module: str, files: list[ConfigFile]) -> str:
    """Return the message for a module that cannot be imported, with the class that a file names of it, if one does."""
    for file in reversed(files):
        for name, value in named_values(file.values):
            if name.endswith("class_path") and f"{value}.".startswith(f"{module}."):
                line, _ = locate(file.path, name.split("."), value)
                start = f"there is no class {value}, which {file.path} names in line {line}"
                return f"{start}: {where_modules_are_found(value)}"
    return f"there is no module {module}: {where_modules_are_found(module)}"


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
    meant = synonym(key, options) or longer or nearest(key, known) or elsewhere
    prefix = "--" if kind.endswith("--") else ""
    hint = f"did you mean {prefix}{meant}?" if meant else "`--print_config` shows every key"
    return f"unknown {kind}{key}{owner}{where}: {hint}"


def _is_prefix(parts: list[str], known: list[str]) -> bool:
    name = ".".join(parts)
    return any(option == name or option.startswith(name + ".") for option in known)


def _parameters(class_path: str) -> list[str]:
    """Return the names of a class's arguments, without failing on a type that cannot be imported."""
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    cls = getattr(__import__(module, fromlist=[name]), name)
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

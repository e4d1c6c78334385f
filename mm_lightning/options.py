"""The words of a command line: which of them belong together, and what is wrong with one that does not fit."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from mm_lightning.errors import UserError
from mm_lightning.synonyms import synonym


def option_classes(function: Callable[..., Any]) -> list[type]:
    """Return the dataclasses whose fields a function takes: `**options: Annotated[Any, Options]`."""
    types = typing.get_type_hints(function, include_extras=True).values()
    named = [typing.get_args(hint) for hint in types if typing.get_origin(hint) is typing.Annotated]
    return [options for kind, options, *_ in named if kind is Any]


def type_words(function: Callable[..., Any]) -> dict[str, str]:
    """Return the types of a function's parameters as text, without what they state: `bool`, `list[int] | None`."""
    plain = typing.get_type_hints(function)
    parameters = {name: plain.get(name, Any) for name in inspect.signature(function).parameters}
    for options in option_classes(function):
        parameters = typing.get_type_hints(options) | parameters
    return {name: kind.__name__ if type(kind) is type else str(kind) for name, kind in parameters.items()}


def nearest(name: str, known: Iterable[str], likeness: float = 0.5) -> str | None:
    """Return the name that was probably meant; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, likeness)), None)


class OptionParser(argparse.ArgumentParser):
    """A parser of options that takes others too, and says in one line what is wrong."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse its options; a misspelled one is not left to the others.

        Raises:
            UserError: an option is not right.
        """
        values, others = super().parse_known_args(args, namespace)
        known = [f"--{name}" for name in vars(values)]
        for word in others:
            if word.startswith("--") and (near := nearest(word.split("=")[0], known, 0.85)):
                raise UserError(f"{self.prog} has no option {word.split('=')[0]}: did you mean {near}?")
        return values, others

    def error(self, message: str) -> NoReturn:
        """Raise a UserError."""
        message = " ".join(message.split())
        if match := re.fullmatch(r"argument (--\w+): invalid (int|float) value: (.*)", message):
            raise UserError(f"{match[1]} takes {KINDS[match[2]][0]}, got {match[3]}")
        if match := re.fullmatch(r"argument (--\w+): expected one argument", message):
            raise UserError(f"{match[1]} needs a value (one that begins with -: {match[1]}=-x)")
        raise UserError(message.removeprefix("argument "))


def name_words(function: Callable[..., Any], args: list[str]) -> list[str]:
    """Give the plain words that options begin with to a command's first parameter: `mm data inspect FOLDER`."""
    words = next((n for n, arg in enumerate(args) if arg.startswith("-")), len(args))
    if words == 0:
        return args
    first = next(iter(inspect.signature(function).parameters.values()))
    if words > 1 and "list" not in type_words(function)[first.name]:
        raise UserError(f"{args[1]!r} is one word too many after {args[0]!r}: name other values, as in --option value")
    return word_lists(function, [f"--{first.name}", *args[:words]]) + args[words:]


def flags(function: Callable[..., Any], args: list[str]) -> list[str]:
    """Let an option that is yes or no stand alone: `--dry_run` for `--dry_run true`."""
    switches = {f"--{name}" for name, kind in type_words(function).items() if kind in ("bool", "bool | None")}
    following = [*args, "--"][1:]
    return [
        f"{arg}=true" if arg in switches and after.startswith("--") else arg
        for arg, after in zip(args, following, strict=True)
    ]


def word_lists(function: Callable[..., Any], args: list[str]) -> list[str]:
    """Let an option that is a list take words: `--names a b` for `--names '["a", "b"]'`, `--layers 0 5`; given again,
    as in `--stop A --stop B`, it is added to."""
    kinds = {f"--{name}": kind for name, kind in type_words(function).items()}
    arguments: list[str] = []
    given: set[str] = set()
    at = 0
    while at < len(args):
        end = next((n for n in range(at + 1, len(args)) if args[n].startswith("--")), len(args))
        option, *attached = args[at].split("=", 1)
        words, kind = [*attached, *args[at + 1 : end]], kinds.get(option, "")
        if "list" in kind and words and not words[0].startswith("["):
            numbers = re.search(r"list\[(int|float)\]", kind)
            words = ["[" + ", ".join(words) + "]" if numbers else json.dumps(words)]
        if "list" in kind and words:
            name = f"{option}+" if option in given else option  # the parser's way to add to a list
            arguments += [f"{name}={words[0]}", *words[1:]]
            given.add(option)
        else:
            arguments += args[at:end]
        at = end
    return arguments


def option_error(message: str, name: str, options: Iterable[str]) -> str:
    """Return one line for what the parser says is wrong with a command's options.

    Args:
        message: the parser's message.
        name: the command.
        options: the names of its options.
    """
    message = " ".join(message.split())
    if match := re.search(r"unrecognized arguments: --([\w.\-]+)", message):
        options = list(options)
        meant = synonym(match[1], options)
        near = meant or nearest(match[1].replace("-", "_"), options, 0.4)
        hint = f"did you mean --{near}?" if near else f"`mm {name} --help` lists them"
        return f"mm {name} has no option --{match[1]}: {hint}"
    if match := re.search(r"unrecognized arguments: (.+)", message):
        return f"{name}: {match[1]!r} belongs to no option: quote a value that holds spaces"
    if match := re.search(r"arguments are required: (.+)", message):
        missing = ", ".join(f"--{option}" for option in match[1].split(", "))
        return f"{name}: required, but missing: {missing}. `mm {name} --help` explains every option"
    if match := re.search(r"argument (--\w+)\S*: expected (?:at least )?one argument", message):
        return f"{name}: {match[1]} needs a value (one that begins with -: {match[1]}=-x)"
    wrong = wrong_value(message)
    return f"{name}: --{wrong[0]} takes {wrong[1]}, got {wrong[2]}" if wrong else f"{name}: {message}"


def wrong_value(message: str) -> tuple[str, str, str] | None:
    """Return the key, what it takes in words and what it got, where the parser says that a value is wrong."""
    if "arguments are required: " in message or "No module named " in message:
        return None
    outer, *inner = re.split(r" (?:- )?Problem with given class_path '[\w.]+': ", message, maxsplit=1)
    text = next((part for part in inner if part.startswith("Parser key ")), message)
    kind = re.search(r"Expected an? (.+?)\. Got value: (.*?)(?= - (?:Expected|Not a) |$)", text)
    kind = re.search(r"Subtypes: \[(.+?)\] Errors: .*Given value: (.*)$", text) or kind
    keys = [match[1] for part in (outer, text) if (match := re.search(r'Parser key "([\w.]+)"', part))]
    keys = list(dict.fromkeys(keys))
    takes = kind and kind_of(kind[1])
    return (".".join(keys), takes, kind[2]) if keys and kind and takes else None


KINDS = {
    "bool": ("true or false", ""),
    "int": ("a whole number", "whole numbers"),
    "float": ("a number", "numbers"),
    "str": ("a text", "texts"),
    "datetime.timedelta": ("a time, as in 00:12:00:00", ""),
    "pathlib.Path": ("a text", "texts"),
    "tuple": ("a list, as in [a, b]", ""),
    "dict": ("keys and values, as in {key: value}", ""),
    "list": ("a list", ""),
}


def kind_of(types: str) -> str:
    """Return what an option takes, in words, from the types that the parser writes; "" if there are no words for it."""
    members = _members(types)
    kinds: list[str] = []
    choices: list[str] = []
    for member in members:
        outer, _, inner = member.partition("[")
        several = outer.rsplit(".", 1)[-1] in ("list", "List", "Iterable", "Sequence")
        name = _plain_type(inner.rstrip("]") if several and inner else outer)
        if literal := re.search(r"Literal\[(.+?)\]", member):
            choices += literal[1].replace("'", "").split(", ")
            kinds.append(f"{'some' if several else 'one'} of ")
        elif name in KINDS:
            kinds.append(KINDS[name][several and inner != ""])
        elif member.startswith("<class") and name not in ("NoneType", "collections.abc.Iterable"):
            kinds.append("a class")
        elif several and "." in inner:
            kinds.append("a list of classes")
    if choices:
        if "<class 'bool'>" in members:
            choices = ["true", "false", *choices]
            kinds.remove("true or false")
        each = ", ".join(dict.fromkeys(choices))
        kinds = [f"{word}{each}" if word.endswith(" of ") else word for word in kinds]
    kinds = [word for word in dict.fromkeys(kinds) if word and not (word == "a whole number" and "a number" in kinds)]
    return " or ".join([", ".join(kinds[:-1]), *kinds[-1:]] if len(kinds) > 1 else kinds)


def _members(types: str) -> list[str]:
    """Return the members of a union that the parser writes, split at the commas outside brackets."""
    members, depth = [""], 0
    for letter in types:
        depth += (letter in "[<") - (letter in "]>")
        if letter == "," and depth == 0:
            members.append("")
        else:
            members[-1] += letter
    return [member.strip() for member in members]


def _plain_type(name: str) -> str:
    """Return the name of a type that the parser writes as `<class 'int'>`."""
    return name.removeprefix("<class '").removesuffix("'>").strip()

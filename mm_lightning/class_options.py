"""Options of a command that are the fields of dataclasses: of evaluation tasks, of data generators."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mm_lightning.errors import UserError

NEEDED = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        hint: its type, with the range that it states.
        default: the value where it is not given; NEEDED where it must be.
        help: what `--help` says.
    """

    hint: Any
    default: Any
    help: str


def field_help(kind: type, name: str) -> str:
    """Return the description of a dataclass's field, from the docstring of the class or of one it is derived from."""
    return next((texts[name] for base in kind.__mro__ if name in (texts := _described(base))), "")


@functools.cache
def _described(kind: type) -> dict[str, str]:
    """Return what a class's own docstring says of its fields."""
    import docstring_parser

    parameters = docstring_parser.parse(kind.__dict__.get("__doc__") or "").params
    return {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in parameters}


def field_default(field: dataclasses.Field) -> Any:
    """Return the default of a dataclass's field, NEEDED where there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return NEEDED if field.default is dataclasses.MISSING else field.default


def class_options(
    named_by: str,
    options: Callable[[Sequence[str]], dict[str, Option]],
    title: str,
    helped: Callable[[Sequence[str]], dict[str, Option]] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command whose `**settings` are the fields of classes that one of its options names.

    Args:
        named_by: the option.
        options: function of the names it is given, the options that these classes add; of no names, those there
            always are.
        title: of these options in the help.
        helped: the same function for `--help`, where that shows fewer; `--help all` shows the options of `options`.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def named(words: Sequence[str], helping: bool) -> Callable[..., None]:
            chosen = (helped if helping and helped else options)(_given(named_by, words))
            return command if chosen == always else with_options(function, chosen, title)

        always = options(())
        command = with_options(function, always, title)
        command.for_words = named  # type: ignore[attr-defined]
        return command

    return decorate


def with_named_classes(command: Callable[..., None], words: Sequence[str], helping: bool) -> Callable[..., None]:
    """Return a command with the options of the classes that a command line names; with those that `--help` shows, where
    it is for help."""
    return getattr(command, "for_words", lambda *_: command)(words, helping)


def added_options(command: Callable[..., None]) -> tuple[str, str] | None:
    """Return the first option that classes add to a command, and the title of these; None where there are none."""
    return getattr(command, "added", None)


def _given(option: str, words: Iterable[str]) -> list[str]:
    """Return the names in the values of an option, however its list is written."""
    current, names = "", []
    for word in words:
        if word.startswith("--"):
            current, _, word = word.removeprefix("--").partition("=")
        if current.rstrip("+") == option:
            names += re.findall(r"[\w.]+", word)
    return names


def with_options(function: Callable[..., None], options: dict[str, Option], title: str) -> Callable[..., None]:
    """Return a function whose signature and docstring state further options, which it passes on."""

    @functools.wraps(function)
    def command(**values: Any) -> None:
        function(**values)

    signature = inspect.signature(function)
    own = {name: p for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
    if clash := sorted(own.keys() & options.keys()):
        raise UserError(
            f"{', '.join(clash)}: an option of the command has this name too: rename the field of the class"
        )
    stated = typing.get_type_hints(function, include_extras=True)
    hints = {name: stated[name] for name in own} | {name: option.hint for name, option in options.items()}
    command.__annotations__ = hints
    del command.__wrapped__  # type: ignore[attr-defined]
    plain = typing.get_type_hints(command)
    parameters = [p.replace(kind=p.KEYWORD_ONLY, annotation=plain[name]) for name, p in own.items()]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=plain[name])
        for name, option in options.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    lines = [f"    {name}: {option.help}" for name, option in options.items()]
    command.__doc__ = "\n".join([inspect.getdoc(function) or "", *lines])
    first = next(iter(options), None)
    command.added = first and (first, title)  # type: ignore[attr-defined]
    return command

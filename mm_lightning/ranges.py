"""The types of options that take less than all numbers or texts, stated in a signature: `top_k: Count | None`.

What a type states is checked wherever a value arrives: on a command line, in YAML and in Python; `--help` shows it.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypeVar, Union

from mm_lightning.errors import UserError
from mm_lightning.options import option_classes

MOST = 10**12
"""The largest whole number that an option takes, where its range does not say."""

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """The range of a number, which is finite whatever it says.

    Args:
        least: the smallest.
        most: the largest; None for :data:`MOST` whole, or any finite number.
        above: whether it must be above `least`.
        below: whether it must be below `most`.
    """

    least: float
    most: float | None = None
    above: bool = False
    below: bool = False

    def words(self) -> str:
        """Return the range in words: `at least 1 and at most 8`."""
        low = f"{'above' if self.above else 'at least'} {self.least:,}"
        return low if self.most is None else f"{low} and {'below' if self.below else 'at most'} {self.most:,}"

    def accept(self, kind: type, value: Any) -> Any:
        """Return a number of this kind; raise ValueError with what it must be."""
        whole = kind is int
        if whole and self.most is None and isinstance(value, int) and value > MOST:
            return replace(self, most=MOST).accept(kind, value)
        if isinstance(value, int if whole else (int, float)) and not isinstance(value, bool):
            low = value > self.least if self.above else value >= self.least
            high = value < math.inf if self.most is None else value < self.most if self.below else value <= self.most
            if low and high:  # no comparison holds for NaN
                return value
        raise ValueError(f"a {'whole ' if whole else ''}number {'' if self.above else 'of '}{self.words()}")


@dataclass(frozen=True)
class Named:
    """A text that names something, and so is not empty.

    Args:
        place: whether it is a file or folder, in which `~` is the home folder.
        blank: whether it may be empty: a text that names nothing.
        utf8: whether the name must be UTF-8, because a library that takes no other writes there.
    """

    place: bool = False
    blank: bool = False
    utf8: bool = False

    def accept(self, kind: type, value: Any) -> Any:
        """Return the text; raise ValueError with what it must be."""
        if not isinstance(value, str | os.PathLike) or not (self.blank or os.fspath(value).strip()):
            raise ValueError(
                "the name of a file or folder" if self.place else f"a text{'' if self.blank else ' that is not empty'}"
            )
        text = os.fspath(value)
        if (self.utf8 or not self.place) and re.search(r"[\ud800-\udfff]", text):
            raise ValueError(f"a {'name' if self.place else 'text'} in UTF-8")
        if not self.place:
            return value
        if "\0" in text or ("://" not in text and any(len(os.fsencode(part)) > 255 for part in text.split("/"))):
            raise ValueError("a name that files can have: of 255 bytes at most between two /, none of them zero")
        if text.startswith("~") and expand_home(text) == text:
            raise ValueError(f"a name in a home folder that there is (or ./{text}, for a file of that name)")
        return expand_home(value)


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Few = Annotated[int, Range(1, 1024)]
"""Processes, threads and what else a machine has few of."""
Workers = Annotated[int, Range(0, 1024)]
AtLeastTwo = Annotated[int, Range(2)]
DocumentBytes = Annotated[int, Range(1, 2**31 - 1)]
VocabSize = Annotated[int, Range(258, 2**24)]
"""The vocabulary of a tokenizer that is trained: 256 bytes and 2 special tokens at least."""
Budget = Annotated[int, Range(16)]
"""Pairs that a long-term memory reads one by one: one cluster at least."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, above=True)]
Temperature = Annotated[float, Range(0, 1000)]
Penalty = Annotated[float, Range(0, 1000, above=True)]
Portion = Annotated[float, Range(0, 1, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Part = Annotated[float, Range(0, 1, below=True)]
Name = Annotated[str, Named()]
Text = Annotated[str, Named(blank=True)]
Place = Annotated[str, Named(place=True)]
PlainPlace = Annotated[str, Named(place=True, utf8=True)]


def expand_home(value: Any) -> Any:
    """Return a path with the home folder in the place of `~`; other values as they are."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def accept(hint: Any, value: Any, name: str) -> Any:
    """Return a value as its type states it: checked, and with the home folder in the place of `~` in places.

    Args:
        hint: the type; what holds no :class:`Range` or :class:`Named` takes everything.
        value: the value.
        name: of the option, for the message.

    Raises:
        UserError: naming the option, what it takes and what it got.
    """
    if typing.get_origin(hint) is Annotated:
        base, *marks = typing.get_args(hint)
        for mark in marks:
            if isinstance(mark, Range | Named):
                try:
                    value = mark.accept(base, value)
                except ValueError as error:
                    raise UserError(f"{name} takes {error}, got {shown(value)}") from None
        return value
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _of_union(inner, value, name)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            if stated(hint):
                raise UserError(f"{name} takes a list, got {shown(value)}")
            return value
        each = inner if origin is tuple and Ellipsis not in inner else inner[:1] * len(value)
        if not stated(hint) or len(each) != len(value):
            return value
        return type(value)(accept(one, element, name) for one, element in zip(each, value, strict=True))
    if origin is Literal and not any(value == one and type(value) is type(one) for one in inner):
        raise UserError(f"{name} takes one of {', '.join(map(str, inner))}, got {shown(value)}")
    if origin is dict and isinstance(value, dict) and stated(hint):
        return {
            accept(inner[0], key, name): accept(inner[1], element, f"{name}: {key}") for key, element in value.items()
        }
    return value


def _of_union(members: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in members:
        return None
    fitting = [member for member in members if _is_kind(member, value)]
    ranged = [member for member in members if stated(member)]
    if not fitting and not ranged:
        return value
    ranged.sort(key=lambda member: typing.get_origin(member) is not Annotated)  # which say more than lists of them
    return accept((fitting or ranged)[0], value, name)


def _is_kind(hint: Any, value: Any) -> bool:
    """Return whether a value is of the kind that a type is about, whatever its range."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _is_kind(typing.get_args(hint)[0], value)
    if origin is Literal:
        return value in typing.get_args(hint)
    kind = origin or hint
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def stated(hint: Any) -> str:
    """Return the range that a type states, in words for a help text; empty where it states none."""
    for mark in typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ():
        if isinstance(mark, Range):
            return mark.words()
        if isinstance(mark, Named):
            return "any text" if mark.blank else "not empty"
    if typing.get_origin(hint) is Literal:
        return ""
    return next(filter(None, map(stated, typing.get_args(hint))), "")


def state_ranges(options: Iterable[Any], types_by_name: dict[str, Any]) -> None:
    """Add to the help of a parser's options the ranges that their types state."""
    for option in options:
        if (words := stated(types_by_name.get(option.dest))) and not words.endswith(("empty", "text")):
            option.help = f"{(option.help or '').rstrip('.')} [{words}]".strip()


def shown(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value) if not isinstance(value, int | float) or isinstance(value, bool) else str(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text):,} characters)"


@functools.cache
def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's parameters and its option classes, or of a class's fields, with their ranges."""
    try:
        types_by_name = typing.get_type_hints(function, include_extras=True)
    except Exception:  # of a class that is not ours: types for type checkers only, annotations that are no types
        return {}
    for options in option_classes(function):
        types_by_name = hints(options) | types_by_name
    return types_by_name


def checked(prefix: str | None = None) -> Callable[[_F], _F]:
    """Decorate a function or an `__init__` so that it takes only what the types of its parameters state.

    Args:
        prefix: what a message begins with, before the name of the parameter; by default the name of the class.
    """

    def decorate(function: _F) -> _F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            start = f"{type(args[0]).__name__}: " if prefix is None else prefix
            for name, value in bound.arguments.items():
                accept(hints(function).get(name), value, f"{start}{name}")
            return function(*args, **kwargs)

        return typing.cast(_F, run)

    return decorate


def check_fields(instance: Any, prefix: str = "") -> None:
    """Check the fields of a dataclass, from its `__post_init__`, by what their types state.

    Args:
        instance: of the dataclass.
        prefix: what a message begins with, before the name of the field.

    Raises:
        UserError: a field is not what its type states.
    """
    kind: Callable[..., Any] = type(instance)
    stated_here = hints(kind)
    for field in fields(instance):
        if not field.init:  # follows from the others, and may not be set yet
            continue
        accept(stated_here.get(field.name), getattr(instance, field.name), f"{prefix}{field.name}")

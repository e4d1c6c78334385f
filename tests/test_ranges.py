"""What options take: every number of every command and class has a range, every name of a file is one."""

import dataclasses
import functools
import inspect
import math
import re
import typing
from typing import Annotated, Any, Literal

import pytest

from mm_lightning import callbacks, function_command
from mm_lightning.cli import COMMANDS, load, main
from mm_lightning.data import TextDataModule
from mm_lightning.data.facts import FactsConfig
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.regbench import RegBenchConfig
from mm_lightning.errors import UserError
from mm_lightning.evaluation.registry import TASKS, find_task
from mm_lightning.experiments import launch
from mm_lightning.function_command import function_parser
from mm_lightning.inference.sampling import Sampling
from mm_lightning.memory.sublinear.key_clusters import SublinearRead
from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig
from mm_lightning.ranges import (
    MOST,
    Count,
    Name,
    Natural,
    NonNegative,
    Part,
    Place,
    Positive,
    Range,
    accept,
    checked,
    hints,
    stated,
)
from mm_lightning.training import command_options, trainer_options
from mm_lightning.training.module import LanguageModule

FUNCTIONS = [name for name in COMMANDS if name not in ("cost", "launch")]
CLASSES: dict[str, Any] = {
    "model": LanguageModule.__init__,
    "data": TextDataModule.__init__,
    **{kind.__name__: kind for kind in (MemoryMosaicConfig, TransformerConfig, PrepareConfig, RegBenchConfig)},
    **{kind.__name__: kind for kind in (FactsConfig, Sampling, SublinearRead)},
    **{name: kind.__init__ for name, kind in vars(callbacks).items() if isinstance(kind, type)},
    **{name: find_task(name) for name in TASKS},
}
TYPED = {
    **{name: hints(load(COMMANDS[name][0])) for name in FUNCTIONS},
    **{name: hints(kind) for name, kind in CLASSES.items()},
    "trainer": trainer_options.TRAINER_TYPES,
    "fit": command_options.option_types()[""],
    "launch": launch.OPTION_TYPES,
}
FREE = {
    # texts that may be empty, or that have a check of their own
    *("label", "name", "data_hash", "dataset_name"),
    # words that are checked as what they stand for
    *("val_check_interval", "settings", "network"),
}
NEEDED = {"generator": "facts"}
"""Values of options that a command looks up before it reads the others; of others, any word."""
NONSENSE = ["-1", "0", ".nan", ".inf", "-.inf", "1e308", "1" + "0" * 30, "true", "1.5"]


def members(hint: Any) -> list[Any]:
    """The types of a union, of what lists, tuples and mappings hold, or the type itself."""
    if typing.get_origin(hint) in (Annotated, Literal, typing.ClassVar):
        return [hint]
    inner = typing.get_args(hint)
    return [leaf for one in inner for leaf in members(one)] if inner else [hint]


@pytest.mark.parametrize("name", TYPED)
def test_every_number_states_its_range_and_every_text_what_it_names(name):
    for option, hint in TYPED[name].items():
        if option in FREE or option == "return":
            continue
        bare = [one for one in members(hint) if one in (int, float, str)]
        assert not bare, f"{option} of {name} takes any {bare}: use one of mm_lightning/ranges.py"


def numbers(name: str) -> list[tuple[str, Any]]:
    parser = function_parser(name, load(COMMANDS[name][0]))
    found = hints(load(COMMANDS[name][0]))
    names = [action.dest for action in parser._actions if action.option_strings]
    return [
        (option, found[option])
        for option in names
        if option in found and any(isinstance(mark, Range) for one in members(found[option]) for mark in marks(one))
    ]


def marks(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()


def within(hint: Any, value: float) -> bool:
    """Whether a number is in a range that a type states."""
    for one in members(hint):
        for mark in marks(one):
            whole = typing.get_args(one)[0] is int
            if whole and not float(value).is_integer():
                continue
            most = (MOST if whole else math.inf) if mark.most is None else mark.most
            low = value > mark.least if mark.above else value >= mark.least
            if low and (value < most if mark.below or most == math.inf else value <= most):
                return True
    return False


def built_once(name: str, monkeypatch) -> Any:
    """Return the function of a command whose parser, which takes a while to build, is that of all command lines."""
    function = load(COMMANDS[name][0])
    monkeypatch.setattr(function_command, "function_parser", functools.cache(function_parser))
    monkeypatch.setattr(function, "for_words", lambda words, helping: function, raising=False)  # none names classes
    return function


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nonsense_for_a_number_of_a_command_is_refused_in_one_line(name, capsys, monkeypatch):
    """Each option of each command by itself, and each range with all that it leaves out."""
    function = built_once(name, monkeypatch)
    needed = [
        word
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
        for word in (f"--{p.name}", NEEDED.get(p.name, "nowhere"))
    ]
    for option, hint in numbers(name):
        refused = [value for value in NONSENSE if not taken(hint, value)]
        for value in refused[:1] if str(hint) in ASKED else refused:
            assert main([*name.split(), *needed, f"--{option}={value}"]) == 2, (option, value)
            message = capsys.readouterr().err
            assert message.count("\n") == 1, message
            assert re.match(rf"mm: (.*: )?--{option} takes ", message), message
        ASKED.add(str(hint))


ASKED: set[str] = set()
"""Types of options that were given all that they refuse; to what else is of such a type, one is enough."""


def taken(hint: Any, value: str) -> bool:
    """Whether a type takes one of :data:`NONSENSE`."""
    number = {"true": None, ".nan": math.nan, ".inf": math.inf, "-.inf": -math.inf}.get(value, value)
    return number is not None and within(hint, float(number)) and (value != "1.5" or float in kinds(hint))


def kinds(hint: Any) -> set[type]:
    return {typing.get_args(one)[0] for one in members(hint) if marks(one)}


TRAINING = {
    **{f"trainer.{name}": hint for name, hint in trainer_options.TRAINER_TYPES.items()},
    **command_options.option_types()[""],
    **{f"model.{name}": hint for name, hint in hints(LanguageModule.__init__).items()},
    **{f"data.{name}": hint for name, hint in hints(TextDataModule.__init__).items()},
}


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (Count, 0, "--n takes a whole number of at least 1, got 0"),
        (Count, True, "--n takes a whole number of at least 1, got True"),
        (Count, 1.0, "--n takes a whole number of at least 1, got 1.0"),
        (Count, 10**30, f"--n takes a whole number of at least 1 and at most 1,000,000,000,000, got 1{'0' * 30}"),
        (Natural | None, -1, "--n takes a whole number of at least 0, got -1"),
        (list[Count] | Count, [3, 0], "--n takes a whole number of at least 1, got 0"),
        (list[Count] | Count, 2.5, "--n takes a whole number of at least 1, got 2.5"),
        (list[Count], 2, "--n takes a list, got 2"),
        (tuple[Part, Part], (0.9, 1.0), "--n takes a number of at least 0 and below 1, got 1.0"),
        (Positive, 0, "--n takes a number above 0, got 0"),
        (Positive, math.inf, "--n takes a number above 0, got inf"),
        (NonNegative, math.nan, "--n takes a number of at least 0, got nan"),
        (NonNegative, "few", "--n takes a number of at least 0, got 'few'"),
        (Count | Part, 1.5, "--n takes a number of at least 0 and below 1, got 1.5"),
        (dict[Place, Positive], {"a": 0}, "--n: a takes a number above 0, got 0"),
        (Name, " ", "--n takes a text that is not empty, got ' '"),
        (Place | None, "", "--n takes the name of a file or folder, got ''"),
        (Place, "a" * 256, "--n takes a name that files can have"),
        (Place, "a\0b", "--n takes a name that files can have"),
        (Place, "~nobody-here/x", "--n takes a name in a home folder that there is (or ./~nobody-here/x"),
        (Literal["a", "b"], "c", "--n takes one of a, b, got 'c'"),
    ],
)
def test_refused(hint, value, message):
    with pytest.raises(UserError) as error:
        accept(hint, value, "--n")
    assert str(error.value).startswith(message)


def test_accepted(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = [(Count, 1), (Count | None, None), (Part, 0), (list[Count] | Count, 3), (Name, "#"), (bool | Place, True)]
    for hint, value in [*values, (Place, "s3://bucket/" + "a" * 300), (tuple[Count, Count], (1, 2)), (int, -1)]:
        assert accept(hint, value, "--n") is value or accept(hint, value, "--n") == value
    assert accept(list[Place] | Place, ["~/a", "b~"], "--n") == ["/home/me/a", "b~"]
    assert accept(dict[Place, Positive], {"~/a": 1.0}, "--n") == {"/home/me/a": 1.0}


def test_a_function_takes_what_it_states():
    @checked("run.")
    def run(n: Count = 1, text: str = ""):
        return n, text

    assert run(2) == (2, "")
    with pytest.raises(UserError, match=r"^run\.n takes a whole number of at least 1, got 0$"):
        run(n=0)


def test_help_shows_ranges(capsys):
    assert main(["generate", "--help"]) == 0
    assert "k most probable tokens only [at least 1]" in capsys.readouterr().out


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if any(stated(h) == "not empty" for h in TYPED[n].values())])
def test_an_empty_name_is_refused(name, capsys, monkeypatch):
    function = built_once(name, monkeypatch)
    signature = inspect.signature(function).parameters.values()
    needed = {
        p.name: NEEDED.get(p.name, "nowhere") for p in signature if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    }
    for option, hint in hints(function).items():
        if stated(hint) != "not empty":
            continue
        for value in ("", " "):
            words = {**needed, option: value}
            assert main([*name.split(), *(f"--{key}={text}" for key, text in words.items())]) == 2
            message = capsys.readouterr().err
            assert re.fullmatch(rf"mm: --{option} takes [^\n]+, got '{value}'\n", message), message


def test_fields_of_dataclasses_of_types_that_are_known():
    for kind in (MemoryMosaicConfig, TransformerConfig, PrepareConfig, Sampling):
        assert {field.name for field in dataclasses.fields(kind)} <= set(hints(kind))

"""Commands that are typed functions: their parameters are the options, their docstrings the help."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable
from typing import Any, ClassVar

from mm_lightning.errors import UserError
from mm_lightning.options import flags, name_words, option_error, type_words, word_lists
from mm_lightning.ranges import accept, hints, state_ranges

LAUNCHED = {"rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
"""Options that launchers of several processes (torchrun, Lightning) give as environment variables."""


def places(function: Callable[..., Any], args: list[str]) -> list[str]:
    """Add what a launcher says to the options of a command that can be one of several processes."""
    by_launcher = {
        f"--{name}": os.environ[variable]
        for name, variable in LAUNCHED.items()
        if name in inspect.signature(function).parameters and variable in os.environ
    }
    given = {arg.split("=")[0] for arg in args}
    return [*args, *(f"{option}={value}" for option, value in by_launcher.items() if option not in given)]


def run_function(name: str, function: Callable[..., Any], args: list[str]) -> None:
    """Run a command that is a typed function: its parameters are the options."""
    from jsonargparse import ArgumentError

    from mm_lightning.class_options import with_named_classes
    from mm_lightning.renamed import current_options
    from mm_lightning.yaml_text import use_for_options

    words = current_options(name_words(function, args))
    helping = bool({"-h", "--help"} & set(args))
    function = with_named_classes(function, words, helping and args[-1] != "all")
    use_for_options()
    parser = function_parser(name, function)
    if helping:
        print(help_of(name, function, parser.format_help()))
        return
    arguments = places(function, flags(function, word_lists(function, words)))
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise UserError(option_error(str(error), name, parser.get_defaults().keys())) from error
    for option, hint in hints(function).items():
        if option in values:
            values[option] = accept(hint, values[option], f"--{option}")
    function(**parser.instantiate(values))


@functools.cache  # building one takes a while
def function_parser(name: str, function: Callable[..., Any]) -> Any:
    """Return the parser of a command that is a typed function."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    texts = {
        f"--{name}"
        for name, kind in type_words(function).items()
        if kind in ("str | None", "None | str", "typing.Optional[str]")
    }

    class CommandParser(ArgumentParser):
        options: ClassVar[list[Any]] = []

        def add_argument(self, *names: Any, **settings: Any) -> Any:
            if not texts.isdisjoint(names):  # any text: otherwise it is read as YAML, where `# A title` is null
                settings = {**settings, "type": str, "action": "store"}
            self.options.append(super().add_argument(*names, **settings))
            return self.options[-1]

    class Formatter(DefaultHelpFormatter):
        def _expand_help(self, action: Any) -> str:
            text = super()._expand_help(action)
            match = re.search(r" \((required, )?type: .+?(?:, default: (.*))?\)$", text, re.DOTALL)
            if match is None:
                return text
            said = "required" if match[1] else f"default: {match[2]}" if match[2] not in (None, "null") else ""
            return text[: match.start()] + (f" ({said})" if said else "")

    # not auto_cli, which has a --config of its own and keeps a command's from it
    parser = CommandParser(prog=f"mm {name}", exit_on_error=False, allow_abbrev=False, formatter_class=Formatter)
    parser.add_function_arguments(function, as_group=False)
    state_ranges(parser.options, hints(function))
    return parser


def help_of(name: str, function: Callable[..., Any], options: str) -> str:
    """Return the text of `mm NAME --help`: how to call it, its documentation, and the options of its parser's help."""
    from mm_lightning.class_options import added_options

    first = next(iter(inspect.signature(function).parameters.values()))
    several = " ..." if "list" in str(first.annotation) else ""
    word = f" {first.name.upper()}{several}" if first.default is first.empty else ""
    about = (inspect.getdoc(function) or "").split("\n\nArgs:")[0]
    listed = re.split(r"\n  -h, --help.*?(?=\n  --)", options, maxsplit=1, flags=re.DOTALL)[-1]  # which comes first
    # lists take words (word_lists)
    listed = re.sub(
        r"(--(\w+)) (?:\[ITEM,\.\.\.\]|[A-Z_]+), --\2\+ (?:\[ITEM,\.\.\.\]|[A-Z_]+)", r"\1 A [B ...]", listed
    )
    listed = listed.replace("default: )", 'default: "")').replace(",null}", "}")
    if added := added_options(function):
        listed = listed.replace(f"\n  --{added[0]} ", f"\n\n{added[1]}:\n  --{added[0]} ")
    return f"usage: mm {name}{word} [OPTIONS]\n\n{about}\n\noptions:{listed}".rstrip()

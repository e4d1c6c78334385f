"""YAML as every file and option of the project is read and written.

PyYAML follows YAML 1.1, in which 1e-3 is a text, 12:30 is 750, 010 is 8 and 2025-06-01 a date. Here 1e-3, 3E5 and 1_000
are numbers, and what is no number, boolean or null is a text.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from mm_lightning.errors import UserError
from mm_lightning.outputs import write_text
from mm_lightning.redaction import redact_values
from mm_lightning.text_files import read_text

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:[0-9]+(?:_[0-9]+)*|0x[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*|0o[0-7]+(?:_[0-7]+)*)$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+(?:_[0-9]+)*(?:\.(?:[0-9]+(?:_[0-9]+)*)?)?|\.[0-9]+(?:_[0-9]+)*)(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_BOOL = re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_RESOLVERS = [
    ("bool", _BOOL, "yYnNtTfFoO"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("merge", re.compile(r"<<$"), "<"),
    ("null", _NULL, ["~", "n", "N", ""]),
]

# characters that YAML does not print as they are, or takes for a line break
_UNPRINTABLE = re.compile(r"[^ -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


class Loader(yaml.SafeLoader):
    """A YAML loader of plain values only: texts, numbers, true or false, null, lists and mappings.

    Refuses a key that comes twice, of which YAML would take the later one in silence.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._within: list[str] = []  # anchors of the lists and mappings that are being read

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one value; one that an anchor puts inside itself has no end."""
        if self.check_event(yaml.AliasEvent) and self.peek_event().anchor in self._within:
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"*{event.anchor} stands inside itself", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def compose_sequence_node(self, anchor: str | None) -> yaml.SequenceNode:
        """Read a list."""
        self._within.append(anchor or "")
        node = super().compose_sequence_node(anchor)
        self._within.pop()
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Read a mapping."""
        self._within.append(anchor or "")
        node = super().compose_mapping_node(anchor)
        self._within.pop()
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self._key(key)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} comes twice", problem_mark=key.start_mark)
            seen.add(name)
        return node

    def _key(self, node: yaml.Node) -> Any:
        """Return a key: numbers stay numbers (values of a sweep's axis), all else is the text as written: on, null."""
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a text or a number", problem_mark=node.start_mark)
        if node.tag in (f"{_TAG}int", f"{_TAG}float"):
            return self.construct_object(node)
        if node.tag not in (f"{_TAG}{kind}" for kind in ("str", "bool", "null", "merge")):
            self.construct_undefined(node)
        return node.value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the keys and values of a mapping."""
        return {key: self.construct_object(value, deep=deep) for key, value in self._pairs(node).items()}

    def _pairs(self, node: yaml.Node) -> dict[Any, yaml.Node]:
        """Return keys and value nodes, those that `<<` takes from other mappings first: the mapping's own win."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem="<< takes keys of mappings only", problem_mark=node.start_mark)
        direct: dict[Any, yaml.Node] = {}
        merged: dict[Any, yaml.Node] = {}
        for key, value in node.value:
            if key.tag != f"{_TAG}merge":
                direct[self._key(key)] = value
                continue
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged = {**self._pairs(other), **merged}
        return {**merged, **direct}

    def construct_undefined(self, node: yaml.Node) -> None:
        """Refuse dates, bytes, sets and other objects that a tag names."""
        problem = f"{node.tag.replace(_TAG, '!!')} is none of text, number, true or false, null, list and mapping"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def number(self, node: yaml.ScalarNode) -> int | float:
        """Return a scalar as a number."""
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        try:
            if node.tag == f"{_TAG}float":
                return float(re.sub(r"^([-+]?)\.(?=inf|nan)", r"\1", text))
            return int(text, 0) if text.lstrip("+-").startswith(("0x", "0o")) else int(text)
        except ValueError:
            problem = f"{node.value[:40]} is no number that can be read"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def boolean(self, node: yaml.ScalarNode) -> bool:
        """Return a scalar as true or false."""
        if not _BOOL.match(node.value):
            problem = f"{node.value[:40]} is neither true nor false"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node.value.lower() in ("yes", "true", "on")


class Dumper(yaml.SafeDumper):
    """A YAML dumper of what :class:`Loader` reads back, with quotes round texts that would be something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: a list that occurs twice is written twice, without anchors such as `&id001`."""
        return True

    def text(self, value: str) -> yaml.ScalarNode:
        """Return a text's node, in double quotes where it holds what only these can escape."""
        return self.represent_scalar(f"{_TAG}str", value, style='"' if _UNPRINTABLE.search(value) else None)


Dumper.add_representer(str, Dumper.text)
# defaults of Lightning's classes, such as Timer's
Dumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))
for _kind, _pattern, _first in _RESOLVERS:
    Loader.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, list(_first))
    Dumper.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, list(_first))
for _kind in ("str", "null", "seq", "map"):
    Loader.add_constructor(f"{_TAG}{_kind}", yaml.SafeLoader.yaml_constructors[f"{_TAG}{_kind}"])
for _kind in ("int", "float"):
    Loader.add_constructor(f"{_TAG}{_kind}", Loader.number)
Loader.add_constructor(f"{_TAG}bool", Loader.boolean)
Loader.add_constructor(None, Loader.construct_undefined)


def load_yaml(text: str, where: str | Path) -> Any:
    """Return the value of a YAML document.

    Args:
        text: one document.
        where: its file, for messages.

    Raises:
        UserError: it is not YAML, or holds what is no plain value; with the line.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{where}{line} is not valid YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        name = f"the character {error.character!r}" if isinstance(error.character, str) else f"#x{error.character:x}"
        raise UserError(f"{where}, line {line_number} is not valid YAML: {name} cannot stand in it") from error
    except RecursionError as error:
        raise UserError(f"{where} is not valid YAML: lists or mappings too deep inside each other") from error


def read_yaml(path: str | Path) -> Any:
    """Return the value that a YAML file holds; None for an empty one.

    Raises:
        UserError: it is missing, is not text, or is not YAML; with the line.
    """
    return load_yaml(read_text(path), path)


def plain_values(values: Any) -> Any:
    """Return values as a YAML file of them would be read: lists for tuples, the values of enumerations."""
    if isinstance(values, dict):
        return {key: plain_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain_values(value) for value in values]
    return values.value if isinstance(values, Enum) else values


def dump_yaml(values: Any) -> str:
    """Return values as the text of a YAML file, keys in their order."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def write_yaml(path: Path, values: Any) -> None:
    """Write a YAML file, whole or not at all, in which secrets are hidden."""
    write_text(path, dump_yaml(redact_values(values)), exact=True)


def one_line(value: Any) -> str:
    """Return a value as JSON of one line, for an option on a command line; infinity and NaN as YAML writes them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{one_line(str(key))}: {one_line(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(one_line, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    # ASCII, because the parser asks for a file of that name; not by half pairs, which are JSON's way, not YAML's
    return re.sub(r"[^ -~]", lambda match: f"\\U{ord(match[0]):08x}", json.dumps(value, ensure_ascii=False))


def use_for_options(configs: Mapping[str, Any] | None = None) -> None:
    """Let jsonargparse read values, and write configs, as files are read and written here.

    Args:
        configs: the values of configs that are read already, by the text that stands for each on the command line.
    """
    from jsonargparse import set_dumper, set_loader

    def load(text: str) -> Any:
        return copy.deepcopy(configs[text]) if configs and text in configs else _load_option(text)

    set_loader("yaml", load, (yaml.YAMLError, RecursionError))
    set_dumper("yaml", dump_yaml)
    set_dumper("values", plain_values)  # of ArgumentParser.dump, which returns what a dumper does


def _load_option(text: str) -> Any:
    return copy.deepcopy(_option_value(text))


@lru_cache(1024)
def _option_value(text: str) -> Any:
    """Return the value of an option's text, kept because a parser reads its defaults many times."""
    try:
        value = yaml.load(text, Loader)
    except RecursionError:
        raise yaml.YAMLError("lists or mappings too deep inside each other") from None
    if (
        value
        and isinstance(value, dict)
        and not any(inner is not None for inner in value.values())
        and "null" not in text
    ):
        return text  # "a text:" and "{a, text}" are no mappings
    return value


def locate(path: str | Path, names: Sequence[str], value: str | None = None) -> tuple[int, str]:
    """Return the line of the value under nested keys of a file, and the value as written; 1 and "" if it is not there.

    Args:
        path: of a file that could be read.
        names: the keys from the outermost on, which may stand in the file joined by dots.
        value: `str` of the value, to choose among several, or in a list.
    """
    loader = Loader(read_text(path))
    node = loader.get_single_node()
    nodes = list(_find(node, list(names))) if node else []
    same = [one for one in nodes if isinstance(one, yaml.ScalarNode) and str(loader.construct_object(one)) == value]
    loader.dispose()
    chosen = (same or nodes or [None])[-1]
    line = chosen.start_mark.line + 1 if chosen else 1
    return line, chosen.value if isinstance(chosen, yaml.ScalarNode) else ""


def _find(node: yaml.Node, names: list[str]) -> Iterator[yaml.Node]:
    """Yield the nodes under nested keys, in lists too; what a list under the last key holds comes before the list."""
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _find(value, names)
    if not names:
        yield node
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            for depth in range(1, len(names) + 1):
                if key.value.rstrip("+") == ".".join(names[:depth]):
                    yield from _find(value, names[depth:])

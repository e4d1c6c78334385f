"""Files of a run beside its checkpoints: read where they are whole, told where they are not.

No command needs one to do its work, but for config.yaml, which says how a run goes on. What is damaged is passed over
with one line, and written anew by the next process that writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.outputs import append, write_text
from mm_lightning.redaction import redact_values
from mm_lightning.yaml_text import dump_yaml, read_yaml

_HEAD, _END = "# Every setting of the run. The last line is three dots, where nothing of the file is lost.\n", "...\n"
_reported: set[str] = set()


def pass_over(message: str) -> None:
    """Report in one line, once a process, that something damaged is left out."""
    if message not in _reported:
        _reported.add(message)
        say(f"mm: {message}", stderr=True)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds; an empty one where it is missing or, which a line says, damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        why = "it holds no JSON object"
    except (OSError, ValueError, RecursionError) as error:
        content, why = None, str(error)
    if isinstance(content, dict):
        return content
    pass_over(f"{path} is damaged ({why}): passed over")
    return {}


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line; None where there is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(path: Path, number: str | None = None) -> list[dict[str, Any]]:
    """Return the JSON objects of a file that has one a line.

    A last line that is cut off, as by a kill, is left out; any other that is damaged too, with a line that says which.

    Args:
        path: the file; a missing one has no lines.
        number: a key under which each line has a whole number.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        pass_over(f"{path} cannot be read ({error.strerror}): passed over")
        return []
    objects = []
    for n, line in enumerate(lines, 1):
        content = parse_line(line)
        if content is not None and (number is None or type(content.get(number)) is int):
            objects.append(content)
        elif line.strip() and n < len(lines):
            pass_over(f"{path}, line {n} is damaged: passed over")
    return objects


def write_lines(path: Path, objects: Iterable[dict[str, Any]], exact: bool = False) -> None:
    """Write a file of one JSON object a line, in the place of an earlier one; `exact` as for `write_text`."""
    write_text(path, "".join(json.dumps(content) + "\n" for content in objects), exact)


def append_lines(path: Path, text: str) -> None:
    """Add lines to a file, all of them or nothing, in the place of a last one that a kill has cut off.

    Raises:
        OSError: nothing was added.
    """
    with open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.read(1) != b"\n":
            file.seek(0)
            content = file.read()
            begin = content.rfind(b"\n") + 1
            if parse_line(content[begin:]) is None:
                os.truncate(path, begin)
            else:
                text = "\n" + text
    append(path, text.encode())


def write_config(path: Path, values: dict[str, Any]) -> None:
    """Write the config.yaml of a run, without secrets, and such that one that was cut off is told from a whole one."""
    write_text(path, _HEAD + dump_yaml(redact_values(values)) + _END, exact=True)


def read_config(path: Path) -> dict[str, Any]:
    """Return the config.yaml of a run.

    Raises:
        UserError: it is missing or damaged.
    """
    values = read_yaml(path)
    content = path.read_bytes()
    if content.startswith(_HEAD.encode()) and not content.endswith(_END.encode()):
        raise UserError(f"{path} is damaged: it is cut off")
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no settings")
    return values


def known_config(path: Path) -> dict[str, Any]:
    """Return the config.yaml of a run; an empty one where it is missing or, which a line says, damaged."""
    if not path.is_file():
        return {}
    try:
        return read_config(path)
    except UserError as error:
        pass_over(f"{error}: passed over")
        return {}

"""Files that are written: whether they can be, before the work that fills them; and whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from mm_lightning.errors import UserError
from mm_lightning.redaction import redact, redact_values


def check_output(path: str | os.PathLike) -> Path:
    """The file that an option names, which may be there and whose folders need not be.

    Raises:
        UserError: it is a folder, or cannot be written.
    """
    target = Path(path).expanduser()
    folder = next(parent for parent in target.parents if os.path.exists(parent))
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file")
    if not folder.is_dir():
        raise UserError(f"cannot write {target}: {folder} is a file, not a folder")
    if not os.access(target if target.exists() else folder, os.W_OK):
        raise UserError(f"cannot write {target}: no permission to")
    return target


def write_text(path: Path, text: str, exact: bool = False) -> None:
    """Write a file so that whatever happens it is there whole, as it was before or as it is now.

    Args:
        path: the file.
        text: what it is to hold; secrets in it are hidden.
        exact: nothing is hidden: for data, such as a tokenizer.
    """
    text = text if exact else redact(text)
    beside = path.with_name(path.name + ".tmp")
    # half a surrogate pair, as in names of files that are not UTF-8, is escaped as JSON does it
    with beside.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all, in which secrets are hidden."""
    write_text(path, json.dumps(redact_values(content), indent=1, ensure_ascii=False) + "\n", exact=True)


def share(path: Path) -> None:
    """Gives a file the permissions of any new one: safetensors writes files that only their owner can read."""
    mask = os.umask(0)  # the only way to ask for it
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextlib.contextmanager
def opened(target: Path | None) -> Iterator[TextIO]:
    """A file to write to, with its folders; standard output for none."""
    if target is None:
        yield sys.stdout
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error

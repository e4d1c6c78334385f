"""Outputs of commands: refused where something is in the way, before any work, and there whole or not at all.

One rule holds for every place that a user names, as with `--output`:

- what exists is refused, unless `--overwrite` is given, and with it too if it is of another kind than what the command
  writes: a checkpoint never becomes JSON lines, and no folder is replaced that holds a file of anyone else's;
- a file that the command reads is never replaced, and none that a training has written of itself;
- what is written grows under a fresh name beside its place, and is renamed when it is whole: until then an older one is
  there as it was, and two commands never write into one another's;
- a command that fails leaves neither a part of its output nor a folder that it made for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TextIO

from mm_lightning.errors import UserError
from mm_lightning.redaction import redact, redact_values
from mm_lightning.terminal import display

TEXT, CHECKPOINT, SAFETENSORS = "a text file", "a checkpoint", "a safetensors file"
MEMORY = "a memory file"
"""Kinds of files, as :func:`kind_of` tells them by their first bytes."""


OF_A_RUN = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "finished.json",
    "evaluation.jsonl",
    "rollbacks.jsonl",
    "preempted.json",
)
"""Files of text that a training writes beside its checkpoints."""


@dataclass(frozen=True)
class Output:
    """A place that a command may write to.

    Attributes:
        name: as the user named it.
        place: where it lies, which differs where the name is a link.
        overwrite: whether what is there is replaced.
        kind: of a folder.
    """

    name: Path
    place: Path
    overwrite: bool = False
    kind: FolderKind | None = None

    def __str__(self) -> str:
        return str(self.name)


@dataclass(frozen=True)
class FolderKind:
    """The folders that a command writes, by which it knows its own.

    Attributes:
        what: in words.
        mark: a file that each has.
        files: patterns of the relative paths of all files that one may have.
        shared: whether other files in it are no matter, and stay when it is replaced.
    """

    what: str
    mark: str
    files: tuple[str, ...]
    shared: bool = False

    def stranger(self, folder: Path) -> str | None:
        """Return why a folder is none of these, for a reader; None if it is one."""
        if not (folder / self.mark).is_file():
            return f"has no {self.mark}"
        others = self.others(folder)
        return f"also holds {others[0]}" if others and not self.shared else None

    def others(self, folder: Path) -> list[str]:
        """Return the relative paths of files in a folder that are none of this kind's."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
        return [n for n in names if not any(fnmatch(n, pattern) for pattern in (self.mark, *self.files))]


def check_output(
    path: str | os.PathLike, overwrite: bool = False, inputs: Iterable[Any] = (), kind: str = TEXT
) -> Output:
    """Check the file that an option names, whose folders need not be there.

    Args:
        path: the file.
        overwrite: whether one of this kind that is there may be replaced.
        inputs: files and folders that the command reads; None and what does not exist are left out.
        kind: what is written.

    Raises:
        UserError: it exists, is a folder, or cannot be written.
    """
    output = _check(path, inputs, "a file", overwrite)
    if output.place.is_dir():
        raise UserError(f"{output} is a folder: name a file")
    if output.place.is_file():
        if not overwrite:
            raise UserError(f"{output} exists: give another --output, or --overwrite")
        if _of_a_run(output.place):
            raise UserError(f"{output} is what a training has written of itself: give another --output")
        if (present := kind_of(output.place)) not in (kind, None):
            raise UserError(
                f"{output} is {present}, and {kind} would take its place: give another --output (--overwrite replaces "
                f"only what is of the same kind)"
            )
    return output


def check_folder(
    path: str | os.PathLike, kind: FolderKind, overwrite: bool = False, inputs: Iterable[Any] = ()
) -> Output:
    """Check the folder that an option names: it is to be made, or is empty, or is replaced.

    Args:
        path: the folder.
        kind: what is written.
        overwrite: whether a folder of this kind that is there may be replaced.
        inputs: files and folders that the command reads.

    Raises:
        UserError: it exists, is a file, or cannot be written.
    """
    output = _check(path, inputs, "a folder", overwrite)
    if output.place.exists() and not output.place.is_dir():
        raise UserError(f"{output} is a file: name a folder")
    if not _free(output.place):
        why = kind.stranger(output.place)
        if why is not None:
            raise UserError(
                f"{output} exists and is not {kind.what}, which alone can be replaced (it {why}): give another --output"
            )
        if not overwrite:
            raise UserError(f"{output} exists: give another --output, or --overwrite")
    return replace(output, kind=kind)


def _check(path: str | os.PathLike, inputs: Iterable[Any], what: str, overwrite: bool) -> Output:
    """Check what files and folders have in common."""
    if not os.fspath(path):
        raise UserError(f"--output is empty: name {what}")
    name = Path(path).expanduser()
    try:
        place = Path(os.path.realpath(name)) if name.is_symlink() else name
    except OSError as error:  # the name is too long
        raise UserError(f"cannot write {name}: {error.strerror}") from error
    for given in inputs:
        if given is not None and os.path.exists(place) and os.path.exists(given) and os.path.samefile(place, given):
            raise UserError(f"--output {name} is what the command reads: give another one")
    folder = next((parent for parent in place.parents if os.path.exists(parent)), place)
    if not folder.is_dir():
        raise UserError(f"cannot write {name}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK) or (place.exists() and not os.access(place, os.W_OK)):
        raise UserError(f"cannot write {name}: no permission to")
    return Output(name, place, overwrite)


def kind_of(path: Path) -> str | None:
    """Return what kind of file this is, in words; None for an empty one."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 14)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    if not head:
        return None
    if head[:4] == b"PK\x03\x04":
        return CHECKPOINT
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return MEMORY if b'"mm-lightning memory"' in head else SAFETENSORS
    return "a binary file" if b"\0" in head else TEXT


def _of_a_run(place: Path) -> bool:
    """Return whether a file is one that a training writes beside its checkpoints."""
    run = place.parent
    return place.name in OF_A_RUN and any((run / name).exists() for name in ("checkpoints", "metrics.jsonl"))


def _free(place: Path) -> bool:
    """Return whether nothing is there but, at most, an empty folder."""
    return not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir()))


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Context manager that makes a folder with its parents and, on an error, removes those of them that are empty."""
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the first that is not empty
            for path in fresh:
                path.rmdir()
        raise


@contextlib.contextmanager
def staged(target: Output | Path) -> Iterator[Path]:
    """Context manager for the name to write a file or a folder under, which takes its place at the end.

    Args:
        target: its place; what is at a plain path is replaced.

    Raises:
        UserError: an Output cannot be written, or is there now.
        OSError: the same of a plain path.
    """
    output = target if isinstance(target, Output) else Output(target, target, overwrite=True)
    place = output.place
    try:
        with made_folder(place.parent):
            room = Path(tempfile.mkdtemp(prefix=f".{place.name[:40]}.", suffix=".partial", dir=place.parent))
            try:
                yield room / place.name
                _put(room / place.name, output, room)
            finally:
                shutil.rmtree(room, ignore_errors=True)
    except UserError as error:
        raise UserError(str(error).replace(str(room / place.name), str(output))) from error
    except OSError as error:
        if isinstance(target, Output):
            raise UserError(f"cannot write {output}: {error.strerror or error}") from error
        raise


def _put(part: Path, output: Output, room: Path) -> None:
    """Give what is whole its name."""
    place = output.place
    if not output.overwrite and not _free(place):
        rescued = place.with_name(f"{room.name.removeprefix('.')}.whole")
        os.replace(part, rescued)
        raise UserError(f"{output} was written by something else in the meantime: what this command wrote is {rescued}")
    if place.is_file() and part.is_file():
        shutil.copymode(place, part)
    if not place.is_dir():
        os.replace(part, place)
        return
    for name in output.kind.others(place) if output.kind else ():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(place / name, part / name, follow_symlinks=False)
    before = room / "before"
    before.mkdir()
    os.replace(place, before / place.name)
    try:
        os.replace(part, place)
    except OSError:
        os.replace(before / place.name, place)
        raise


@contextlib.contextmanager
def opened(target: Output | None, keep: bool = False) -> Iterator[TextIO]:
    """Context manager for a file to write text to; standard output for none.

    Args:
        target: the file.
        keep: whether what was written stays, under another name which one line says, where the rest fails.

    Raises:
        UserError: it cannot be written.
    """
    if target is None:
        yield sys.stdout
    elif target.place.exists() and not target.place.is_file():  # a pipe or a device
        with open(target.place, "w", encoding="utf-8") as file:
            yield file
    else:
        with staged(target) as part:
            try:
                with open(part, "w", encoding="utf-8") as file:
                    yield file
            except BaseException:
                if keep and part.exists() and part.stat().st_size:
                    rescued = target.place.with_name(f"{part.parent.name.removeprefix('.')}")
                    os.replace(part, rescued)
                    display(f"what was written so far is in {rescued}", file=sys.stderr, flush=True)
                raise


def write_text(target: Output | Path, text: str, exact: bool = False) -> None:
    """Write a file so that whatever happens it is there whole, as it was before or as it is now.

    Args:
        target: the file.
        text: what it is to hold; secrets in it are hidden.
        exact: nothing is hidden: for data, such as a tokenizer.
    """
    text = text if exact else redact(text)
    # half a surrogate pair, as in names of files that are not UTF-8, is escaped as JSON does it
    write_bytes(target, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(target: Output | Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with staged(target) as part, part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def append(path: Path, data: bytes) -> None:
    """Add to a file, all of it or nothing.

    Raises:
        OSError: nothing was added.
    """
    with open(path, "ab", buffering=0) as file:
        before, written = file.tell(), 0
        try:
            while written < len(data):
                written += file.write(data[written:])
        except OSError:
            os.truncate(path, before)
            raise


def write_json(target: Output | Path, content: Any) -> None:
    """Write a JSON file, whole or not at all, in which secrets are hidden."""
    write_text(target, json.dumps(redact_values(content), indent=1, ensure_ascii=False) + "\n", exact=True)


def share(path: Path) -> None:
    """Give a file the permissions of any new one: safetensors writes files that only their owner can read."""
    mask = os.umask(0)  # the only way to ask for it
    os.umask(mask)
    path.chmod(0o666 & ~mask)

"""Standard output and error that go away while a command works: a closed pipe, a closed terminal, a full disk.

Guarded once, at the entry of a process, below everything that prints: print, progress bars, logging, Lightning, the
flush at the interpreter's exit. A lost pipe or terminal is replaced by /dev/null in its file descriptor, so that native
code and processes started later lose nothing but their output either.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CUT_SHORT = 141
"""Exit status of a command whose reader has gone: 128 + SIGPIPE, as shells report it of other programs."""
NOTE = "lost_output.txt"
"""The file in a run folder that says which stream was lost, when and why."""
_NAMES = {1: "standard output", 2: "standard error"}
_FLAGS = {0: os.O_RDONLY, 1: os.O_WRONLY, 2: os.O_WRONLY}
_lost: dict[int, OSError] = {}  # by descriptor
_unwritten: list[str] = []  # lines of the note
_folder: Path | None = None


class OutputLost(Exception):
    """Raised to end a command whose result is what it prints, when nobody can read it any more."""


class Stream(io.FileIO):
    """The raw file of a standard stream, whose writes never raise an OSError.

    Args:
        descriptor: 1 or 2.
        needed: whether to raise :class:`OutputLost` when the stream is lost for the first time.
    """

    def __init__(self, descriptor: int, needed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.needed = needed

    def write(self, data: Any) -> int:
        """Write, or leave out what cannot be written."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
            while written is None:  # a pipe that another program has made non-blocking, and that is full
                import select

                select.select([], [self.fileno()], [])
                written = super().write(data)
        except OSError as error:
            self._lose(error)
            return size
        return written

    def _lose(self, error: OSError) -> None:
        descriptor = self.fileno()
        reason = error.strerror or str(error)
        if not _is_file(descriptor):  # a disk may have room again, a pipe gets no other reader
            _replace(descriptor)
        if descriptor in _lost:
            _write_note()
            return
        _lost[descriptor] = error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        what = f"{_NAMES[descriptor]}: {reason}"
        _unwritten.append(f"{now} {what}: what could not be printed is left out\n")
        if self.needed:
            raise OutputLost(what)
        _write_note()
        if descriptor == 1:
            with contextlib.suppress(AttributeError, ValueError):  # no stream, or a closed one
                print(f"mm: {what}: going on without it", file=sys.stderr, flush=True)


def guard(needed: bool = False) -> None:
    """Let this process survive the loss of its standard streams; a closed one (`>&-`) leads to /dev/null.

    Streams that something else has put in their place, such as a notebook's, stay as they are.

    Args:
        needed: the result is what is printed, so that the loss of standard output is to end the command.
    """
    for descriptor in (0, 1, 2):  # what else is opened would get a free one, and what native code prints
        try:
            os.fstat(descriptor)
        except OSError:
            _replace(descriptor)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream, original = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is not original:
            continue
        if descriptor == 0:
            if stream is None:
                sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
            continue
        guarded = _guarded(stream, descriptor, needed and descriptor == 1)
        setattr(sys, name, guarded)
        setattr(sys, f"__{name}__", guarded)


def _guarded(stream: Any, descriptor: int, needed: bool) -> Any:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if isinstance(raw, Stream):
        raw.needed = needed
        return stream
    encoding, by_line = "utf-8", descriptor == 2
    if stream is not None:
        if not isinstance(stream, io.TextIOWrapper) or stream.closed or stream.fileno() != descriptor:
            return stream
        with contextlib.suppress(OSError):
            stream.flush()
        encoding, by_line = stream.encoding, stream.line_buffering or stream.write_through
    buffer = io.BufferedWriter(Stream(descriptor, needed))
    guarded = io.TextIOWrapper(buffer, encoding=encoding, errors="replace", line_buffering=by_line)
    guarded.mode = "w"  # type: ignore[misc]
    return guarded


def note_in(folder: Path) -> None:
    """Have a lost stream written down in a run folder, in the file `NOTE`."""
    global _folder
    _folder = folder
    _write_note()


def finish(status: int) -> int:
    """Write what is still buffered, and return the exit status: another one if the result was cut short."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OutputLost, OSError, ValueError, AttributeError):
            stream.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, Stream) or not raw.needed or 1 not in _lost:
        return status
    if _lost[1].errno == errno.EPIPE:
        return CUT_SHORT
    print(f"mm: {_NAMES[1]}: {_lost[1].strerror}: what it has is cut short", file=sys.stderr, flush=True)
    return 2


def _is_file(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _replace(descriptor: int) -> None:
    """Put /dev/null in the place of a standard stream's file."""
    null = os.open(os.devnull, _FLAGS[descriptor])
    if null == descriptor:
        os.set_inheritable(null, True)
    else:
        os.dup2(null, descriptor)
        os.close(null)


def _write_note() -> None:
    if _folder is None or not _unwritten:
        return
    with contextlib.suppress(OSError):  # its disk may be full as well: with the next line that is lost
        with open(_folder / NOTE, "a", encoding="utf-8") as file:
            file.writelines(_unwritten)
        _unwritten.clear()

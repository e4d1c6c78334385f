"""TensorBoard's event file in a run folder: whole records or nothing, without a thread or a temporary file."""

from __future__ import annotations

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.outputs import append

_NUMBERS = itertools.count()  # of the event files of this process
MAX_BUFFERED_BYTES = 1 << 26
"""Bytes of events that wait in memory while they cannot be written; later ones are left out."""


class BufferedFile:
    """The end of a file, in memory until it is flushed and can be written.

    Args:
        run: the run folder.
        path: the file, in it.
    """

    closed = False

    def __init__(self, run: RunFolder, path: Path) -> None:
        self.run, self.path = run, path
        self._waiting: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Add a record."""
        if self._size + len(data) <= MAX_BUFFERED_BYTES:
            self._waiting.append(data)
            self._size += len(data)

    def flush(self) -> None:
        """Write what waits, where that is possible."""
        if not self._waiting:
            return

        def write() -> None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append(self.path, b"".join(self._waiting))

        if self.run.write(self.path, write, "its events are kept in memory until that is possible"):
            self._waiting, self._size = [], 0

    def close(self) -> None:
        """Write what waits."""
        self.flush()


class EventWriter:
    """The counterpart of TensorBoard's EventFileWriter without a thread or a temporary file.

    Args:
        run: the run folder.
        folder: of the event file.
        flush_secs: seconds after which an event is written that nothing has flushed.
    """

    def __init__(self, run: RunFolder, folder: Path, flush_secs: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._folder, self._flush_secs, self._flushed = folder, flush_secs, time.monotonic()
        self._records = RecordWriter(BufferedFile(run, folder / name))
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def get_logdir(self) -> str:
        """Return the folder."""
        return str(self._folder)

    def add_event(self, event: Any) -> None:
        """Add an event."""
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > self._flush_secs:
            self.flush()

    def flush(self) -> None:
        """Write all events."""
        self._flushed = time.monotonic()
        self._records.flush()

    def close(self) -> None:
        """Write all events; there may be more."""
        self.flush()

    def reopen(self) -> None:
        """Do nothing: it is never closed."""


class RunFileWriter(FileWriter):
    """torch's FileWriter to an :class:`EventWriter`."""

    def __init__(self, run: RunFolder, folder: Path, flush_secs: float) -> None:
        self.event_writer = EventWriter(run, folder, flush_secs)


class RunSummaryWriter(SummaryWriter):
    """torch's SummaryWriter to an :class:`EventWriter`.

    Args:
        run: the run folder.
        folder: of the event file.
    """

    def __init__(self, run: RunFolder, folder: Path) -> None:
        self._run = run
        super().__init__(log_dir=str(folder))

    def _get_file_writer(self) -> FileWriter:
        writer: FileWriter | None = self.file_writer
        if writer is None:
            writer = RunFileWriter(self._run, Path(self.log_dir), self.flush_secs)
            self.file_writer, self.all_writers = writer, {writer.get_logdir(): writer}  # type: ignore[assignment]
        return writer

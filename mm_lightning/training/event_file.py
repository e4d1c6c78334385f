"""Writer of TensorBoard event files in a run folder: complete records only, without a thread or temporary file."""

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
"""Bytes of events that are buffered while they cannot be written; later ones are dropped."""


class BufferedFile:
    """File that buffers writes in memory until a flush succeeds.

    Args:
        run: the run folder.
        path: the file in it.
    """

    def __init__(self, run: RunFolder, path: Path) -> None:
        self.run, self.path = run, path
        self._buffer = bytearray()

    def write(self, data: bytes) -> None:
        if len(self._buffer) + len(data) <= MAX_BUFFERED_BYTES:
            self._buffer += data

    def flush(self) -> None:
        """Write the buffer to disk; keep it if that fails."""
        if not self._buffer:
            return

        def write() -> None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append(self.path, bytes(self._buffer))

        if self.run.write(self.path, write, "its events are kept in memory until that is possible"):
            self._buffer.clear()


class RunFileWriter(FileWriter):
    """torch's FileWriter without a thread or temporary file.

    Args:
        run: the run folder.
        folder: folder of the event file.
        flush_secs: seconds after which the next event triggers a flush.
    """

    def __init__(self, run: RunFolder, folder: Path, flush_secs: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._folder, self._flush_secs, self._flushed = folder, flush_secs, time.monotonic()
        self._records = RecordWriter(BufferedFile(run, folder / name))
        self.add_event(Event(file_version="brain.Event:2"))
        self.flush()

    def get_logdir(self) -> str:
        return str(self._folder)

    def add_event(self, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = int(step)
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > self._flush_secs:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._records.flush()

    close = flush  # the file is never closed: more events may follow


class RunSummaryWriter(SummaryWriter):
    """torch's SummaryWriter on a :class:`RunFileWriter` for a folder in the run folder `run`."""

    def __init__(self, run: RunFolder, folder: Path) -> None:
        self._run = run
        super().__init__(log_dir=str(folder))

    def _get_file_writer(self) -> FileWriter:
        writer: FileWriter | None = self.file_writer
        if writer is None:
            writer = RunFileWriter(self._run, Path(self.log_dir), self.flush_secs)
            self.file_writer, self.all_writers = writer, {writer.get_logdir(): writer}  # type: ignore[assignment]
        return writer

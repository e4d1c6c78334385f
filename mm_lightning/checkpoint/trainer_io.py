"""Lightning's CheckpointIO for plain checkpoints, synchronous or in a thread.

Separate from the other files because importing Lightning takes seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mm_lightning.checkpoint.plain_values import to_plain_values
from mm_lightning.checkpoint.writing import broadcast_path, load, snapshot, write, write_error
from mm_lightning.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write plain checkpoints under a temporary name and rename them: a killed run leaves no broken file.

    Attributes:
        asynchronous: copy to CPU memory and write in a thread; at most one checkpoint at a time.
        defer_errors: return the error of a failed save from :meth:`finish` instead of raising it, so that the other
            ranks, which write nothing, can be told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asynchronous = False
        self.defer_errors = False
        self._thread: threading.Thread | None = None
        self._error: UserError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: it cannot be written; an existing file is left unchanged.
        """
        if "://" in str(path):
            super().save_checkpoint(to_plain_values(checkpoint), path, storage_options)
            return
        self._join()
        self._raise_unless_deferred()
        target = Path(path)

        def save() -> None:
            values = to_plain_values(checkpoint)
            if not self.asynchronous:
                write(values, target)
                return
            writing = partial(write, snapshot(values), target)
            thread = threading.Thread(target=self._try, args=(writing, target), name="checkpoint")
            thread.start()
            self._thread = thread

        self._try(save, target)
        if self._thread is None:
            self._raise_unless_deferred()

    def _raise_unless_deferred(self) -> None:
        if not self.defer_errors and (error := self.finish()):
            raise error

    def _try(self, action: Callable[[], None], target: Path) -> None:
        """Run an action, and keep the first error for :meth:`finish`."""
        try:
            action()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit as well: the run would end with status 0
            self._error = self._error or write_error(target, error)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self, wait: bool = True) -> UserError | None:
        """Return the error of a failed save, once.

        Args:
            wait: wait for a save in progress; otherwise its error is returned by a later call.
        """
        if self._thread is not None and not wait:
            return None
        self._join()
        error, self._error = self._error, None
        return error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Load the checkpoint chosen by rank 0, on all ranks. No code in it is ever run.

        Raises:
            UserError: it holds more than tensors and plain values.
        """
        self._join()
        return load(broadcast_path(path))

    def teardown(self) -> None:
        """Wait for a save in progress.

        Raises:
            UserError: a save has failed and its error was not returned yet.
        """
        if error := self.finish():
            raise error

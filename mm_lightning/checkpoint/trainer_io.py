"""How the Trainer writes and reads plain checkpoints: at once or by a thread.

Apart from the other rooms because it imports Lightning, which takes seconds: whoever only uses a network needs none.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mm_lightning.checkpoint.plain_values import to_plain_values
from mm_lightning.checkpoint.writing import broadcast_path, load, snapshot, write, write_error
from mm_lightning.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a plain checkpoint beside its target, then renames it: a killed run leaves no broken file.

    Attributes:
        asynchronous: copy to memory and let a thread write; at most one checkpoint is being written.
        keeps_errors: a save that fails raises nothing, and :meth:`finish` tells why: the other processes, which have
            nothing to write, can then be told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asynchronous = False
        self.keeps_errors = False
        self._thread: threading.Thread | None = None
        self._error: UserError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: it cannot be written; what was there before is left as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(to_plain_values(checkpoint), path, storage_options)
            return
        self._join()
        self._raise_unless_kept()
        target = Path(path)
        try:
            values = to_plain_values(checkpoint)
            if self.asynchronous:
                thread = threading.Thread(target=self._try, args=(snapshot(values), target), name="checkpoint")
                thread.start()
                self._thread = thread
            else:
                write(values, target)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit as well: the run would end with status 0
            self._note(error, target)
        if self._thread is None:
            self._raise_unless_kept()

    def _raise_unless_kept(self) -> None:
        if not self.keeps_errors and (error := self.finish()):
            raise error

    def _try(self, checkpoint: dict[str, Any], target: Path) -> None:
        """Write in a thread, which has nobody to raise anything to."""
        try:
            write(checkpoint, target)
        except BaseException as error:
            self._note(error, target)

    def _note(self, error: BaseException, target: Path) -> None:
        self._error = self._error or write_error(target, error)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self, wait: bool = True) -> UserError | None:
        """Return the error of what could not be written, once.

        Args:
            wait: for what is being written; else its error is for the next call.
        """
        if self._thread is not None and not wait:
            return None
        self._join()
        error, self._error = self._error, None
        return error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Reads a checkpoint, on all processes the one that the first has chosen. Nothing in it is ever run.

        Raises:
            UserError: it holds more than tensors and plain values.
        """
        self._join()
        return load(broadcast_path(path))

    def teardown(self) -> None:
        """Wait for what is being written.

        Raises:
            UserError: it could not be, and nobody has asked yet.
        """
        if error := self.finish():
            raise error

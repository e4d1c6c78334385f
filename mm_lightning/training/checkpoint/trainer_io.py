"""How the Trainer writes and reads plain checkpoints: at once or by a thread.

Apart from the other rooms because it imports Lightning, which takes seconds: whoever only uses a network needs none.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mm_lightning.errors import UserError
from mm_lightning.training.checkpoint.writing import agreed, load, snapshot, write


class WholeCheckpointIO(TorchCheckpointIO):
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
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        self._join()
        if self.asynchronous:
            copied = snapshot(checkpoint)
            self._thread = threading.Thread(target=self._try, args=(copied, Path(path)), name="checkpoint")
            self._thread.start()
            return
        self._try(checkpoint, Path(path))
        if not self.keeps_errors and (error := self.finish()):
            raise error

    def _try(self, checkpoint: dict[str, Any], target: Path) -> None:
        try:
            write(checkpoint, target)
        except UserError as error:
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> UserError | None:
        """Waits for what is being written; the error of what could not be, once."""
        self._join()
        error, self._error = self._error, None
        return error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Reads a checkpoint, on all processes the one that the first has chosen. Nothing in it is ever run.

        Raises:
            UserError: it holds more than tensors and plain values.
        """
        self._join()
        return load(agreed(path))

    def teardown(self) -> None:
        """Waits for what is being written."""
        self._join()

"""A lock that lets one `mm fit` at a time train in a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, TextIO

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.side_files import parse_line

LOCK = ".lock"
NO_LOCK_SUPPORT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of file systems without locks."""


class RunLock:
    """File lock of rank 0 of a run, which the operating system releases when the process ends.

    Args:
        folder: the run folder.
        timeout: seconds to wait for a process on another machine: a file server takes a while (NFS: 90 seconds) to
            notice that a machine is dead.
    """

    def __init__(self, folder: Path, timeout: float = 120) -> None:
        self.folder, self.timeout = folder, timeout
        self._file: TextIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the lock from copies, such as that of a module for weight averaging."""
        return {**self.__dict__, "_file": None}

    def acquire(self) -> None:
        """Acquire the lock; on a file system without locks, log that and continue.

        Raises:
            UserError: another process trains in the folder, or it cannot be written to.
        """
        try:
            file = (self.folder / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to the run folder {self.folder}: {error.strerror}") from error
        deadline = time.monotonic() + self.timeout
        waiting = False
        try:
            while not self._try(file):
                file.seek(0)
                holder = parse_line(file.read().encode()) or {}  # as far as it has written them
                if holder.get("host") in (None, platform.node()) or time.monotonic() >= deadline:
                    raise self._taken_error(holder)
                if not waiting:
                    say(f"waiting up to {self.timeout:.0f} s for process {holder['process']} on {holder['host']}")
                waiting = True
                time.sleep(min(1.0, self.timeout))
        except BaseException:
            file.close()
            raise
        self._file = file
        file.truncate(0)
        with contextlib.suppress(OSError):  # disk full: the holder stays unknown
            os.write(file.fileno(), json.dumps({"process": os.getpid(), "host": platform.node()}).encode() + b"\n")

    def _try(self, file: TextIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCK_SUPPORT:
                raise UserError(f"cannot lock the run folder {self.folder}: {error.strerror}") from error
            say(f"{self.folder} cannot be locked ({error.strerror}): let no second mm fit --resume run in it")
        return True

    def _taken_error(self, holder: dict[str, str | int]) -> UserError:
        who = f"process {holder['process']} on {holder['host']}" if len(holder) == 2 else "another process"
        return UserError(
            f"{who} is training in {self.folder}: wait for it or stop it, then --resume; a run without --resume takes "
            f"a folder of its own"
        )

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

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
from typing import TextIO

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.side_files import parse_line

LOCK = ".lock"
NO_LOCK_SUPPORT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of file systems without locks."""


def lock_run(folder: Path, timeout: float = 120) -> TextIO:
    """Lock a run folder for this process, until the file that is returned is closed or the process ends.

    On a file system without locks, log that and continue.

    Args:
        folder: the run folder.
        timeout: seconds to wait for a process on another machine: a file server takes a while (NFS: 90 seconds) to
            notice that a machine is dead.

    Raises:
        UserError: another process trains in the folder, or it cannot be written to.
    """
    try:
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to the run folder {folder}: {error.strerror}") from error
    deadline = time.monotonic() + timeout
    waiting = False
    while not _try(file, folder):
        file.seek(0)
        holder = parse_line(file.read().encode()) or {}  # as far as it has written them
        who = f"process {holder['process']} on {holder['host']}" if len(holder) == 2 else "another process"
        if holder.get("host") in (None, platform.node()) or time.monotonic() >= deadline:
            raise UserError(
                f"{who} is training in {folder}: wait for it or stop it, then --resume; a run without --resume takes "
                f"a folder of its own"
            )
        if not waiting:
            say(f"waiting up to {timeout:.0f} s for {who}")
        waiting = True
        time.sleep(min(1.0, timeout))
    file.truncate(0)
    with contextlib.suppress(OSError):  # disk full: the holder stays unknown
        os.write(file.fileno(), json.dumps({"process": os.getpid(), "host": platform.node()}).encode() + b"\n")
    return file


def _try(file: TextIO, folder: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCK_SUPPORT:
            raise UserError(f"cannot lock the run folder {folder}: {error.strerror}") from error
        say(f"{folder} cannot be locked ({error.strerror}): let no second mm fit --resume run in it")
    return True

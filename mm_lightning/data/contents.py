"""Hashes of source files, by which a resumed or repeated preparation notices that they changed."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mm_lightning.console import say
from mm_lightning.data.source_files import SourceFile
from mm_lightning.decompress import opened
from mm_lightning.errors import BadInput, UserError
from mm_lightning.stores import is_remote

_LARGE = 1 << 33  # bytes whose reading takes long enough to say so
_THREADS = 8
_BLOCK = 1 << 20


class Contents:
    """The contents of source files at one time.

    Attributes:
        hashes: of the content of each file, or of the store's version tag of a remote one that has such. A file that
            cannot be read counts as an empty one: reading its documents raises the error.
    """

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self._files = files
        self._states = [_state(file) for file in files]
        size = sum(file.size for file in files if file.mark is None)
        if size >= _LARGE:
            say(f"reading {size / 1e9:.0f} GB of sources once, to know later whether they changed", stderr=True)
        stopped = threading.Event()
        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                self.hashes = list(pool.map(partial(_hash, stopped=stopped), files))
            finally:
                stopped.set()

    def combined_hash(self) -> str:
        """Return one hash of all files."""
        return hashlib.sha256(" ".join(self.hashes).encode()).hexdigest()

    def changed_since(self, before: Sequence[str]) -> str | None:
        """Return which files' contents differ from the hashes of another time, in words; None if none do."""
        names = [file.name for file, was, now in zip(self._files, before, self.hashes, strict=True) if was != now]
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        return f"{names[0]}{more}" if names else None

    def check_unchanged(self) -> None:
        """Check the files that were written to since.

        Raises:
            UserError: one holds something else now: what was read of it meanwhile may be of both versions.
        """
        for file, state, was in zip(self._files, self._states, self.hashes, strict=True):
            if _state(file) != state and _hash(file) != was:
                raise UserError(f"{file.url} changed while it was being prepared: run the same again to begin anew")


def _hash(file: SourceFile, stopped: threading.Event | None = None) -> str:
    if file.mark is not None:
        return hashlib.sha256(file.mark.encode()).hexdigest()[:32]
    digest = hashlib.blake2b(digest_size=16)
    try:
        with opened(file.url, None) as stream:
            while not (stopped and stopped.is_set()) and (block := stream.read(_BLOCK)):
                digest.update(block)
    except (OSError, BadInput):
        pass  # reading its documents, which follows, raises the error
    return digest.hexdigest()


def _state(file: SourceFile) -> tuple[int, int] | None:
    """Return the size and modification time of a local file; None of a remote or missing one."""
    try:
        about = os.stat(file.url)
    except OSError:
        return None
    return None if is_remote(file.url) else (about.st_size, about.st_mtime_ns)

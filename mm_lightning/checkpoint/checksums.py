"""CRC-32 and syncing of files, and the names that all kinds of checkpoints share."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METADATA_KEY = "mm_lightning"
PARTIAL_SUFFIX = ".partial"
_BLOCK = 1 << 22


def sync(file: Any) -> None:
    """Sync a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def blocks(path: Path, length: int | None = None) -> Iterator[memoryview]:
    """Yield the first `length` bytes of a file, or all of them, in blocks."""
    buffer = memoryview(bytearray(_BLOCK))
    left = path.stat().st_size if length is None else length
    with open(path, "rb", buffering=0) as file:
        while left > 0 and (count := file.readinto(buffer[: min(left, _BLOCK)])):
            yield buffer[:count]
            left -= count


def crc32(path: Path, length: int | None = None) -> int:
    """Return the CRC-32 of the first `length` bytes of a file, or of all of them."""
    value = 0
    for block in blocks(path, length):
        value = zlib.crc32(block, value)
    return value

"""CRC-32 and syncing of files, and the names that all kinds of checkpoints share."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

METADATA_KEY = "mm_lightning"
PARTIAL_SUFFIX = ".partial"
CHECKSUM_MARK = b"mm crc32 "
"""Beginning of the zip comment that holds the CRC-32 of a plain checkpoint."""
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


def blocks(path: Path, begin: int = 0, end: int | None = None) -> Iterator[memoryview]:
    """Yield the bytes of a file from `begin` to before `end`, by default all of them, in blocks."""
    buffer = memoryview(bytearray(_BLOCK))
    left = (path.stat().st_size if end is None else end) - begin
    with open(path, "rb", buffering=0) as file:
        file.seek(begin)
        while left > 0 and (count := file.readinto(buffer[: min(left, _BLOCK)])):
            yield buffer[:count]
            left -= count


def crc32(path: Path, begin: int = 0, end: int | None = None, value: int = 0) -> int:
    """Return the CRC-32 of the bytes of :func:`blocks`, after others of which it is `value`."""
    for block in blocks(path, begin, end):
        value = zlib.crc32(block, value)
    return value


class ChecksumFile:
    """A file that computes the CRC-32 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.crc32 = 0

    def write(self, data: bytes | memoryview) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def append_checksum(self) -> None:
        """Append the CRC-32 as zip comment, and sync the file to disk."""
        comment = CHECKSUM_MARK + b"%08x" % self.crc32
        self.file.write(comment)
        self.file.seek(-len(comment) - 2, os.SEEK_END)
        self.file.write(struct.pack("<H", len(comment)))
        sync(self.file)

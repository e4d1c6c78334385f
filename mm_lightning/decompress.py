"""Bytes of files: decompression, records between separators, and errors that say what is damaged."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, BinaryIO

from mm_lightning.errors import BadInput, UserError
from mm_lightning.stores import Remote, is_remote

_BLOCK = 1 << 20
_ZSTD_BLOCK = 1 << 12  # may hold some ten thousand times as much
LONGEST = 1 << 28
"""Bytes of the longest document that is read unless something else is asked for: 256 MiB."""


def records(
    stream: BinaryIO, separator: bytes, start: int, stop: int | None, longest: int = LONGEST
) -> Iterator[tuple[int, bytes | BadInput]]:
    """Yield the records between separators that begin at bytes start <= offset < stop, each with its offset.

    Reads each byte once, and no more of the file than it needs; holds one record, and no more than `longest` bytes.

    Args:
        stream: the file, at its beginning.
        separator: between two records.
        start: the first offset; a record that begins before belongs to another piece of the file.
        stop: where the next piece begins; None for the end of the file.
        longest: a record of more bytes is a BadInput in its place.
    """
    overlap = len(separator) - 1
    base = max(0, start - len(separator))  # the byte of the file behind those that were read
    if base:
        stream.seek(base)
    begin = 0 if start == 0 else None  # of the record that is being read; None up to the first that begins here
    record, size = [], 0  # its blocks, and its length, which goes on where they are dropped
    tail = b""  # the last bytes, which a separator may begin with
    while block := stream.read(_BLOCK):
        window, base = tail + block, base + len(block)
        offset, place = base - len(window), 0  # of the window in the file; in the window, behind the last record
        while (end := window.find(separator, place)) >= 0:
            if begin is not None:
                size += end - place
                record.append(window[place:end] if size <= longest else b"")
                yield begin, _joined(record, size, longest)
            place, record, size = end + len(separator), [], 0
            begin = offset + place
            if stop is not None and begin >= stop:
                return
        keep = max(place, len(window) - overlap)
        if begin is None and stop is not None and offset + keep + len(separator) >= stop:
            return  # whatever follows belongs to a later piece
        size += keep - place
        if begin is not None and size <= longest:
            record.append(window[place:keep])
        elif record:
            record = []
        tail = window[keep:]
    size += len(tail)
    if begin is not None and size:
        record.append(tail)
        yield begin, _joined(record, size, longest)


def _joined(blocks: list[bytes], size: int, longest: int) -> bytes | BadInput:
    return b"".join(blocks) if size <= longest else TooLong(longest)


class TooLong(BadInput):
    """Raised for a document of more bytes than are read."""

    def __init__(self, longest: int) -> None:
        super().__init__(f"more than {longest:,} bytes in one document")


def read_whole(stream: Any, longest: int) -> bytes:
    """Return all bytes of a stream.

    Raises:
        BadInput: they are more than `longest`, as may be those of a small compressed file.
    """
    blocks: list[bytes] = []
    left = longest
    while block := stream.read(min(_BLOCK, left + 1)):
        left -= len(block)
        if left < 0:
            raise TooLong(longest)
        blocks.append(block)
    return b"".join(blocks)


def arrow(url: str) -> tuple[ModuleType, ModuleType]:
    """Import pyarrow and pyarrow.parquet; `url` is for the message if they are missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{url} needs the package pyarrow: pip install 'mm-lightning[data]'") from error
    return pyarrow, pyarrow.parquet


@contextmanager
def opened(url: str, codec: str | None) -> Iterator[BinaryIO]:
    """Open a file for its decompressed bytes; damaged compression is a BadInput. A store that fails is asked again."""
    import fsspec

    with io.BufferedReader(Remote(url), _BLOCK) if is_remote(url) else fsspec.open(url, "rb") as stream:
        if codec == "gz":
            try:
                yield gzip.GzipFile(fileobj=stream)  # type: ignore[misc]
            except (zlib.error, EOFError) as error:
                raise BadInput(f"damaged gzip: {error}") from error
        elif codec == "zst":
            yield _ZstdReader(stream, url)  # type: ignore[misc]
        else:
            yield stream


class _ZstdReader:
    """The frames of a zstd file, read one after the other. (The library's own reader takes a truncated file for a
    short one.)"""

    def __init__(self, stream: BinaryIO, url: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise UserError(f"{url} needs the package zstandard: pip install 'mm-lightning[data]'") from error
        self._library, self._stream = zstandard, stream
        self._frame: Any = None

    def read(self, size: int = -1) -> bytes:
        """Return about `size` bytes, at least one unless at the end; all of them if `size` is negative."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_BLOCK), b""))
        data, rest = b"", b""
        while not data:
            block = rest or self._stream.read(min(size, _ZSTD_BLOCK))
            if not block:
                if self._frame is not None:
                    raise BadInput("damaged zstd: the file ends inside a frame")
                return b""
            self._frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            try:
                data = self._frame.decompress(block)
            except self._library.ZstdError as error:
                raise BadInput(f"damaged zstd: {error}") from error
            rest = b""
            if self._frame.eof:
                rest, self._frame = self._frame.unused_data, None
            if data and rest:
                self._stream.seek(-len(rest), io.SEEK_CUR)
        return data

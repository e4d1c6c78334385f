"""Bytes of files: decompression, records between separators, and errors that say what is damaged."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, BinaryIO

from mm_lightning.errors import BadInput, UserError
from mm_lightning.retry import patiently, storage_error

_BLOCK = 1 << 20


def records(stream: BinaryIO, separator: bytes, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """The records between separators that begin at bytes start <= offset < stop, each with its offset."""
    base = max(0, start - len(separator))  # the byte of the file at which the buffer begins
    if base:
        stream.seek(base)
    inside = start == 0  # else up to the first separator that ends at or after `start`
    buffer, begin, scanned = b"", 0, 0
    while True:
        end = buffer.find(separator, scanned)
        if end < 0:
            block = stream.read(_BLOCK)
            if not block:
                break
            scanned = max(begin, len(buffer) - len(separator) + 1) - begin
            buffer, base, begin = buffer[begin:] + block, base + begin, 0
            continue
        if stop is not None and base + begin >= stop:
            return
        if inside:
            yield base + begin, buffer[begin:end]
        inside = True
        begin = scanned = end + len(separator)
    if inside and begin < len(buffer) and (stop is None or base + begin < stop):
        yield base + begin, buffer[begin:]


def arrow(url: str) -> tuple[ModuleType, ModuleType]:
    """pyarrow and pyarrow.parquet; `url` is for the message if they are missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{url} needs the package pyarrow: pip install 'mm-lightning[data]'") from error
    return pyarrow, pyarrow.parquet


def is_remote(url: str) -> bool:
    """Return whether a URL, as fsspec writes it, is of another file system than the local one."""
    return "://" in url and not url.startswith("file:")


@contextmanager
def opened(url: str, codec: str | None) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file; damaged compression is a BadInput. A store that fails is asked again."""
    import fsspec

    with io.BufferedReader(_Remote(url), _BLOCK) if is_remote(url) else fsspec.open(url, "rb") as stream:
        if codec == "gz":
            try:
                yield gzip.GzipFile(fileobj=stream)  # type: ignore[misc]
            except (zlib.error, EOFError) as error:
                raise BadInput(f"damaged gzip: {error}") from error
        elif codec == "zst":
            yield _ZstdReader(stream, url)  # type: ignore[misc]
        else:
            yield stream


def _from_store(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        raise storage_error(error) from error


class _Remote(io.RawIOBase):
    """A file elsewhere, read again from where it was when its store fails."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url
        self._file: Any = patiently(lambda: _from_store(lambda: fsspec.open(url, "rb").open()), url)

    def readinto(self, buffer: Any) -> int:
        at = self._file.tell()

        def read() -> bytes:
            self._file.seek(at)
            return self._file.read(len(buffer))

        data = patiently(lambda: _from_store(read), self._url)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _ZstdReader:
    """Reads the frames of a zstd file one after the other. (The library's own reader takes a truncated file for a
    short one.)"""

    def __init__(self, stream: BinaryIO, url: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise UserError(f"{url} needs the package zstandard: pip install 'mm-lightning[data]'") from error
        self._library, self._stream = zstandard, stream
        self._frame: Any = None

    def read(self, size: int = -1) -> bytes:
        """About `size` bytes, at least one unless at the end; all of them if `size` is negative."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_BLOCK), b""))
        data, rest = b"", b""
        while not data:
            block = rest or self._stream.read(size)
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

"""Files of other machines, over HTTP or from any store that fsspec knows: which, what is wrong, and reading on."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse, urlsplit

from mm_lightning.retry import FINAL, Refused, Unreachable, patiently, storage_error

SECONDS = 30
"""The longest time that a server may stay silent."""
_BLOCK = 1 << 20

_Result = TypeVar("_Result")


def is_remote(url: str) -> bool:
    """Return whether a URL, as fsspec writes it, is of another file system than the local one."""
    return "://" in url and not url.startswith("file:")


def is_http(url: str) -> bool:
    """Return whether a URL is asked of a web server."""
    return url.lower().startswith(("http://", "https://"))


def file_path(url: str) -> str:
    """Return what of a URL names the file: not `?signature=...`, `#...` nor `;version=...`; a local path as it is."""
    if is_http(url):
        return unquote(urlparse(url).path)
    return urlsplit(url).path if is_remote(url) else url


def _scheme_lowered(url: str) -> str:
    """Return a URL as fsspec knows its scheme: HTTP://host is http://host."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme.lower()}{mark}{rest}" if mark else url


def options_of(url: str) -> dict[str, Any]:
    """Return what fsspec needs to know for a URL: proxies are the environment's, and there is no limit but silence."""
    if not is_http(url):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=SECONDS, sock_read=SECONDS)
    return {"client_kwargs": {"trust_env": True, "timeout": timeout}}


def from_store(action: Callable[[], _Result]) -> _Result:
    """Return the result of an action on a store.

    Raises:
        OSError: of the kind that :func:`storage_error` makes of what went wrong.
    """
    try:
        return action()
    except Exception as error:
        kind = storage_error(error)
        if kind is error:
            raise
        raise kind from error


def find(source: str, files_by_suffix: Iterable[str]) -> tuple[Any, str, dict[str, Any], bool]:
    """Return the file system of a source, its path there, what fsspec says of each file, and whether it is a folder.

    Args:
        source: a file, a folder (searched to the bottom) or a glob.
        files_by_suffix: ends of paths that are files for certain, of which a web server need not be asked for links.

    Raises:
        OSError: it cannot be reached, is not there, or is not allowed.
    """
    import fsspec

    source = _scheme_lowered(source)
    fs, root = fsspec.core.url_to_fs(source, **options_of(source))
    web = is_http(source)
    path = urlsplit(root).path if web else root  # a web address may have ? in it
    if any(c in path for c in ("*[" if web else "*?[")) and (web or not fs.exists(root)):
        files = {path: info for path, info in fs.glob(root, detail=True).items() if info["type"] == "file"}
        if not files and is_remote(source):
            parent = root[: min(root.find(c) for c in "*?[" if c in root)].rpartition("/")[0]
            fs.info(f"{parent}/") if web else fs.ls(parent)  # which raise what `glob` has passed over
        return fs, root, files, False
    if not is_remote(source) and not fs.exists(root):
        raise FileNotFoundError(root)
    info = fs.info(root)
    page = web and info.get("mimetype") in ("text/html", None) and not path.lower().endswith(tuple(files_by_suffix))
    if info["type"] == "directory" or (page and (path.endswith("/") or fs.isdir(root))):
        return fs, root, fs.find(root, detail=True), True
    return fs, root, {root: info}, False


def gives_ranges(url: str) -> bool:
    """Return whether a web server sends a file from its middle without what comes before."""
    with Remote(url) as file:
        file.seek(1)
        file.read(1)
        return file.ranges


class Remote(io.RawIOBase):
    """A file elsewhere, read on from where it was when its store fails or the connection is dropped.

    An end before the size that its store has promised is such a failure too. Of web servers each file is one request,
    and another from there on whenever reading goes on elsewhere; one that does not know of ranges sends it all again.

    Args:
        url: of the file.

    Attributes:
        ranges: whether the server knows of ranges, as far as it was asked for one.

    Raises:
        OSError: it is not there, not allowed, or cannot be reached.
        UserError: the store failed to the end.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.ranges = True
        self._url = url
        self._web = is_http(url)
        self._at = 0
        self._file: Any = None
        self._size: int | None = None
        self._version: str | None = None
        patiently(self._connect, url, (*FINAL, Unreachable))

    def _connect(self) -> Any:
        if self._file is None:
            self._file = from_store(self._request if self._web else self._open)
        return self._file

    def _open(self) -> Any:
        import fsspec

        fs, path = fsspec.core.url_to_fs(self._url)
        file = fs.open(path, "rb")
        size = getattr(file, "size", None)
        self._size = size if isinstance(size, int) else None
        return file

    def _request(self) -> Any:
        """Ask a web server for the file from where reading goes on."""
        import fsspec

        fs, path = fsspec.core.url_to_fs(self._url, **options_of(self._url))
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={self._at}-"} if self._at else {})
        # in one piece; fsspec would ask for the size with these headers
        file = fs.open(path, "rb", block_size=0, size=1, headers=headers)
        answer = file.r.headers
        file.loc, size = 0, answer.get("Content-Length")
        if file.r.status == 206:
            begin, _, size = answer.get("Content-Range", "").removeprefix("bytes ").replace("/", "-").split("-")
            file.loc = int(begin)
        elif self._at:
            self.ranges = False
        if answer.get("Content-Encoding", "identity") == "identity" and str(size).isdigit():
            version = f"{answer.get('ETag')} {size}"
            if self._version not in (None, version):
                file.close()
                raise Refused("it changed while it was read")
            self._version, self._size = version, int(str(size))
        return file

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):  # it is lost
                file.close()

    def _read(self, length: int) -> bytes:
        if self._size is not None and self._at >= self._size:
            return b""
        try:
            file = self._place()
            data = from_store(lambda: file.read(length))
            if not data and self._size is not None:
                raise ConnectionError(f"the connection was dropped at byte {self._at:,} of {self._size:,}")
        except Exception:
            self._drop()
            raise
        return data

    def _place(self) -> Any:
        """Return the file where reading goes on."""
        if not self._web:
            file = self._connect()
            if file.tell() != self._at:
                from_store(lambda: file.seek(self._at))
            return file
        if self._file is not None and not 0 <= self._at - self._file.tell() <= _BLOCK:
            self._drop()
        file = self._connect()
        while left := self._at - file.tell():  # a little, or all before, of a server without ranges
            if not from_store(partial(file.read, min(_BLOCK, left))):
                raise ConnectionError(f"the connection was dropped at byte {file.tell():,}")
        return file

    def readinto(self, buffer: Any) -> int:
        """Read at least a byte, unless the file is at its end."""
        data = patiently(lambda: self._read(len(buffer)), self._url)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go on reading from there."""
        if whence == io.SEEK_END and self._size is None:
            while self.read(_BLOCK):  # of a server that does not say how long the file is
                pass
            self._size = self._at
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size or 0}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

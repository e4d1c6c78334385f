"""Storage that fails for a moment: a network file system, an object store, a web server."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mm_lightning.errors import UserError
from mm_lightning.redaction import redact

_WAITS = (1.0, 4.0, 16.0)  # seconds before each further try


class Unreachable(OSError):
    """Raised where there is no such machine, or nothing there that answers."""


class Refused(OSError):
    """Raised for a request that a server will never fulfill."""


class Passing(OSError):
    """Raised for a failure that soon passes: a server that is busy or being started, silence, a dropped connection."""


FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, Refused)
"""Errors that trying again cannot mend."""

_PASSING = {408, 425, 429, *range(500, 600)} - {501, 505}  # statuses of HTTP
_KINDS: dict[int, tuple[type[OSError], str]] = {
    **dict.fromkeys((401, 402, 403, 407, 451), (PermissionError, "not allowed")),
    **dict.fromkeys((404, 410), (FileNotFoundError, "not there")),
}

_Result = TypeVar("_Result")


def storage_error(error: Exception) -> OSError:
    """Return any error that the library of a store raised as an OSError of a fitting kind with a message of one line.

    Libraries raise "not found" for whatever went wrong: what they raised it from says what that was.
    """
    chain = [*_causes(error)]
    for cause in chain:
        if type(cause).__name__ in _HUB:
            kind, reason = _HUB[type(cause).__name__]
            return kind(reason)
    for cause in chain:
        if status := _status(cause):
            kind, reason = _KINDS.get(status, (Passing if status in _PASSING else Refused, "refused"))
            reason = "the server failed" if kind is Passing else reason
            return kind(f"{reason} ({status}): {getattr(cause, 'message', None) or _text(cause)}".removesuffix(": "))
    for cause in reversed(chain):
        if isinstance(cause, socket.gaierror | ConnectionRefusedError) or type(cause).__name__ in _NOT_CONNECTED:
            reason = getattr(cause, "strerror", None) or _text(cause)
            return Unreachable(f"cannot be reached: {reason} (is there a network?)")
    for cause in chain:
        if isinstance(cause, TimeoutError):
            return Passing(f"timed out: {cause}".removesuffix(": "))
        if isinstance(cause, ConnectionError) or type(cause).__name__ in _DROPPED:
            return Passing(f"the connection was dropped: {_text(cause)}")
    if isinstance(error, FileNotFoundError | PermissionError) and error.errno is None:  # a store's own
        reason = "not there" if isinstance(error, FileNotFoundError) else "not allowed"
        address = _text(error).lower().startswith("http")  # of fsspec, for an answer of 404
        return type(error)(f"{reason} (404)" if address else f"{reason}: {_text(error)}")
    return error if isinstance(error, OSError) else OSError(_text(error))


# by name, because their libraries are imported only where they are used
_NOT_CONNECTED = ("ClientConnectorError", "ClientConnectorDNSError", "EndpointConnectionError", "ConnectError")
_DROPPED = (
    *("ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "IncompleteRead", "ProtocolError"),
    *("RemoteProtocolError", "ReadError", "WriteError", "ReadTimeout", "WriteTimeout", "ConnectTimeout"),
)
NOT_CACHED = (
    "not in the cache of huggingface_hub, and the Hub cannot be reached: run it once where there is a network, or give "
    "a file"
)
_LOGIN = "log in by `hf auth login`, or set HF_TOKEN"
_HUB: dict[str, tuple[type[OSError], str]] = {
    "GatedRepoError": (PermissionError, f"gated: accept its terms on its page of the Hugging Face Hub, and {_LOGIN}"),
    "RepositoryNotFoundError": (
        FileNotFoundError,
        f"no such repository, or a private one: check the name (of data: hf://datasets/ORG/NAME), and {_LOGIN}",
    ),
    "RevisionNotFoundError": (FileNotFoundError, "no such revision of the repository: name a branch, tag or commit"),
    "LocalEntryNotFoundError": (Unreachable, NOT_CACHED),
    "OfflineModeIsEnabled": (Unreachable, "HF_HUB_OFFLINE is set: unset it where there is a network"),
}
"""Errors of huggingface_hub."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _status(error: Any) -> int | None:
    """Return the status of HTTP that an error of any library carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) and 400 <= status < 600 else None


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def patiently(
    action: Callable[[], _Result],
    what: str,
    final: tuple[type[OSError], ...] = FINAL,
    passing: type[OSError] = OSError,
) -> _Result:
    """Do something that reads, again a few times if the storage fails, waiting longer each time.

    Args:
        action: what to do.
        what: the file that is read, for messages.
        final: errors that trying again does not mend.
        passing: the errors that it may.

    Raises:
        UserError: it failed to the end.
        OSError: what trying again cannot mend: the file is missing, or not to be read.
    """
    for wait in (*_WAITS, None):
        try:
            return action()
        except final:
            raise
        except passing as error:
            if wait is None:
                raise UserError(f"cannot read {what}: {error} ({len(_WAITS) + 1} tries)") from error
            logging.getLogger(__name__).warning("%s: %s; trying again in %g s", redact(what), error, wait)
            time.sleep(wait)
    raise AssertionError

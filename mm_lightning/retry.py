"""Storage that fails for a moment: a network file system, an object store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mm_lightning.errors import UserError

_WAITS = (1.0, 4.0, 16.0)  # seconds before each further try
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

_Result = TypeVar("_Result")


def storage_error(error: Exception) -> OSError:
    """Return any error that the library of a store raised as an OSError with a message of one line."""
    if isinstance(error, OSError):
        return error
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    kind = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}
    return kind.get(status or 0, OSError)(" ".join(str(error).split())[:300] or type(error).__name__)


def patiently(action: Callable[[], _Result], what: str) -> _Result:
    """Does something that reads, again a few times if the storage fails, waiting longer each time.

    Args:
        action: what to do.
        what: the file that is read, for messages.

    Raises:
        UserError: it failed to the end.
        OSError: what trying again cannot mend: the file is missing, or not to be read.
    """
    for wait in (*_WAITS, None):
        try:
            return action()
        except _FINAL:
            raise
        except OSError as error:
            if wait is None:
                raise UserError(f"cannot read {what}: {error} ({len(_WAITS) + 1} tries)") from error
            logging.getLogger(__name__).warning("%s: %s; trying again in %g s", what, error, wait)
            time.sleep(wait)
    raise AssertionError

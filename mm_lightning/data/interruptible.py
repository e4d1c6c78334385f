"""Let ctrl-C end long calls into libraries that ignore signals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def interruptible(action: Callable[[], _Result]) -> _Result:
    """Run `action` in a thread of its own; return its result, or raise its exception.

    An interrupt ends the wait at once. The thread is a daemon: it goes on until it is done or the process ends.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        raise errors[0]
    return results[0]

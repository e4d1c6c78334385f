"""Long calls into libraries that ignore signals, made so that ctrl-C ends them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def interruptible(action: Callable[[], _Result]) -> _Result:
    """Return the result of `action`, which runs in a thread of its own, or raise what it raises.

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

"""Signals, which only a program's main thread can listen to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any


def listen(numbers: Iterable[int], handler: Callable[[int, Any], Any]) -> dict[int, Any]:
    """Let a function handle signals; outside the main thread, which alone can, leave them as they are.

    Args:
        numbers: of the signals.
        handler: takes a signal's number and the frame that it interrupts.

    Returns:
        what handled each before, for :func:`restore`.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def restore(handlers: dict[int, Any]) -> None:
    """Let signals be handled as before :func:`listen`."""
    for number, before in handlers.items():
        if before is not None:  # one that was not installed from Python cannot be put back from there
            signal.signal(number, before)

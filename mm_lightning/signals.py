"""Signals, which only a program's main thread can listen to, and how processes end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
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


def end_with_parent() -> None:
    """Let this process, which multiprocessing has started, end when the one that started it is gone, killed too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def how_it_ended(status: int, hints: Mapping[signal.Signals, str]) -> str:
    """Return how a process ended, from its exit status as Python has it: "was killed by SIGKILL, perhaps ...".

    Args:
        status: negative for a signal.
        hints: what may be behind a signal.
    """
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"ended with exit status {status}"
    hint = hints.get(number)
    return f"was killed by {number.name}" + (f", {hint}" if hint else "")

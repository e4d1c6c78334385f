"""Signals that end a command: what they raise, which exit status they give, and the queue that starts it again; and how
processes end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from mm_lightning.outputs import write_json

# Slurm's warning is what `#SBATCH --signal` says, often SIGUSR1; submitit's is SIGUSR2; SIGHUP is a closed terminal's
NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
PREEMPTED = 85  # the number of ERESTART: to be started again
INTERRUPTED = 130
MARK = "preempted.json"
SAME_NOTICE = 1.0
"""Seconds within which a second signal is taken for the first: a terminal and torchrun both pass on ctrl-C."""

STUCK = 3.0
"""Seconds after which a main thread that has not heard a signal is taken to wait in native code."""
when_stuck: list[Callable[[Any], None]] = []
"""Functions that are called then with the :class:`Ended` of the signal, before the process ends."""

_first: tuple[int, float] | None = None  # the signal that ends this command, and when it came


class Ended(KeyboardInterrupt):
    """Raised in the main thread by a signal that ends a command, so that all that cleans up after ctrl-C does.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(name(number))
        self.number = number


def name(number: int) -> str:
    """Return the name of a signal: 15 -> SIGTERM; 2 -> ctrl-C."""
    return "ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def signal_of(ended: KeyboardInterrupt) -> int:
    """Return the signal that raised it."""
    return getattr(ended, "number", signal.SIGINT)


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


@contextlib.contextmanager
def starting_deaf() -> Iterator[None]:
    """Context manager within which processes are started that hear none of the signals meant for this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    try:
        resource_tracker.ensure_running()  # first, because it lets two of the signals through again
        signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


@contextlib.contextmanager
def ending(stuck: Callable[[Ended], int] | None = None) -> Iterator[None]:
    """Context manager within which each of `NOTICES` ends the command as ctrl-C does, which Python itself raises.

    A second one, a second or more after the first, ends the process at once. What ignores a signal, as nohup does, or
    handles it already, stays.

    Args:
        stuck: returns the exit status of a process whose main thread hears nothing, as one that waits for others in
            native code; it is asked, in another thread, when that has lasted for some seconds. None waits.
    """
    global _first
    before, _first = _first, None
    numbers = [n for n in NOTICES if n != signal.SIGINT and signal.getsignal(n) == signal.SIG_DFL]
    handlers = listen(numbers, _end)
    with _watched(stuck) if stuck and handlers else contextlib.nullcontext():
        try:
            yield
        finally:
            restore(handlers)
            _first = before


@contextlib.contextmanager
def _watched(stuck: Callable[[Ended], int]) -> Iterator[None]:
    """Context manager within which a thread reads of each signal when it arrives, whatever the main thread does."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    over = threading.Event()
    threading.Thread(target=_watch, args=(reading, stuck, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)  # which ends the thread


def _watch(reading: int, stuck: Callable[[Ended], int], over: threading.Event) -> None:
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] not in NOTICES or signal.getsignal(number[0]) is not _end:  # but a training's own
                continue
            if over.wait(STUCK):
                return
            if _first is None and signal.getsignal(number[0]) is _end:
                if _child_of_lightning():
                    os.kill(os.getppid(), number[0])
                ended = Ended(number[0])
                for action in when_stuck:
                    action(ended)
                os._exit(stuck(ended))


def _end(number: int, frame: Any) -> None:
    global _first
    now = time.monotonic()
    if _first is None:
        _first = (number, now)
        if _child_of_lightning():
            os.kill(os.getppid(), number)
        raise Ended(number)
    if now - _first[1] > SAME_NOTICE:
        os._exit(128 + number)


def noticed() -> int:
    """Return the signal that has ended this command, or was to: Python drops what is raised in a destructor; or 0."""
    return _first[0] if _first else 0


def interrupt(number: int, frame: Any) -> None:
    """Raise what ctrl-C raises, whatever the signal: a handler for :func:`listen`."""
    raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)


def rank() -> int:
    """Return which of several processes that were started together this is, as Lightning does."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return int(next((os.environ[name] for name in names if os.environ.get(name)), 0))


def _child_of_lightning() -> bool:
    """Return whether the first process of this machine has started this one: it decides for both how they end."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ


def left_before_training(ended: Ended, job: str | None) -> int:
    """Say that a run was ended before its first step, and queue its Slurm job again; return the exit status.

    Args:
        ended: what ended it.
        job: the Slurm job; None for none.
    """
    if _child_of_lightning():
        return 0  # Lightning would kill all processes for one that ends with an error
    if rank() == 0:
        _say(f"mm: {name(ended.number)}: ended before the first step; the same command goes on")
        # torchrun sends SIGTERM to the other processes when one has failed, which would fail again
        if job and not (ended.number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ):
            _say(f"mm: {requeue(job)}")
    return PREEMPTED


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # which reaches a closed terminal no more
        os.write(2, f"{line}\n".encode())


def write_mark(folder: Path, number: int, step: int, checkpoint: str | None) -> None:
    """Write what ended a run into its folder."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / MARK, {"signal": name(number), "step": step, "checkpoint": checkpoint, "time": now})


def requeue(job: str) -> str:
    """Ask Slurm to start a job again; return a line that says what came of it."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        problem = done.stderr.strip() or f"exit status {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    return f"could not requeue Slurm job {job}: {problem}" if problem else f"Slurm job {job} is queued again"

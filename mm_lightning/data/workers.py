"""Loader workers that ignore the signals meant for training and end with it, and detection of their deaths.

Slurm, a terminal and `kill -- -GROUP` signal every process of a run. Training then saves after the current step, for
which it needs its workers.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing import connection, forkserver
from multiprocessing.util import Finalize
from typing import Any

from mm_lightning import streams
from mm_lightning.errors import UserError
from mm_lightning.signals import end_with_parent, how_it_ended, starting_deaf

# Forking a process with threads (gloo's, for one) can deadlock: workers are forked from a server that has only imported
# what they need.
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["__main__", "mm_lightning.data.batch", "mm_lightning.data.sequences"]

_HINTS = {
    signal.SIGKILL: "perhaps for lack of memory: fewer workers (data.num_workers), or smaller batches, need less",
    signal.SIGBUS: "perhaps because shared memory (/dev/shm) is full",
}


class WorkerDied(Exception):
    """A loader worker has ended; the message says which, and how."""


class Worker:
    """A process that reads batches for this one, in the order in which it is asked for them, and ends with the object.

    Each has a pipe of its own: whenever one dies, no other waits for what it held.

    Args:
        number: of the worker, for messages.
        read: returns the batch of a list of indices.
    """

    def __init__(self, number: int, read: Callable[[list[int]], Any]) -> None:
        self.number = number
        self._pipe, other_end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(other_end, read), daemon=True)
        self._process.start()
        other_end.close()
        self._asked = self._outdated = 0  # batches that are not received yet, and those of them that nobody wants

    def ask(self, indices: list[int]) -> None:
        """Ask for the batch of these indices."""
        with contextlib.suppress(OSError):  # that a worker is dead is said by `receive`
            self._pipe.send(indices)
        self._asked += 1

    def forget(self) -> None:
        """Drop what was asked for and not received."""
        self._outdated = self._asked

    def receive(self, timeout: float) -> Any:
        """Return the next batch.

        Args:
            timeout: seconds to wait, in which this process is awake: one that was stopped and continued still waits.

        Raises:
            WorkerDied: the process has ended.
            UserError: it cannot read the batch, or gives none within `timeout`.
        """
        while self._outdated:
            self._outdated -= 1
            self._receive(timeout)
        batch = self._receive(timeout)
        if isinstance(batch, Exception):
            raise batch
        return batch

    def _receive(self, timeout: float) -> Any:
        for _ in range(max(1, round(timeout))):
            ready = connection.wait([self._pipe, self._process.sentinel], 1)
            if self._pipe in ready:
                with contextlib.suppress(EOFError, OSError):
                    batch = self._pipe.recv()
                    self._asked -= 1
                    return batch
            if ready:
                self._process.join(5)  # its pipe may close before it ends
                how = how_it_ended(self._process.exitcode or 0, _HINTS)
                raise WorkerDied(f"loader worker {self.number} (process {self._process.pid}) {how}")
        raise UserError(
            f"the loader workers have given no batch for {timeout:g} s: they hang, or the storage does; `--resume` "
            f"goes on from the newest checkpoint"
        )

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join(5)


def _serve(pipe: Any, read: Callable[[list[int]], Any]) -> None:
    """Send the batches of the indices that arrive, until the other end is closed."""
    _prepare()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_result(read, pipe.recv()))


def _result(read: Callable[[list[int]], Any], indices: list[int]) -> Any:
    """Return a batch, or the error of reading it; that of a mistake in a program as text, with its traceback."""
    try:
        return read(indices)
    except UserError as error:
        return error
    except Exception:
        return RuntimeError(f"in a loader worker:\n{traceback.format_exc()}")


def start_server() -> None:
    """Start the fork server of loader workers with signals blocked, which its workers inherit."""
    _end_workers_at_exit()
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    with starting_deaf():
        forkserver.ensure_running()


@functools.cache
def _end_workers_at_exit() -> None:
    """Kill the workers when this process exits, as after an error.

    Multiprocessing would send each a SIGTERM, which they ignore as one meant for training, and wait for them.
    """
    Finalize(None, _end_workers, exitpriority=100)


def _end_workers() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _prepare() -> None:
    """Let this worker end with the training process, and at the second SIGTERM.

    The first may be meant for training, the second is a clean-up.
    """
    streams.guard()
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    end_with_parent()

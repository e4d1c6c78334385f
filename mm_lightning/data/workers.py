"""Loader workers that outlive the signals meant for the training they serve, but not the training.

Slurm, a terminal and `kill -- -GROUP` signal every process there is. Training answers by saving after the current step,
for which it needs its workers.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.util import Finalize

from mm_lightning import streams

_MEANT_FOR_TRAINING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def start_server() -> None:
    """Starts the process that workers are forked from, deaf to these signals, as its workers are then."""
    _end_workers_at_exit()
    resource_tracker.ensure_running()  # first, because it lets two of the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _MEANT_FOR_TRAINING)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def _end_workers_at_exit() -> None:
    """Lets this process end while it has workers, as after an error.

    Multiprocessing sends each a SIGTERM, which they take for one that is meant for training, and waits for them.
    """
    Finalize(None, _end_workers, exitpriority=100)


def _end_workers() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def prepare_worker(worker: int) -> None:
    """Lets a worker end with the training process, and at the second SIGTERM.

    The first may be for training, the next is from whoever cleans up. The training process is not the worker's parent,
    which torch watches: that is the server, and it stays as long as it has workers.
    """
    streams.guard()
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)

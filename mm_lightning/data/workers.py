"""Loader workers that outlive the signals meant for the training they serve.

Slurm, a terminal and `kill -- -GROUP` signal every process there is. Training answers by saving after the current step,
for which it needs its workers.
"""

from __future__ import annotations

import signal
from multiprocessing import forkserver, resource_tracker

_MEANT_FOR_TRAINING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def start_server() -> None:
    """Starts the process that workers are forked from, deaf to these signals, as its workers are then."""
    resource_tracker.ensure_running()  # first, because it lets two of the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _MEANT_FOR_TRAINING)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_the_second(worker: int) -> None:
    """Lets a worker end at the second SIGTERM: the first may be for training, the next is from whoever cleans up."""
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

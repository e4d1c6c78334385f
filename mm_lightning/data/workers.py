"""Loader workers that ignore the signals meant for training and end with it, and detection of their deaths.

Slurm, a terminal and `kill -- -GROUP` signal every process of a run. Training then saves after the current step, for
which it needs its workers.
"""

from __future__ import annotations

import functools
import multiprocessing
import signal
from multiprocessing import connection, forkserver
from multiprocessing.util import Finalize
from typing import Any

from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mm_lightning import streams
from mm_lightning.errors import UserError
from mm_lightning.signals import end_with_parent, how_it_ended, starting_deaf

_HINTS = {
    signal.SIGKILL: "perhaps for lack of memory: fewer workers (data.num_workers), or smaller batches, need less",
    signal.SIGBUS: "perhaps because shared memory (/dev/shm) is full",
}


class WorkerDied(Exception):
    """A loader worker has ended; the message says which, and how."""


class WorkerBatches(_MultiProcessingDataLoaderIter):
    """The batches of loader workers, whose death is noticed within two seconds.

    Torch checks on workers only after its timeout, because those of a fork server are not its children. The timeout
    counts the seconds in which this process was awake: a process that was stopped and continued still waits.
    """

    def _try_get_data(self, timeout: float = 1) -> tuple[bool, Any]:
        for _ in range(max(1, round(timeout))):
            try:
                success, data = super()._try_get_data(1)
            except (RuntimeError, OSError, EOFError) as error:
                deaths = self._deaths()
                if not deaths:
                    raise
                raise WorkerDied(" and ".join(deaths)) from error
            if success:
                return success, data
        raise UserError(
            f"the loader workers have given no batch for {timeout:g} s: they hang, or the storage does; `--resume` "
            f"goes on from the newest checkpoint"
        )

    def _deaths(self) -> list[str]:
        """Describe each worker that has ended."""
        connection.wait([worker.sentinel for worker in self._workers], 1)  # a worker's socket may close before it ends
        return [
            f"loader worker {number} (process {worker.pid}) {how_it_ended(worker.exitcode, _HINTS)}"
            for number, worker in enumerate(self._workers)
            if worker.exitcode is not None
        ]

    def end(self) -> None:
        """End the other workers without torch's shutdown, which waits for locks that a dead worker may hold."""
        self._shutdown = True
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join(5)
        for queue in (*self._index_queues, self._worker_result_queue):
            queue.cancel_join_thread()
        if self._pin_memory:
            self._pin_memory_thread_done_event.set()
        if self._worker_pids_set:
            signal_handling._remove_worker_pids(id(self))
            self._worker_pids_set = False


def start_server() -> None:
    """Start the fork server of loader workers with signals blocked, which its workers inherit."""
    _end_workers_at_exit()
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


def prepare_worker(worker: int) -> None:
    """Set up a worker that ends with the training process, and at the second SIGTERM.

    The first may be meant for training, the second is a clean-up. Torch watches a worker's parent, but that is the fork
    server, which stays as long as it has workers.
    """
    streams.guard()
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    end_with_parent()

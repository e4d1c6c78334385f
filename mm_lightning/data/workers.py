"""Loader workers that outlive the signals meant for the training they serve, but not the training; and their deaths.

Slurm, a terminal and `kill -- -GROUP` signal every process there is. Training answers by saving after the current step,
for which it needs its workers.
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
    """A loader worker has ended: which, and how."""


class WorkerBatches(_MultiProcessingDataLoaderIter):
    """Batches from workers, whose death is noticed within a second or two.

    Torch looks after them when its timeout is over; those of a fork server are nobody's children that it hears of.
    The timeout is counted in seconds that this process was awake, so that one that was stopped and goes on still waits.
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
        """Say of each worker that has ended which and how."""
        connection.wait([worker.sentinel for worker in self._workers], 1)  # its socket may close a little earlier
        return [
            f"loader worker {number} (process {worker.pid}) {how_it_ended(worker.exitcode, _HINTS)}"
            for number, worker in enumerate(self._workers)
            if worker.exitcode is not None
        ]

    def end(self) -> None:
        """End the workers that are left, without the locks they share: nobody frees one that a dead worker held."""
        self._shutdown = True  # which torch would do with them
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
    """Starts the process that workers are forked from, deaf to these signals, as its workers are then."""
    _end_workers_at_exit()
    with starting_deaf():
        forkserver.ensure_running()


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
    end_with_parent()

"""Several processes of one machine that share the questions."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import sys
import time
from typing import TYPE_CHECKING

from mm_lightning import streams
from mm_lightning.errors import UserError
from mm_lightning.evaluation.run import Job, run
from mm_lightning.signals import end_with_parent, how_it_ended

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_HINTS = {signal.SIGKILL: "perhaps for lack of memory: fewer --processes, or a smaller --batch_size, need less"}


def run_processes(job: Job, processes: int) -> None:
    """Ask everything by several processes on this machine: on GPUs cuda:0, cuda:1, ... or on the CPU.

    Raises:
        UserError: for any mistake of the user's, also those that a process has found.
    """
    context = multiprocessing.get_context("spawn")
    workers, ends = [], []
    for rank, device in enumerate(devices(job.device, processes)):
        end, other = context.Pipe(duplex=False)
        part = dataclasses.replace(job, device=device, rank=rank, world_size=processes)
        workers.append(context.Process(target=_work, args=(part, other), daemon=True))
        workers[-1].start()
        other.close()
        ends.append(end)
    try:
        while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
            time.sleep(0.1)
    except KeyboardInterrupt:
        for worker in workers:  # ctrl-C in a terminal reaches them as well
            worker.join(10)
        raise
    finally:
        failed = [rank for rank, worker in enumerate(workers) if worker.exitcode]
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(10)
            worker.kill()  # one that is stopped hears nothing else
            worker.join()
    for rank in failed:
        message = _mistake(ends[rank])
        if message is None:
            how = how_it_ended(workers[rank].exitcode or 0, _HINTS)
            raise UserError(
                f"process {rank} of {processes} {how}{', see above' if workers[rank].exitcode == 1 else ''}; what was "
                f"answered is kept, and the same command goes on"
            )
        raise UserError(f"process {rank} of {processes}: {message}")


def _mistake(end: Connection) -> str | None:
    """Return the error of a process that has ended; None if it sent none."""
    try:
        return end.recv() if end.poll() else None
    except EOFError:  # it was killed
        return None


def devices(device: str, processes: int) -> list[str]:
    """Return the device of each process.

    Raises:
        UserError: there are fewer GPUs.
    """
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return [device] * processes
    if device not in ("auto", "cuda"):
        raise UserError(f"--processes uses cuda:0, cuda:1, ...: give --device cuda or cpu, not {device}")
    if processes > torch.cuda.device_count():
        raise UserError(f"--processes {processes}, but there are {torch.cuda.device_count()} GPUs here")
    return [f"cuda:{n}" for n in range(processes)]


def _work(job: Job, end: Connection) -> None:
    import torch

    streams.guard()
    end_with_parent()
    torch.set_num_threads(max(1, torch.get_num_threads() // job.world_size))
    try:
        run(job)
    except UserError as error:
        end.send(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)

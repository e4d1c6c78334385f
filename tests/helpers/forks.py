"""Processes that start at once: forks of one that has imported what the tests import and has computed nothing yet.

Autograd refuses to run in forks of a process whose backward pass has had threads, so their server is forked before the
first test. Tests of how a process starts use fresh ones (launch.py).
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import launch

_server: list[Connection] = []


@contextlib.contextmanager
def fork_server():
    """Context manager in which this process can fork others; none of them outlives it."""
    client, server = multiprocessing.Pipe()
    parent = os.getpid()
    process = os.fork()
    if not process:
        client.close()
        serve(server, parent)
    server.close()
    _server.append(client)
    try:
        yield
    finally:
        _server.clear()
        client.close()
        os.waitpid(process, 0)


def serve(connection: Connection, parent: int) -> None:
    """Start and reap processes as asked until the connection or the process that asks ends; never return."""
    silence = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(silence, number)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the tests' to handle
    living: set[int] = set()
    with contextlib.suppress(EOFError, OSError):
        while os.getppid() == parent:
            if not connection.poll(1):
                continue
            match connection.recv():
                case int(process):
                    ended, status = os.waitpid(process, os.WNOHANG)
                    living.discard(ended)
                    connection.send(os.waitstatus_to_exitcode(status) if ended else None)
                case request:
                    process = os.fork()
                    if not process:
                        connection.close()
                        work(*request)
                    living.add(process)
                    connection.send(process)
    for process in living:
        os.kill(process, signal.SIGKILL)
    os._exit(0)


def work(run: Callable[..., int | None], arguments: tuple, environment: dict[str, str], folder: str, log: str) -> None:
    """Call `run` in this process and end with what it returns as exit status."""
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        logging.root.handlers.clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        import torch
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        torch.set_num_threads(1)
        rank_zero_only.rank = int(environment.get("RANK", 0))  # read from the environment at its import
        status = run(*arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ranks(run: Callable[..., int | None], *arguments: object, folder: Path, timeout: float = 280) -> list[int]:
    """Return the exit statuses of `run(*arguments)` in two processes that are the ranks of one run.

    What they print is in rank0.log and rank1.log in the folder.
    """
    shared = {**os.environ, **launch.meeting_place(count=2), "OMP_NUM_THREADS": "1"}
    places = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return fork(run, arguments, [(place, folder / f"rank{place['RANK']}.log") for place in places], timeout)


def one(run: Callable[..., int | None], *arguments: object, log: Path, timeout: float = 280) -> int:
    """Return the exit status of `run(*arguments)` in one process, which adds what it prints to the log."""
    (status,) = fork(run, arguments, [({**os.environ, "OMP_NUM_THREADS": "1"}, log)], timeout)
    return status


def fork(
    run: Callable[..., int | None], arguments: tuple, places: list[tuple[dict[str, str], Path]], timeout: float
) -> list[int]:
    """Return the exit statuses of `run(*arguments)` in processes with these environments and logs."""
    (server,) = _server
    started = []
    for environment, log in places:
        server.send((run, arguments, environment, os.getcwd(), str(log)))
        started.append(server.recv())
    deadline = time.monotonic() + timeout
    return [wait(server, process, deadline) for process in started]


def wait(server: Connection, process: int, deadline: float) -> int:
    """Return the exit status of a process, which is killed at the deadline."""
    while True:
        server.send(process)
        if (status := server.recv()) is not None:
            return status
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.02)

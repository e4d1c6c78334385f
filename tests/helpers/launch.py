"""Run `mm` and other commands in processes of their own: fresh ones, or forks, which have imported everything."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def mm(*args: str, timeout: int = 280) -> subprocess.CompletedProcess:
    """`mm ARGS` in a process of its own, one thread in each of its processes."""
    return run(sys.executable, "-m", "mm_lightning.cli", *args, timeout=timeout)


def run(*command: str, timeout: int = 280) -> subprocess.CompletedProcess:
    """The same for any command."""
    # Configs may name the callbacks of spies.py.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def ranks(*command: str, folder: Path, count: int = 2, timeout: int = 2500) -> list[int]:
    """The same command in processes that are one run, as a launcher would start them; their exit statuses.

    What they say is in rank0.log, rank1.log, ... in the folder.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "tests"}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    started = []
    for rank in map(str, range(count)):
        environment = {**os.environ, **place, "WORLD_SIZE": str(count), "RANK": rank, "LOCAL_RANK": rank}
        with open(folder / f"rank{rank}.log", "w") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            )
        started.append(process)
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def forked_mm(*args: str, log: Path, timeout: int = 280) -> int:
    """Return the exit status of `mm ARGS` in a fork of this process; what it prints is in `log`.

    Processes that it starts are fresh ones, as those of `mm`.
    """

    def run() -> int:
        from mm_lightning.cli import main

        sys.argv = ["mm", *args]  # Lightning's launcher repeats the command line of the first process
        sys.modules["__main__"].__spec__ = importlib.util.find_spec("mm_lightning.cli")
        return main(args)

    return wait(fork(run, log), timeout)


def forked_ranks(run: Callable[[], int | None], folder: Path, count: int = 2, timeout: int = 280) -> list[int]:
    """Return the exit statuses of `run()` in so many forks of this process, which are the ranks of one run.

    What they print is in rank0.log, rank1.log, ... in the folder.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "tests"}

    def run_rank(rank: int) -> int | None:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        os.environ.update(place, WORLD_SIZE=str(count), RANK=str(rank), LOCAL_RANK=str(rank))
        rank_zero_only.rank = rank  # was read from the environment at its import
        return run()

    started = [fork(lambda rank=rank: run_rank(rank), folder / f"rank{rank}.log") for rank in range(count)]
    return [wait(process, timeout) for process in started]


def fork(run: Callable[[], int | None], log: Path) -> int:
    """Return the process that calls `run` and ends with what it returns as its exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        os.environ["OMP_NUM_THREADS"] = "1"
        status = run() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(process: int, timeout: float) -> int:
    """Return the exit status of a forked process, which is killed when it takes longer."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

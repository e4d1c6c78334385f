"""Run `mm` and other commands in fresh processes: autograd refuses forks of one whose backward pass had threads."""

import os
import socket
import subprocess
import sys
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


def meeting_place(count: int) -> dict[str, str]:
    """Return the environment that so many ranks of a run have in common."""
    port = str(free_port())
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests", "WORLD_SIZE": str(count)}


def ranks(*command: str, folder: Path, count: int = 2, timeout: int = 2500) -> list[int]:
    """The same command in processes that are one run, as a launcher would start them; their exit statuses.

    What they say is in rank0.log, rank1.log, ... in the folder.
    """
    place = meeting_place(count)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    started = []
    for rank in map(str, range(count)):
        environment = {**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank}
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

"""Runs `mm` with several processes, which have to begin as processes of their own."""

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


def ranks(*command: str, folder: Path, count: int = 2, timeout: int = 2500) -> list[int]:
    """The same command in processes that are one run, as a launcher would start them; their exit statuses.

    What they say is in rank0.log, rank1.log, ... in the folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "tests"}
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    started = []
    for rank in map(str, range(count)):
        environment = {**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}
        with open(folder / f"rank{rank}.log", "w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**environment, "PYTHONPATH": path}
            )
        started.append(process)
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()

"""Runs `mm` with several processes, which have to begin as processes of their own."""

import os
import subprocess
import sys


def mm(*args: str, timeout: int = 280) -> subprocess.CompletedProcess:
    """`mm ARGS` in a process of its own, one thread in each of its processes."""
    return run(sys.executable, "-m", "mm_lightning.cli", *args, timeout=timeout)


def run(*command: str, timeout: int = 280) -> subprocess.CompletedProcess:
    """The same for any command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)

"""Runs `mm` with several processes, which have to begin as processes of their own."""

import os
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

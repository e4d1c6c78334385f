"""Time `mm --help`, the imports of `mm fit`, and `mm fit` up to its first training step, each in fresh processes.

python tests/benchmarks/startup.py --config configs/quickstart.yaml --repeats 3

The data must be prepared. Which packages take longest to import: `python -X importtime -m mm_lightning.cli fit ...`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable

from mm_lightning.console import print_table
from mm_lightning.experiments.estimate import IMPORTS

MM = [sys.executable, "-m", "mm_lightning.cli"]
MARKS = {"mm fit: first line": "", "mm fit: training starts": "run folder", "mm fit: first step": r"step +1/"}


def run_seconds(command: list[str]) -> float:
    """Return the seconds of a command that ends by itself."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def first_step(options: list[str]) -> dict[str, float]:
    """Return after how many seconds `mm fit` printed each of :data:`MARKS`; it is killed at its first step."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [*MM, "fit", *options, "--run", f"{folder}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            seconds = marked(process.stdout or (), start)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers
            process.wait()
    if len(seconds) < len(MARKS):
        sys.exit(f"mm fit {' '.join(options)} ended before its first step")
    return seconds


def marked(lines: Iterable[str], start: float) -> dict[str, float]:
    """Return the seconds from `start` to the first line that begins with each of :data:`MARKS`."""
    seconds: dict[str, float] = {}
    for line in lines:
        for name, pattern in MARKS.items():
            if re.match(pattern, line):
                seconds.setdefault(name, time.perf_counter() - start)
        if len(seconds) == len(MARKS):
            break
    return seconds


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    options = [word for path in given.config for word in ("--config", path)]
    options += ["--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
    short = {"mm --help": [*MM, "--help"], "Python alone": [sys.executable, "-c", "pass"]}
    short["imports of mm fit"] = [sys.executable, "-c", IMPORTS]
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(given.repeats):
        for name, command in short.items():
            seconds[name].append(run_seconds(command))
        for name, passed in first_step(options).items():
            seconds[name].append(passed)
    rows = [(name, f"{statistics.median(times):.2f}") for name, times in seconds.items()]
    print_table(["", "seconds"], rows, "until mm answers", f"medians of {given.repeats} processes each")


if __name__ == "__main__":
    main()

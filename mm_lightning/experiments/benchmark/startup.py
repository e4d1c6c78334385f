"""How long `mm` takes to answer, and `mm fit` to finish its first step, in fresh processes."""

from __future__ import annotations

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.experiments.benchmark.report import report
from mm_lightning.experiments.benchmark.timing import begin, machine
from mm_lightning.ranges import Count, Few, Name, Place, Seed

MM = [sys.executable, "-m", "mm_lightning.cli"]

IMPORTS = "from mm_lightning.training.cli import prepare; prepare()"

PATIENCE = 600.0
"""Seconds until a process is given up."""

STEP = re.compile(r"step +1/")
PACKAGES = 8
"""The slowest to import, in the table."""


def startup_command(
    config: Place | list[Place],
    device: Name = "cpu",
    threads: Few | None = None,
    repeats: Count = 5,
    seed: Seed = 1,
    output: Place | None = None,
    overwrite: bool = False,
) -> None:
    """Time `mm --help`, and `mm fit` up to the end of its first training step.

    Each time a fresh process, in turns; the data must be prepared. The first step counts as done when its loss stands
    in the run's output. The table says when a run gets where (medians): its first word, the start of training, the
    first step; Python alone and the imports of `mm fit` are timed apart; and in one more run, which packages take
    longest to import.

    Args:
        config: a training config (and overlays of it), whose data is prepared.
        device: cpu, cuda, ...
        threads: CPU threads of the processes; torch's choice by default.
        repeats: processes of each kind.
        seed: of the runs.
        output: a JSON file for the result.
        overwrite: replace an existing output.
    """
    place, target = begin(device, None, repeats, output, overwrite)
    paths = [config] if isinstance(config, str) else config
    check_prepared(paths)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else dict(os.environ)
    options = [word for path in paths for word in ("--config", path)]
    options += ["--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
    options += ["--trainer.accelerator", place.type, "--trainer.devices", "1", "--seed_everything", str(seed)]
    short = {
        "mm --help": [*MM, "--help"],
        "Python alone": [sys.executable, "-c", "pass"],
        "imports of mm fit": [sys.executable, "-c", IMPORTS],
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, command in short.items():
            seconds[name].append(run_seconds(command, environment))
        for name, value in first_step(options, environment)[0].items():
            seconds[name].append(value)
    result = {
        "benchmark": "startup",
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
        "import_seconds": first_step(options, environment, imports=True)[1],
        "settings": {"config": " ".join(paths), "repeats": repeats, "seed": seed},
        **machine(place),
    }
    if threads:
        result["threads"] = threads
    report(result, "until mm answers", ["", "seconds"], 1, [*_lines(result)], target)


def check_prepared(paths: list[str]) -> None:
    """Refuses a config whose data would have to be prepared first.

    Raises:
        UserError: it would.
    """
    from mm_lightning.data import mixture
    from mm_lightning.training.parse_fit import parse_fit

    fit = parse_fit([word for path in paths for word in ("--config", path)])
    try:
        mixture.read(mixture.folders(fit.data.path))
    except UserError as error:
        raise UserError(f"the data of {paths[0]} must be prepared before its start is timed: {error}") from error


def run_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Of a command that ends by itself."""
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"{' '.join(command[1:])} failed: {last_line(done.stderr)}")
    return seconds


def first_step(
    options: list[str], environment: dict[str, str], imports: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """When `mm fit` with these options got where, in seconds, in a folder that is gone afterwards; it is ended at its
    first step. With `imports` also the seconds that each package took to import, which slows the run."""
    marks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "errors", "w+", encoding="utf-8") as errors:
        command = [
            MM[0],
            *(("-X", "importtime") if imports else ()),
            *MM[1:],
            "fit",
            *options,
            "--run",
            f"{folder}/run",
        ]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            assert process.stdout
            for line in process.stdout:
                passed = time.perf_counter() - start
                marks.setdefault("mm fit: first word", passed)
                if line.startswith("run folder"):
                    marks["mm fit: training starts"] = passed
                if STEP.match(line):
                    marks["mm fit: first step done"] = passed
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its workers
            process.wait()
        errors.seek(0)
        text = errors.read()
    if "mm fit: first step done" not in marks:
        raise UserError(f"mm fit {' '.join(options)} ended before its first step: {last_line(text)}")
    return marks, package_seconds(text) if imports else {}


def last_line(text: str) -> str:
    """What a process said last."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def package_seconds(text: str) -> dict[str, float]:
    """Seconds of its own modules by package, the slowest first, from what `python -X importtime` writes."""
    found: dict[str, float] = defaultdict(float)
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", text):
        found[name.split(".")[0]] += int(own) / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _lines(result: dict[str, Any]) -> Iterator[list[tuple[str, str]]]:
    """Sections of the table."""
    yield [(name, f"{seconds:.2f}") for name, seconds in result["median_seconds"].items()]
    imported = result["import_seconds"]
    most = list(imported.items())[:PACKAGES]
    others = sum(imported.values()) - sum(seconds for _, seconds in most)
    yield [(f"  importing {name}", f"{seconds:.2f}") for name, seconds in [*most, ("all others", others)]]

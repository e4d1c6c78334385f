"""Programs that a network wrote, run against tests: what the harness fetches as the metric `code_eval`.

A program runs in a process of its own with an empty environment, a folder that is removed afterwards, and limits of
time and memory. That is no sandbox: it can reach the network and whatever its user can.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 10
"""After which a program has failed."""
MEMORY = 4 << 30
"""Bytes that it may use."""
PASSED = 77
"""Exit status of a program that came to its end; to exit by itself is to fail, as in the harness."""

_RUN = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
exec(compile(open(sys.argv[1], encoding="utf-8").read(), "program", "exec"), {{}})
sys.exit({PASSED})
"""


def passes(program: str) -> bool:
    """Return whether a program comes to its end without an error."""
    with tempfile.TemporaryDirectory(prefix="mm-code-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "program.py"
        file.write_text(program, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _RUN, str(file)],
            cwd=folder,
            env={"OMP_NUM_THREADS": "1", "HOME": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return _status(process) == PASSED
        finally:  # all that it started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _status(process: subprocess.Popen) -> int | None:
    """Return the exit status of a program, None if it takes longer than `SECONDS`.

    They are counted in short waits: a program has not failed because this process was stopped meanwhile.
    """
    for _ in range(round(10 * SECONDS)):
        with suppress(subprocess.TimeoutExpired):
            return process.wait(0.1)
    return None


class CodeEval:
    """Stands for the metric `code_eval` of the package evaluate."""

    def compute(self, references: list[str], predictions: list[list[str]], k: list[int]) -> tuple[dict, dict]:
        """Return the share of first programs that pass their tests.

        Args:
            references: tests, a program each.
            predictions: for each of them the programs to try.
            k: [1].
        """
        if k != [1]:
            raise ValueError(f"only pass@1 is computed, not k = {k}")
        passed = [
            passes(f"{programs[0]}\n{test}") for programs, test in zip(predictions, references, strict=True) if programs
        ]
        return {"pass@1": sum(passed) / max(1, len(passed))}, {}


def load_metric(name: str, *_: Any, **__: Any) -> CodeEval:
    """Stands for `evaluate.load`, so that nothing is fetched."""
    if name != "code_eval":
        raise ValueError(f"there is no metric {name!r} without the network")
    return CodeEval()

"""The environment of a run, as environment.json records it: versions, code state, command line and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from mm_lightning.redaction import redact_words
from mm_lightning.versions import untested_versions

PACKAGES = (
    "mm-lightning",
    "torch",
    "lightning",
    "torchmetrics",
    "litdata",
    "deepspeed",
    "jsonargparse",
    "tokenizers",
    "tensorboard",
    "numpy",
    "numba",
    "triton",
    "transformers",
)


def describe_environment() -> dict[str, Any]:
    """Return time, versions, code state, command line and hardware of this process."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact_words([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "packages": {name: _version(name) for name in PACKAGES},
        "untested_versions": {name: list(versions) for name, versions in untested_versions().items()},
        "code": _git_state(Path(__file__).resolve().parent),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "memory_bytes": memory},
        "gpus": _gpus(),
    }


def describe_hardware(environment: dict[str, Any]) -> str:
    """Return the GPUs of environment.json, or its CPU, as text."""
    gpus = Counter(gpu.get("name", "GPU") for gpu in environment.get("gpus", []))
    cpu = environment.get("cpu", {})
    parts = [f"{count} x {name}" for name, count in gpus.items()]
    return " + ".join(parts) or f"{cpu.get('model') or 'CPU'}, {cpu.get('cores')} cores"


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit and whether files differ from it; None if the code is not a git checkout."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))  # fails inside somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _gpus() -> list[dict[str, Any]]:
    import torch  # slow to import

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_bytes": device.total_memory} for device in devices]

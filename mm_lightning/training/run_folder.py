"""The run folder: everything that one training run leaves behind, in a place that explains itself.

    runs/quickstart/0/
        config.yaml        every setting, resolved: `mm fit --config` of this file does the same again
        environment.json   command line, code and package versions, hardware, data
        .lock              held while a process trains here: which one
        metrics.jsonl      one JSON object a line: step, train/..., validation/...
        finished.json      once training has come to its end: the last step, and the seconds since the last (re)start
        tensorboard/       the same and more for TensorBoard
        checkpoints/       step=200.ckpt ...

`run: runs/quickstart` in a config names the root. Each fresh `mm fit` takes the next number below it; `--resume`
goes on in the folder of the checkpoint that it continues.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from mm_lightning.errors import UserError
from mm_lightning.redaction import redact, redact_words
from mm_lightning.training.run_lock import RunLock

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


def numbered(root: Path) -> list[Path]:
    """The numbered run folders below a root, the oldest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))


class RunFolder:
    """The folder of one run, chosen at the first look and made on the first process only.

    Args:
        root: where numbered run folders lie.
        path: the folder itself, to go on in one that exists.
    """

    def __init__(self, root: str | Path, path: Path | None = None) -> None:
        self.root = Path(root)
        self.resumed = path is not None
        self._path = path
        self._lock: RunLock | None = None

    @property
    def path(self) -> Path:
        """The run folder; the first look takes the next free number. (Other processes know the root only, until
        the first one has shared its choice.)"""
        if self._path is None and rank_zero_only.rank != 0:
            return self.root
        while self._path is None:
            taken = numbered(self.root)
            candidate = self.root / str(int(taken[-1].name) + 1 if taken else 0)
            try:
                candidate.mkdir(parents=True)
                self._path = candidate
            except FileExistsError as error:
                if not candidate.is_dir():
                    raise UserError(f"cannot make the run folder {candidate}: a file is in the way") from error
                continue  # another run took the number in the meantime
            except OSError as error:
                raise UserError(f"cannot make the run folder {candidate}: {error.strerror}") from error
        return self._path

    def take(self) -> None:
        """Keeps every other run out of the folder, until :meth:`release` or the end of this process.

        Raises:
            UserError: another process trains there.
        """
        if self._lock is None:
            lock = RunLock(self.path)
            lock.take()
            self._lock = lock

    def release(self) -> None:
        """Lets others in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard_unused(self) -> None:
        """Removes a fresh folder in which nothing was measured or saved."""
        path = self._path
        if path is None or self.resumed or rank_zero_only.rank != 0 or not path.is_dir():
            return
        if not (path / "metrics.jsonl").exists() and not (path / "checkpoints").exists():
            shutil.rmtree(path)

    def share(self, trainer: Trainer) -> None:
        """Tells every process the folder that the first one chose."""
        self._path = trainer.strategy.broadcast(self.path if trainer.is_global_zero else None)


class RecordRun(Callback):
    """Writes config.yaml and environment.json when training starts.

    Args:
        folder: the run's folder.
        config: the resolved config as YAML text.
    """

    def __init__(self, folder: RunFolder, config: str) -> None:
        self.folder = folder
        self.config = config
        self._begin = time.perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Shares the folder; writes on the first process."""
        if stage != "fit":
            return
        from mm_lightning.data.mixture import describe
        from mm_lightning.training.loggers import say

        self.folder.share(trainer)
        if not trainer.is_global_zero:
            return
        self.folder.take()
        path = self.folder.path
        (path / "finished.json").unlink(missing_ok=True)  # a finished run may be resumed for more steps
        write_text(path / "config.yaml", redact(self.config))
        past = []
        if (path / "environment.json").is_file():
            before = json.loads((path / "environment.json").read_text(encoding="utf-8"))
            past = [*before.pop("earlier", []), before]
        data = describe(trainer.datamodule.sets)
        before = past[-1].get("data", data) if past else data
        if [(s["fingerprint"], s["share"]) for s in before] != [(s["fingerprint"], s["share"]) for s in data]:
            say(
                f"the data or their weights are others than before ({path / 'environment.json'}): the run goes on in "
                f"their order, in which sequences that it has read may come again"
            )
        environment = {**describe_environment(), "data": data, "earlier": past}
        write_text(path / "environment.json", json.dumps(environment, indent=2) + "\n")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says where an interrupted run can go on."""
        if not isinstance(exception, KeyboardInterrupt):
            return
        from mm_lightning.training.checkpoint import find_checkpoint
        from mm_lightning.training.loggers import say

        try:
            place = f"--resume goes on from {find_checkpoint(self.folder.path)}"
        except UserError:
            place = "nothing was saved yet (every_n_steps of Checkpoints says how often it is)"
        say(f"interrupted after step {trainer.global_step}: {place}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the run as finished."""
        if trainer.is_global_zero:
            from mm_lightning.data.manifest import write_json

            seconds = round(time.perf_counter() - self._begin, 1)
            write_json(self.folder.path / "finished.json", {"step": trainer.global_step, "seconds": seconds})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says once what is going to be trained, on what, and how."""
        from mm_lightning.memory.kernels import chosen, describe
        from mm_lightning.memory.retrieval import backend
        from mm_lightning.training.loggers import say

        data, device = trainer.datamodule, pl_module.device
        dtype = torch.bfloat16 if trainer.precision.startswith("bf16") else torch.float32
        tokens = data.global_batch_size * data.context_length
        strategy = type(trainer.strategy).__name__.removesuffix("Strategy")
        say(f"run folder  {self.folder.path}")
        say(f"network     {type(pl_module.network).__name__}, {pl_module.parameter_count:,} parameters")
        say(f"devices     {trainer.world_size} x {device.type} ({strategy}), precision {trainer.precision}")
        say(
            f"step        {data.global_batch_size} sequences of {data.context_length} = {tokens:,} tokens: "
            f"{trainer.world_size} devices x {data.micro_batch_size} sequences x {trainer.accumulate_grad_batches} "
            f"accumulated"
        )
        for s in data.sets if len(data.sets) > 1 else ():
            say(f"data        {float(s.share):.1%} {s.folder}: {sum(s.counts(data.context_length)):,} sequences")
        dim = pl_module.network.config.head_dim
        say(f"reads by    {backend(device, dtype, dim)}")
        say(f"keys by     {describe(chosen(pl_module.kernels, device, dtype, dim))}")


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a killed run leaves it whole, as it was before or as it is now."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def describe_environment() -> dict[str, Any]:
    """Time, versions, code state, command line and hardware of this process."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact_words([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": _git_state(Path(__file__).resolve().parent),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "memory_bytes": _memory_bytes()},
        "gpus": _gpus(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None where the code is not a git checkout."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))  # fails inside somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_bytes": device.total_memory} for device in devices]

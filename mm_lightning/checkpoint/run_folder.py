"""The run folder: everything that one training run leaves behind, in a place that explains itself.

    runs/quickstart/0/
        config.yaml        every setting, resolved: `mm fit --config` of this file does the same again
        environment.json   command line, code and package versions (and which are not the tested ones), hardware, data
        .lock              held while a process trains here: which one
        metrics.jsonl      one JSON object a line: step, train/..., validation/...
        finished.json      once training has come to its end: the last step, trainer.max_steps (which a callback or
                           trainer.max_time may cut short), and the seconds since the last (re)start
        events.out...      the same and more for TensorBoard, which names the run by its folder
        checkpoints/       step=200.ckpt ...

`run: runs/quickstart` in a config names the root. Each fresh `mm fit` takes the next number below it; `--resume`
goes on in the folder of the checkpoint that it continues.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mm_lightning.checkpoint.run_lock import RunLock
from mm_lightning.console import is_first_process, say
from mm_lightning.errors import UserError
from mm_lightning.redaction import redact_words
from mm_lightning.side_files import read_object
from mm_lightning.versions import untested_versions

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

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


def numbered_runs(root: Path) -> list[Path]:
    """The numbered run folders below a root, the oldest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))


def read_finished(run: Path) -> dict[str, Any] | None:
    """Return what finished.json says of a run's end; None where training has not come to its end."""
    return read_object(run / "finished.json") or None


def has_finished(run: Path, steps: int) -> bool:
    """Return whether a run's training, of so many planned steps, has come to its end.

    A callback or trainer.max_time may have brought it early; a run that was planned with fewer steps has more to do.
    """
    end = read_finished(run)
    return end is not None and max(end.get("step", 0), end.get("max_steps", 0)) >= steps


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint that a run has saved; 0 before the first."""
    names = (path.name for path in (run / "checkpoints").glob("step=*.ckpt"))
    steps = (name.removeprefix("step=").removesuffix(".ckpt") for name in names)
    return max((int(step) for step in steps if step.isdigit()), default=0)


def tensorboard_folder(run: Path) -> Path:
    """Return the folder of a run's TensorBoard files: the run folder, or `tensorboard` in runs of earlier versions."""
    older = run / "tensorboard"
    return older if older.is_dir() else run


class RunFolder:
    """The folder of one run, chosen at the first look and made on the first process only.

    Args:
        root: where numbered run folders lie.
        path: the folder itself, to go on in one that exists.
    """

    def __init__(self, root: str | Path, path: Path | None = None) -> None:
        self.root = Path(root)
        self.resumed = path is not None
        self.trained = False  # a batch, in this process
        self.on_failure: Literal["stop", "continue"] = "stop"  # as of Checkpoints
        self._failing: set[str] = set()  # things in the folder that could not be written lately, as was said
        self._waiting: dict[Path, Callable[[], object]] = {}
        self._path = path
        self._made_root = False
        self._lock: RunLock | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of whatever leads here has nothing left to write."""
        return {**self.__dict__, "_waiting": {}}

    @property
    def path(self) -> Path:
        """The run folder; the first look takes the next free number. (Other processes know the root only, until
        the first one has shared its choice.)"""
        if self._path is None and not is_first_process():
            return self.root
        while self._path is None:
            taken = numbered_runs(self.root)
            candidate = self.root / str(int(taken[-1].name) + 1 if taken else 0)
            made_root = not self.root.exists()
            try:
                candidate.mkdir(parents=True)
                self._made_root = made_root
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
        """Remove a fresh folder in which nothing was trained, and that holds nothing but what every start writes."""
        path = self._path
        if path is None or self.resumed or self.trained or not is_first_process() or not path.is_dir():
            return
        if all(_from_the_start(entry) for entry in path.iterdir()):
            shutil.rmtree(path)
            if self._made_root:
                with contextlib.suppress(OSError):  # another run may have begun there
                    self.root.rmdir()

    def discard_trial(self) -> None:
        """Remove the folder of a run that is to leave nothing, unless a callback has left something to look at."""
        self.trained = False
        self.discard_unused()
        if is_first_process():
            with contextlib.suppress(OSError):  # which then says where it lies
                self.root.rmdir()

    def write(
        self, path: Path, action: Callable[[], object], otherwise: str | None = None, waits: bool = False
    ) -> bool:
        """Write into the folder of a running training: every file of it but checkpoints is written through here.

        What cannot be written, the disk being full, for one, is said once for each thing in the folder, until it is
        written again, and ends the run only where `on_failure` says so.

        Args:
            path: of the file or folder.
            action: writes it, or raises an OSError.
            otherwise: what happens if it cannot be written, where the run goes on in any case.
            waits: try again whenever something else is written, until it succeeds.

        Returns:
            True if it was written.

        Raises:
            UserError: it was not, and the run is to stop.
        """
        for waiting, again in list(self._waiting.items()):
            if waiting == path or self._try(waiting, again) is None:
                self._waiting.pop(waiting, None)
        error = self._try(path, action)
        if error is None:
            return True
        reason = error.strerror or str(error)
        if otherwise is None and self.on_failure == "stop":
            raise UserError(
                f"cannot write {path}: {reason}. Mend this and continue with --resume, or let a run go on without such "
                f"files: on_failure: continue of Checkpoints"
            ) from error
        if waits:
            self._waiting[path] = action
        thing = self._thing(path)
        if thing not in self._failing:
            self._failing.add(thing)
            default = "it is written when that is possible" if waits else "training goes on without it"
            say(f"cannot write {path} ({reason}): {otherwise or default}")
        return False

    def _try(self, path: Path, action: Callable[[], object]) -> OSError | None:
        try:
            if not self.path.is_dir():  # moved away, perhaps to come back: nothing takes its place
                raise FileNotFoundError(errno.ENOENT, "the run folder is not there any more")
            action()
        except OSError as error:
            return error
        self._failing.discard(self._thing(path))
        return None

    def _thing(self, path: Path) -> str:
        """The entry of the folder that a path belongs to."""
        inside = path.relative_to(self.path) if path.is_relative_to(self.path) else path
        return inside.parts[0] if inside.parts else str(path)

    def share(self, trainer: Trainer) -> None:
        """Tells every process the folder that the first one chose."""
        self._path = trainer.strategy.broadcast(self.path if trainer.is_global_zero else None)


START_FILES = ("config.yaml", "environment.json", "baselines.json", ".lock", "events.out.tfevents.*", "lost_output.txt")
"""The files that a run folder gets before its first step."""


def _from_the_start(entry: Path) -> bool:
    """Return whether an entry of a run folder is there before the first step, or is empty."""
    if entry.is_dir() and not entry.is_symlink():
        return entry.name == "heartbeats" or not any(entry.iterdir())
    return any(fnmatch(entry.name, pattern) for pattern in START_FILES)


def describe_environment() -> dict[str, Any]:
    """Time, versions, code state, command line and hardware of this process."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact_words([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "packages": {name: _version(name) for name in PACKAGES},
        "untested_versions": {name: list(versions) for name, versions in untested_versions().items()},
        "code": _git_state(Path(__file__).resolve().parent),
        "cpu": {"model": _cpu_model(), "cores": os.cpu_count(), "memory_bytes": _memory_bytes()},
        "gpus": _gpus(),
    }


def hardware(environment: dict[str, Any]) -> str:
    """What environment.json says of the machine, in words: its GPUs, or its CPU."""
    gpus = Counter(gpu.get("name", "GPU") for gpu in environment.get("gpus", []))
    cpu = environment.get("cpu", {})
    parts = [f"{count} x {name}" for name, count in gpus.items()]
    return " + ".join(parts) or f"{cpu.get('model') or 'CPU'}, {cpu.get('cores')} cores"


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
    import torch  # slow, and not needed to find runs

    if not torch.cuda.is_available():
        return []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": device.name, "memory_bytes": device.total_memory} for device in devices]

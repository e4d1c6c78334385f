"""The run folder, which holds everything that a training run writes.

    runs/quickstart/0/
        config.yaml        every setting, resolved: `mm fit --config` with this file repeats the run
        environment.json   command line, code and package versions (and which are untested), hardware, data
        .lock              process and host that train here
        metrics.jsonl      one JSON object a line: step, train/..., validation/...
        finished.json      written when training ends: the last step, trainer.max_steps (which a callback or
                           trainer.max_time may cut short), and the seconds since the last start or resume
        events.out...      metrics and figures for TensorBoard
        checkpoints/       step=200.ckpt ...

`run: runs/quickstart` in a config names the root. Each new `mm fit` takes the next number below it; `--resume`
continues in the folder of its checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from mm_lightning.checkpoint.run_lock import lock_run
from mm_lightning.console import is_first_process, say
from mm_lightning.errors import UserError
from mm_lightning.side_files import read_object

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def numbered_runs(root: Path) -> list[Path]:
    """Return the numbered run folders below a root, oldest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))


def has_finished(run: Path, steps: int) -> bool:
    """Return whether training of `steps` planned steps has ended, perhaps early by a callback or trainer.max_time."""
    finished = read_object(run / "finished.json")
    return bool(finished) and max(finished.get("step", 0), finished.get("max_steps", 0)) >= steps


def newest_step(run: Path) -> int:
    """Return the step of a run's newest checkpoint; 0 before the first."""
    names = (path.name for path in (run / "checkpoints").glob("step=*.ckpt"))
    steps = (name.removeprefix("step=").removesuffix(".ckpt") for name in names)
    return max((int(step) for step in steps if step.isdigit()), default=0)


def tensorboard_folder(run: Path) -> Path:
    """Return the folder of a run's TensorBoard files: the run folder, or `tensorboard` in runs of earlier versions."""
    older = run / "tensorboard"
    return older if older.is_dir() else run


class RunFolder:
    """The folder of one run, chosen on first access and created by rank 0.

    Args:
        root: the folder of numbered run folders.
        path: an existing run folder, to continue in it.
    """

    def __init__(self, root: str | Path, path: Path | None = None) -> None:
        self.root = Path(root)
        self.resumed = path is not None
        self.trained = False  # whether this process has trained a batch
        self.on_failure: Literal["stop", "continue"] = "stop"  # set by Checkpoints
        self._failing: set[str] = set()  # entries of the folder whose last write failed, as was logged
        self._retries: dict[Path, Callable[[], object]] = {}
        self._path = path
        self._made_root = False
        self._lock: TextIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Exclude pending writes and the lock from copies, such as that of a module for weight averaging."""
        return {**self.__dict__, "_retries": {}, "_lock": None}

    @property
    def path(self) -> Path:
        """The run folder; rank 0 takes the next free number on first access.

        Other ranks return the root until :meth:`share` was called.
        """
        if self._path is None and not is_first_process():
            return self.root
        while self._path is None:
            taken = numbered_runs(self.root)
            candidate = self.root / str(int(taken[-1].name) + 1 if taken else 0)
            self._made_root = not self.root.exists()
            try:
                candidate.mkdir(parents=True)
                self._path = candidate
            except FileExistsError as error:  # another run has taken the number
                if not candidate.is_dir():
                    raise UserError(f"cannot create the run folder {candidate}: a file has this name") from error
            except OSError as error:
                raise UserError(f"cannot create the run folder {candidate}: {error.strerror}") from error
        return self._path

    def acquire(self) -> None:
        """Lock the folder for this run, until :meth:`release` or the end of this process.

        Raises:
            UserError: another process trains there.
        """
        if self._lock is None:
            self._lock = lock_run(self.path)

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove_unused(self) -> None:
        """Remove a new folder in which nothing was trained and which holds only the files of every start."""
        path = self._path
        if path is None or self.resumed or self.trained or not is_first_process() or not path.is_dir():
            return
        if all(_is_start_file(entry) for entry in path.iterdir()):
            shutil.rmtree(path)
            if self._made_root:
                with contextlib.suppress(OSError):  # another run may have begun there
                    self.root.rmdir()

    def remove_dry_run(self) -> None:
        """Remove the folder of a dry run, unless a callback has written output to it."""
        self.trained = False
        self.remove_unused()
        if is_first_process():
            with contextlib.suppress(OSError):  # not empty
                self.root.rmdir()

    def write(self, path: Path, action: Callable[[], object], fallback: str | None = None, retry: bool = False) -> bool:
        """Write a file of a running training; all files except checkpoints are written by this method.

        A failed write, as on a full disk, is logged once for each entry of the folder until it succeeds again, and
        stops the run only if `on_failure` is "stop".

        Args:
            path: the file or folder.
            action: writes it, or raises an OSError.
            fallback: what happens instead, for the log line; a failure then never stops the run.
            retry: retry whenever something else is written, until it succeeds.

        Returns:
            True if it was written.

        Raises:
            UserError: it was not, and the run is to stop.
        """
        for pending, pending_action in list(self._retries.items()):
            if pending == path or self._try(pending, pending_action) is None:
                self._retries.pop(pending, None)
        error = self._try(path, action)
        if error is None:
            return True
        reason = error.strerror or str(error)
        if fallback is None and self.on_failure == "stop":
            raise UserError(
                f"cannot write {path}: {reason}. Fix this and continue with --resume, or let a run go on without such "
                f"files: on_failure: continue of Checkpoints"
            ) from error
        if retry:
            self._retries[path] = action
        entry = self._entry(path)
        if entry not in self._failing:
            self._failing.add(entry)
            default = "it is written when that is possible" if retry else "training goes on without it"
            say(f"cannot write {path} ({reason}): {fallback or default}")
        return False

    def _try(self, path: Path, action: Callable[[], object]) -> OSError | None:
        try:
            if not self.path.is_dir():  # moved or deleted: do not create it again
                raise FileNotFoundError(errno.ENOENT, "the run folder no longer exists")
            action()
        except OSError as error:
            return error
        self._failing.discard(self._entry(path))
        return None

    def _entry(self, path: Path) -> str:
        """Return the top-level entry of the folder that contains a path."""
        inside = path.relative_to(self.path) if path.is_relative_to(self.path) else path
        return inside.parts[0] if inside.parts else str(path)

    def share(self, trainer: Trainer) -> None:
        """Broadcast the folder chosen by rank 0."""
        self._path = trainer.strategy.broadcast(self.path if trainer.is_global_zero else None)


START_FILES = (
    "config.yaml",
    "environment.json",
    "baselines.json",
    "tracked_runs.json",
    ".lock",
    "events.out.tfevents.*",
    "lost_output.txt",
)
"""Files that are written before the first step."""


def _is_start_file(entry: Path) -> bool:
    """Return whether an entry of a run folder is written before the first step, or is empty."""
    if entry.is_dir() and not entry.is_symlink():
        return entry.name == "heartbeats" or not any(entry.iterdir())
    return any(fnmatch(entry.name, pattern) for pattern in START_FILES)

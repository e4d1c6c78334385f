"""Start the runs of a sweep as processes of this machine, or as Slurm jobs through submitit.

When a sweep is interrupted, processes of this machine are ended and Slurm jobs go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mm_lightning.checkpoint.run_folder import has_finished, numbered_runs
from mm_lightning.errors import UserError
from mm_lightning.side_files import parse_line


@dataclass(frozen=True)
class Work:
    """A run to be trained.

    Attributes:
        folder: holds config.yaml, log.txt, and the numbered run folders that `mm fit` makes.
        steps: its optimizer steps.
    """

    folder: Path
    steps: int

    @property
    def run_folder(self) -> Path | None:
        """The newest run folder of `mm fit`; None before the first."""
        return next(reversed(numbered_runs(self.folder)), None)

    def finished(self) -> bool:
        """Return whether training has ended, by its steps or early by a callback or trainer.max_time."""
        newest = self.run_folder
        return newest is not None and has_finished(newest, self.steps)

    @property
    def failure(self) -> Path:
        """The file that marks a failed run and holds its exit status."""
        return self.folder / "failed"

    def latest(self) -> dict[str, float]:
        """Return the newest value of each metric."""
        newest = self.run_folder
        if newest is None or not (newest / "metrics.jsonl").is_file():
            return {}
        with (newest / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, (newest / "metrics.jsonl").stat().st_size - 4096))
            lines = file.read().split(b"\n")
        values: dict[str, float] = {}
        for line in lines[:-1]:  # the last line may be half written
            values |= parse_line(line) or {}  # the first one may be cut
        return values

    def command(self) -> list[str]:
        """Return the command line that starts the run, or resumes it at its newest checkpoint."""
        config = self.folder / "config.yaml"
        words = [sys.executable, "-m", "mm_lightning.cli", "fit", "--config", str(config), "--run", str(self.folder)]
        checkpoint = self._checkpoint()
        return [*words, "--resume", str(checkpoint)] if checkpoint else words

    def _checkpoint(self) -> Path | None:
        """Return the newest checkpoint before the last step: resuming at the last step skips its validation."""
        from mm_lightning.checkpoint import is_complete, step_of

        folder = self.run_folder and self.run_folder / "checkpoints"
        complete = [path for path in folder.glob("*.ckpt") if is_complete(path)] if folder else []
        return max((path for path in complete if step_of(path) < self.steps), key=step_of, default=None)

    def train(self, environment: dict[str, str] | None = None, **options: Any) -> subprocess.Popen:
        """Start the command of the run, with its output in log.txt."""
        self.failure.unlink(missing_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                **options,
            )


class Handle(Protocol):
    """The handle of a started run."""

    def poll(self) -> int | None:
        """Return the exit status; None while the run goes on."""

    def stop(self) -> None:
        """Ask the run to end, if it does not outlive the sweep."""

    def wait(self) -> None:
        """Wait for the end of the run, if it does not outlive the sweep."""


class Launcher(Protocol):
    """A launcher of runs.

    Attributes:
        slots: runs at once.
        leaving: the message about active runs when the sweep is interrupted.
    """

    slots: int
    leaving: str

    def start(self, work: Work) -> Handle:
        """Start a run."""


def threads_each(jobs: int) -> int:
    """Return the CPU threads for each of `jobs` runs at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


class LocalProcesses:
    """A launcher of runs as processes of this machine.

    With several at once each has its share of the CPU cores, and of the GPUs where there are any.

    Args:
        jobs: runs at once.
    """

    leaving = "every run can go on from its newest checkpoint"

    def __init__(self, jobs: int) -> None:
        import torch

        self.slots = jobs
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._gpus = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
        self._places: list[LocalProcess | None] = [None] * jobs

    def start(self, work: Work) -> LocalProcess:
        """Start a run in the first free place."""
        place = next(n for n, process in enumerate(self._places) if process is None or process.poll() is not None)
        environment = {}
        if self.slots > 1:
            environment = {"OMP_NUM_THREADS": str(threads_each(self.slots))}
            if self._gpus:
                share = max(1, len(self._gpus) // self.slots)
                gpus = [self._gpus[(place * share + n) % len(self._gpus)] for n in range(share)]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        process = LocalProcess(work, environment)
        self._places[place] = process
        return process


class LocalProcess:
    """The handle of a run in a process group of its own, which ctrl-C reaches through :meth:`stop` alone."""

    def __init__(self, work: Work, environment: dict[str, str]) -> None:
        # The process inherits the lock: even if the sweep is killed, nobody starts the run again while it goes on.
        with (work.folder / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = (work.folder / ".lock").read_text(encoding="utf-8").strip()
                raise UserError(
                    f"{work.folder} is still being trained by process {pid}, left over from a sweep that was killed: "
                    f"wait for it, or `kill {pid}`"
                ) from None
            self._process = work.train(environment, start_new_session=True, pass_fds=[lock.fileno()])
            lock.truncate(0)
            lock.write(str(self._process.pid))

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)

    def wait(self, seconds: float = 30) -> None:
        """Wait for the end of the process; kill it if that takes longer."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Slurm:
    """A launcher of runs as Slurm jobs, all queued at once.

    Args:
        folder: for submitit's files, on a file system that all nodes share.
        parameters: of `submitit.AutoExecutor.update_parameters`.
    """

    leaving = "jobs in the queue go on; the same command watches them again, scancel ends them"

    def __init__(self, folder: Path, parameters: dict[str, Any]) -> None:
        import shutil

        try:
            import submitit
        except ImportError as error:
            raise UserError('running on Slurm needs submitit: pip install "mm-lightning[slurm]"') from error
        if not shutil.which("sbatch"):
            raise UserError(
                "there is no sbatch here: run this on a login node of the cluster, or with --executor local"
            )
        self.slots = sys.maxsize
        self._folder = folder
        self._submitit = submitit
        self._executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        try:
            self._executor.update_parameters(**{"slurm_job_name": folder.parent.name, **parameters})
        except (NameError, TypeError, ValueError) as error:
            raise UserError(f"slurm: {error}") from error

    def start(self, work: Work) -> SlurmRun:
        """Queue a run, or return the job that an earlier `mm sweep` has queued for it."""
        mark = work.folder / "slurm_job"
        if mark.is_file():
            job: Any = self._submitit.SlurmJob(folder=self._folder, job_id=mark.read_text(encoding="utf-8").strip())
            if not job.done(force_check=True):
                return SlurmRun(job)
        job = self._executor.submit(TrainingJob(work))
        mark.write_text(job.job_id, encoding="utf-8")
        return SlurmRun(job)


class SlurmRun:
    """The handle of a run in the queue or on its nodes."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        """Return the exit status; None while the job waits or goes on, 1 if it was cancelled or lost."""
        if not self.job.done():
            return None
        try:
            return max(self.job.results())
        except Exception:  # submitit raises one of several kinds for a job that left no result
            return 1

    def stop(self) -> None:
        """Do nothing: the job stays in the queue."""

    def wait(self) -> None:
        """Do nothing: the job outlives the sweep."""


class TrainingJob:
    """The function of a Slurm job: train a run, and queue the job again when its time is up."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Run `mm fit`, one process for each Slurm task, and return its exit status."""
        self._process = self.work.train()
        return self._process.wait()

    def checkpoint(self, seconds: float = 75) -> Any:
        """Let the run save, and queue it again; submitit calls this 90 s (by default) before Slurm ends the job."""
        import submitit

        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR2)
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it resumes at its newest checkpoint
                self._process.wait(seconds)
        return submitit.helpers.DelayedSubmission(TrainingJob(self.work))

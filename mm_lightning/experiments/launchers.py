"""Where the runs of a sweep are trained: in processes of this machine, or as Slurm jobs through submitit.

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
        steps: the optimization steps it has in all.
    """

    folder: Path
    steps: int

    @property
    def run_folder(self) -> Path | None:
        """What `mm fit` last wrote into; None before it has begun."""
        found = numbered_runs(self.folder)
        return found[-1] if found else None

    def finished(self) -> bool:
        """Whether its training has come to its end, which a callback or trainer.max_time may have brought early."""
        newest = self.run_folder
        return newest is not None and has_finished(newest, self.steps)

    @property
    def failure(self) -> Path:
        """The mark of a run that ended with an error, which holds its exit status."""
        return self.folder / "failed"

    def latest(self) -> dict[str, float]:
        """The newest value of each of its metrics."""
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
        """The command line that begins it, or goes on from its newest checkpoint."""
        config = self.folder / "config.yaml"
        words = [sys.executable, "-m", "mm_lightning.cli", "fit", "--config", str(config), "--run", str(self.folder)]
        checkpoint = self._checkpoint()
        return [*words, "--resume", str(checkpoint)] if checkpoint else words

    def _checkpoint(self) -> Path | None:
        """The newest one that leaves something to do: from the last step on, its validation would be lost."""
        from mm_lightning.checkpoint import is_complete, step_of

        folder = self.run_folder and self.run_folder / "checkpoints"
        whole = [path for path in folder.glob("*.ckpt") if is_complete(path)] if folder else []
        return max((path for path in whole if step_of(path) < self.steps), key=step_of, default=None)

    def train(self, environment: dict[str, str] | None = None, **options: Any) -> subprocess.Popen:
        """Start its command; what it prints goes to log.txt."""
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
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit status, None while it goes on."""

    def stop(self) -> None:
        """Ask it to end, or takes leave of it."""

    def wait(self) -> None:
        """Returns when it has ended, or was taken leave of."""


class Launcher(Protocol):
    """Starts runs.

    Attributes:
        slots: how many it takes at once.
        leaving: what becomes of them when the sweep is interrupted.
    """

    slots: int
    leaving: str

    def start(self, work: Work) -> Handle:
        """Start a run."""


def threads_each(jobs: int) -> int:
    """CPU threads of each of so many runs at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


class LocalProcesses:
    """Runs on this machine, each in a process of its own.

    With several at once each has its share of the CPU cores, and of the GPUs where there are any.

    Args:
        jobs: how many at once.
    """

    leaving = "every run can go on from its newest checkpoint"

    def __init__(self, jobs: int) -> None:
        import torch

        self.slots = jobs
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._gpus = named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
        self._places: list[LocalProcess | None] = [None] * jobs

    def start(self, work: Work) -> LocalProcess:
        """Start a run in the first free place."""
        place = next(n for n, process in enumerate(self._places) if process is None or process.poll() is not None)
        environment = {}
        if self.slots > 1:
            environment = {"OMP_NUM_THREADS": str(threads_each(self.slots))}
            if self._gpus:
                share = max(1, len(self._gpus) // self.slots)
                mine = [self._gpus[(place * share + n) % len(self._gpus)] for n in range(share)]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        process = LocalProcess(work, environment)
        self._places[place] = process
        return process


class LocalProcess:
    """A run in a process group of its own, so that ctrl-C reaches it through :meth:`stop` alone."""

    def __init__(self, work: Work, environment: dict[str, str]) -> None:
        # The process inherits the lock: whatever becomes of us, nobody starts the run again while it goes on.
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
        """Its exit status, None while it goes on."""
        return self._process.poll()

    def stop(self) -> None:
        """Interrupts it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)

    def wait(self, seconds: float = 30) -> None:
        """Wait for its end; kills it if that takes longer."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Slurm:
    """Runs as Slurm jobs, all queued at once.

    Args:
        folder: for submitit's files, on a disk that all nodes see.
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
        """Queue a run, or finds the job that an earlier `mm sweep` has queued for it."""
        mark = work.folder / "slurm_job"
        if mark.is_file():
            job: Any = self._submitit.SlurmJob(folder=self._folder, job_id=mark.read_text(encoding="utf-8").strip())
            if not job.done(force_check=True):
                return SlurmRun(job)
        job = self._executor.submit(self.job(work))
        mark.write_text(job.job_id, encoding="utf-8")
        return SlurmRun(job)

    def job(self, work: Work) -> TrainingJob:
        """What is done on the nodes."""
        return TrainingJob(work)


class SlurmRun:
    """A run in the queue or on its nodes."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        """Its exit status, None while it waits or goes on; 1 if the job was cancelled or lost."""
        if not self.job.done():
            return None
        try:
            return max(self.job.results())
        except Exception:  # submitit raises one of several kinds for a job that left no result
            return 1

    def stop(self) -> None:
        """Leaves it in the queue."""

    def wait(self) -> None:
        """Does not wait for the queue."""


class TrainingJob:
    """What a Slurm job does: trains a run; when its time is up it is queued again and goes on."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """The exit status of `mm fit`, one process a task; Lightning finds the others by Slurm's variables."""
        self._process = self.work.train()
        return self._process.wait()

    def checkpoint(self, seconds: float = 75) -> Any:
        """Called by submitit when Slurm ends the job early, 90 s before by default: lets the run save."""
        import submitit

        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR2)
            with contextlib.suppress(subprocess.TimeoutExpired):  # its newest checkpoint has to do
                self._process.wait(seconds)
        return submitit.helpers.DelayedSubmission(TrainingJob(self.work))

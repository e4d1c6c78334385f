"""Loggers of a run: metrics.jsonl and TensorBoard in the run folder, progress lines on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from mm_lightning.checkpoint.run_folder import RunFolder, tensorboard_folder
from mm_lightning.console import clock, say
from mm_lightning.side_files import append_lines, read_lines, write_lines
from mm_lightning.training.tensorboard_hparams import RUN_HPARAMS, write_run_hparams


class MetricsFile(Logger):
    """Append metrics to metrics.jsonl, one JSON object a line: {"step": 20, "train/loss": 5.1, ...}.

    `step` counts finished optimization steps. A run that goes back to a checkpoint drops the lines of repeated steps.
    Lines that cannot be written, as on a full disk, are buffered.

    Attributes:
        logged: names of the metrics already logged for the step that a resumed run continues from.
    """

    name, version = "metrics", ""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder
        self.logged: set[str] = set()
        self._waiting: list[str] = []

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one line and close the file: a killed run loses nothing."""
        self._waiting.append(json.dumps({"step": step, **metrics}) + "\n")
        path = self.folder.path / "metrics.jsonl"
        lines, later = "".join(self._waiting), "its lines are kept in memory until that is possible"
        if self.folder.write(path, lambda: append_lines(path, lines), later):
            self._waiting = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: settings are in config.yaml."""

    def drop_later_steps(self, step: int) -> None:
        """Drop the lines of later steps, and a truncated last line."""
        path = self.folder.path / "metrics.jsonl"
        self.logged = set()
        if not path.is_file():
            return
        lines = [line for line in read_lines(path, "step") if line["step"] <= step]
        self.logged = {name for line in lines if line["step"] == step for name in line}
        later = "of a step that appears twice the later line counts"
        self.folder.write(path, lambda: write_lines(path, lines, exact=True), later)


def drop_later_steps(trainer: Trainer, step: int) -> None:
    """Drop what the loggers of a run have of later steps, as it goes back to `step`."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile | TensorBoard):
            logger.drop_later_steps(step)


def tensorboards(trainer: Trainer) -> list[Any]:
    """Return the SummaryWriter of each TensorBoard logger of a run."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


WATCH_GROUPS = ("epoch", "evaluation", "memory", "retrieval_profile", "samples")
"""Groups of tags that sort before `train`."""


def tensorboard_tag(name: str) -> str:
    """Return the TensorBoard tag of a metric or figure: `watch_memory/long/alpha` of `memory/long/alpha`.

    TensorBoard sorts groups of cards by their names and opens the first two, which are thus `train` and `validation`.
    """
    return f"watch_{name}" if name.split("/")[0] in WATCH_GROUPS else name


class TensorBoard(TensorBoardLogger):
    """Write TensorBoard files in the run folder, with :func:`tensorboard_tag`; events wait while the disk is full."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(save_dir=str(folder.root), name="", version="", default_hp_metric=False)
        self.folder = folder

    @property
    def log_dir(self) -> str:
        """The folder of the event files."""
        return str(tensorboard_folder(self.folder.path))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the run's event file."""
        if self._experiment is None:
            from mm_lightning.training.event_file import RunSummaryWriter  # slow

            self._experiment = RunSummaryWriter(self.folder, Path(self.log_dir))
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the value of each metric."""
        super().log_metrics({tensorboard_tag(name): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Write a run's settings for the HPARAMS tab."""
        folder, values = Path(self.log_dir), dict(params)
        self.folder.write(folder / RUN_HPARAMS, lambda: write_run_hparams(folder, values), retry=True)

    @rank_zero_only
    def drop_later_steps(self, step: int) -> None:
        """Make TensorBoard drop later steps, as SummaryWriter(purge_step=...) does."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        restart = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        for _ in range(2):  # TensorBoard ignores the first one in a file
            self.experiment.file_writer.add_event(restart)

    @rank_zero_only
    def save(self) -> None:
        """Flush the event file; there is no hparams.yaml, as settings are in config.yaml."""
        self.experiment.flush()


SHOWN_FIRST = {"validation/loss": ".4f", "validation/perplexity": ".2f", "validation/bits_per_byte": ".3f"}
"""Metrics of validation in the order in which progress lines begin with them, and their formats."""


class ProgressLines(Logger):
    """Print a line at each log step (loss, learning rate, tokens per second, time to go) and at each validation.

    Args:
        max_steps: optimization steps of the run.
    """

    name, version = "progress", ""

    def __init__(self, max_steps: int) -> None:
        super().__init__()
        self.max_steps = max_steps
        self._last = (0, 0.0)  # step and tokens of the last line

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Print training and validation metrics."""
        head = f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}"
        if "train/loss" in metrics:
            rate = f"lr {metrics['train/learning_rate']:.2e}"
            say(f"{head}  loss {metrics['train/loss']:.4f}  {rate}{self._pace(metrics, step)}")
        if "validation/loss" in metrics:
            names = [*SHOWN_FIRST, *(name for name in metrics if name.startswith("validation/"))]
            parts = [
                f"{name.removeprefix('validation/').replace('_', ' ')} {metrics[name]:{SHOWN_FIRST.get(name, '.4f')}}"
                for name in dict.fromkeys(names)
                if name in metrics
            ]
            say(f"{head}  validation {'  '.join(parts)}")

    def _pace(self, metrics: dict[str, float], step: int | None) -> str:
        speed = metrics.get("train/tokens_per_second")
        if not speed or step is None:
            return ""
        steps, tokens = step - self._last[0], metrics["train/tokens"] - self._last[1]
        if steps <= 0 or tokens <= 0:  # after a rollback
            steps, tokens = step, metrics["train/tokens"]
        self._last = step, metrics["train/tokens"]
        seconds = (self.max_steps - step) * tokens / steps / speed
        utilization = f"  mfu {metrics['train/mfu']:.1%}" if "train/mfu" in metrics else ""
        return f"  {speed:,.0f} tokens/s{utilization}  {clock(seconds)} to go"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: settings are in config.yaml."""

"""Loggers of `trainer.logger`, beside TensorBoard and metrics.jsonl: missing packages, failures, runs that go on."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json
from mm_lightning.side_files import read_object
from mm_lightning.training import trackio_logger
from mm_lightning.training.lightning_internals import continue_tracked_run
from mm_lightning.training.trackio_logger import TrackioLogger

RUNS = "tracked_runs.json"
"""The file of a run folder with the ids that trackers know the run by: {"WandbLogger": ["1a2b3c"]}."""
TRACKERS = {WandbLogger: "wandb", MLFlowLogger: "mlflow", TrackioLogger: "trackio"}
"""Loggers whose runs go on, with the package that they need."""
EXTRAS = {"wandb", "mlflow"}
"""Packages that an extra of the same name brings: trackio wants an older pillow than the tested one."""


def logger_mistakes(trainer: Namespace) -> Iterator[tuple[str, UserError]]:
    """Yield the error of each logger of a config whose package is missing."""
    named = trainer.get("logger")
    for logger in named if isinstance(named, list) else [named]:
        name = str(logger.get("class_path")).rsplit(".", 1)[-1] if isinstance(logger, Namespace) else ""
        package = {kind.__name__: package for kind, package in TRACKERS.items()}.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            install = f'"mm-lightning[{package}]"' if package in EXTRAS else package
            yield "trainer.logger", UserError(f"trainer.logger: {name} needs {package}: pip install {install}")


def refused_by_tracker(error: Exception) -> bool:
    """Return whether an error comes from the start of a tracker's run, as W&B's does without a login."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [Path(code.co_filename) for code in frames if code.co_name == "experiment"]
    return any(file.parent.name == "loggers" or file == Path(trackio_logger.__file__) for file in files)


def prepare_loggers(loggers: Sequence[Logger], folder: RunFolder) -> None:
    """Let loggers of a resumed run go on in the runs that they began, and a training outlive their failures."""
    ids = read_object(folder.path / RUNS) if folder.resumed else {}
    for logger in loggers:
        begun = ids.get(type(logger).__name__) or []
        if begun and isinstance(logger, TrackioLogger):
            logger.go_on(begun.pop(0))
        elif begun and isinstance(logger, tuple(TRACKERS)):
            continue_tracked_run(logger, begun.pop(0))
        for method in ("log_metrics", "log_hyperparams", "save", "finalize"):
            setattr(logger, method, _outlived(logger, getattr(logger, method)))


def _outlived(logger: Logger, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method whose failure is logged, the first of several in a row, instead of ending a training."""
    failing = False

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        nonlocal failing
        try:
            method(*args, **kwargs)
            failing = False
        except Exception as error:  # whatever a tracker's client or its server raises
            if not failing:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                say(f"{type(logger).__name__}.{method.__name__} failed, training goes on: {reason}")
            failing = True

    return call


def remember_runs(loggers: Sequence[Logger], folder: RunFolder) -> None:
    """Write the ids of the runs that loggers have begun into the run folder."""
    ids: dict[str, list[str]] = {}
    for logger in loggers:
        if isinstance(logger, tuple(TRACKERS)) and logger.version is not None:
            ids.setdefault(type(logger).__name__, []).append(str(logger.version))
    if ids:
        folder.write(folder.path / RUNS, lambda: write_json(folder.path / RUNS, ids), retry=True)

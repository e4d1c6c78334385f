"""Event files for TensorBoard's HPARAMS tab: settings of a run beside its metrics."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm_lightning.training.config_files import flatten_config

# TensorBoard takes a run's settings from the first file that has any. Some versions read files in the order of their
# names and follow only the last one, so the curves of a running training must sort last.
RUN_HPARAMS = "events.out.tfevents.0.hparams"
"""The event file that `mm fit` writes when it starts."""
REPORT_HPARAMS = "events.out.tfevents.hparams"
"""The event file by which `mm report` replaces it, with the axes of a sweep."""

METRICS = ("validation/loss", "validation/perplexity", "validation/bits_per_byte", "train/loss")
"""Metrics of `mm fit` that are columns of the tab."""
TRAINER_OPTIONS = (
    "max_steps",
    "max_epochs",
    "max_time",
    "precision",
    "strategy",
    "devices",
    "num_nodes",
    "gradient_clip_val",
)
"""Trainer options that are hyperparameters."""


def hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a run by dotted name: all of model and data, some of the trainer.

    Args:
        values: the resolved config, without secrets.
    """
    trainer = values.get("trainer") or {}
    chosen: dict[str, Any] = {key: values[key] for key in ("seed_everything", "model", "data") if key in values}
    chosen["trainer"] = {key: trainer.get(key) for key in TRAINER_OPTIONS}
    return {
        re.sub(r"\.(class_path|init_args)\b", "", n): value for n, value in flatten_config(chosen) if value is not None
    }


def write_run_hparams(folder: Path, values: Mapping[str, Any]) -> None:
    """Write a run's hyperparameters as an event file, unless `mm report` has written one.

    Args:
        folder: folder of the run's TensorBoard files.
        values: hyperparameters by name.

    Raises:
        OSError: they cannot be written.
    """
    if not (folder / REPORT_HPARAMS).exists():
        write_hparams_file(folder / RUN_HPARAMS, values, dict.fromkeys(METRICS))


def write_hparams_file(path: Path, values: Mapping[str, Any], metrics: Mapping[str, tuple[int, float] | None]) -> None:
    """Write an event file with the hyperparameters of a run, replacing an earlier one.

    Args:
        path: the event file.
        values: hyperparameters: numbers, strings and bools; other values become strings, None is left out.
        metrics: (step, value) of each metric column; None if the run's curve has the value.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import hparams

    plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in values.items() if v is not None}
    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events += [Event(wall_time=now, summary=summary) for summary in hparams(plain, dict.fromkeys(metrics, 0.0))]
    for name, point in metrics.items():
        if point is not None:
            scalar = Summary(value=[Summary.Value(tag=name, simple_value=point[1])])
            events.append(Event(wall_time=now, step=point[0], summary=scalar))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / "hparams.unfinished"
    with open(unfinished, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
    os.replace(unfinished, path)

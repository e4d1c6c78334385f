"""TensorBoard's HPARAMS tab: settings of a run beside its metrics."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm_lightning.training.config_files import flatten_config

# TensorBoard believes the first file that says what a run's settings are, and some versions read files in the order of
# their names and wait at the last one, so that the curves of a running training must come last.
RUN_HPARAMS = "events.out.tfevents.0.hparams"
"""The event file that `mm fit` writes when it starts."""
REPORT_HPARAMS = "events.out.tfevents.hparams"
"""The event file that `mm report` puts in its place, with the axes of a sweep."""

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
"""Options of the trainer that are settings of an experiment; the others say where things go and what watches."""


def hyperparameters(values: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters of a run by dotted name: everything of the model and the data, some of the trainer.

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
    """Write a run's settings where TensorBoard shows them, unless a report has said more of the run.

    Args:
        folder: of the run's TensorBoard files.
        values: by name.

    Raises:
        OSError: they cannot be written.
    """
    if not (folder / REPORT_HPARAMS).exists():
        write_hparams_file(folder / RUN_HPARAMS, values, dict.fromkeys(METRICS))


def write_hparams_file(path: Path, values: Mapping[str, Any], metrics: Mapping[str, tuple[int, float] | None]) -> None:
    """Write an event file that holds the settings of a run, in the place of an earlier one.

    Args:
        path: the event file.
        values: settings: numbers, strings or truth values; others become strings, None is left out.
        metrics: the columns beside them: step and value of each, or None where the run's curve alone says it.
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

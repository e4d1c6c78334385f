"""TensorBoard's HPARAMS tab: what distinguishes a run of a sweep, beside its metrics."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

# Beside the event files of the training, whose names go on with the time. Always the same name, so that it is replaced.
EVENT_FILE = "events.out.tfevents.hparams"


def write_hparams(run_folder: Path, values: dict[str, Any], metrics: dict[str, float]) -> Path:
    """Writes a run's settings and final metrics where TensorBoard shows them; again, it replaces them.

    Args:
        run_folder: the run folder that `mm fit` wrote.
        values: place on the axes of a sweep, parameters, seed...: numbers, strings or truth values; others become
            strings, None is left out.
        metrics: final values under the names that they were logged under, so that a column of the tab and the curve
            are one.

    Returns:
        The event file.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import hparams

    from mm_lightning.experiments.read_study import read_metrics

    plain = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in values.items() if v is not None}
    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events += [Event(wall_time=now, summary=summary) for summary in hparams(plain, metrics)]
    logged = run_folder / "metrics.jsonl"
    records = read_metrics(logged) if logged.is_file() else {}
    for name, value in metrics.items():
        # at the step of its curve's last point
        step = max((step for step, record in records.items() if name in record), default=0)
        scalar = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        events.append(Event(wall_time=now, step=step, summary=scalar))

    folder = run_folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    unfinished = folder / "hparams.unfinished"
    with open(unfinished, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
    os.replace(unfinished, folder / EVENT_FILE)
    return folder / EVENT_FILE

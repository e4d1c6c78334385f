"""Write the hyper-parameters and final metrics of a run for TensorBoard's HPARAMS tab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm_lightning.checkpoint.run_folder import tensorboard_folder
from mm_lightning.training.tensorboard_hparams import REPORT_HPARAMS, RUN_HPARAMS, write_hparams_file


def write_hparams(run_folder: Path, values: dict[str, Any], metrics: dict[str, float]) -> Path:
    """Write a run's settings and final metrics for TensorBoard, in the place of earlier ones.

    Args:
        run_folder: the run folder that `mm fit` wrote; the settings that it wrote there are replaced.
        values: values on the axes of a sweep, parameters, seed...: numbers, strings or booleans; others become strings,
            None is left out.
        metrics: final values by the names under which they were logged, so that column and curve match.

    Returns:
        The event file.
    """
    from mm_lightning.experiments.read_study import read_metrics

    logged = run_folder / "metrics.jsonl"
    records = read_metrics(logged)
    points = {
        # at the step of its curve's last point
        name: (max((step for step, record in records.items() if name in record), default=0), value)
        for name, value in metrics.items()
    }
    folder = tensorboard_folder(run_folder)
    write_hparams_file(folder / REPORT_HPARAMS, values, points)
    (folder / RUN_HPARAMS).unlink(missing_ok=True)
    return folder / REPORT_HPARAMS

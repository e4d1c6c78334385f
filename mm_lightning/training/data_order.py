"""The sequences that each optimization step is trained on.

They follow from the step and the config alone, except after a rollback or a resume with changed settings.
`rollbacks.jsonl` in the run folder records these exceptions, one a line: after `step`, training continues with sequence
`first` of the data order, under the settings `place` if a resume has changed them.

BadStepGuard also saves the batch of each bad step in `bad_steps/step=N/`: step.json (reason, data order settings, data
sets, location of each sequence) and tokens.R.npy, the (sequences, context) tokens of rank R.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mm_lightning.data import mixture
from mm_lightning.data.mixture import DataSet
from mm_lightning.errors import UserError
from mm_lightning.outputs import staged
from mm_lightning.side_files import read_config, read_lines, write_lines

BAD_STEPS = "bad_steps"
ROLLBACKS = "rollbacks.jsonl"
STEP_FILE = "step.json"


def data_order_settings(
    weights: dict[Path, float], context_length: int, global_batch_size: int, seed: int
) -> dict[str, Any]:
    """Return the settings that determine the sequences of a step, in plain values."""
    data = {str(folder): weight for folder, weight in weights.items()}
    return {"data": data, "context_length": context_length, "global_batch_size": global_batch_size, "seed": seed}


def configured_data_order(run: Path) -> dict[str, Any]:
    """Return :func:`data_order_settings` from the config.yaml of a run.

    Raises:
        UserError: the config is missing, damaged or lacks one of them.
    """
    config = read_config(run / "config.yaml")
    data = config.get("data") or {}
    if missing := {"path", "context_length", "global_batch_size"} - data.keys():
        raise UserError(f"{run / 'config.yaml'} does not record the training data: data.{min(missing)} is missing")
    seed = config.get("seed_everything", 1)
    return data_order_settings(mixture.folders(data["path"]), data["context_length"], data["global_batch_size"], seed)


def locate_sequences(settings: dict[str, Any], sets: list[DataSet], first: int) -> list[dict[str, Any]]:
    """Return the location of each sequence of a step: data set, index in it, shard, and first token in the shard.

    Args:
        settings: :func:`data_order_settings`.
        sets: the data sets.
        first: sequences that the run has served to all devices before this step.
    """
    size, context_length = settings["global_batch_size"], settings["context_length"]
    order = mixture.training_order(sets, context_length, size, size, settings["seed"])
    counts = [s.counts(context_length) for s in sets]
    begins = np.cumsum([0, *map(sum, counts)])
    locations = []
    for number in islice(order.since(first), size):
        k = int(np.searchsorted(begins, number, side="right")) - 1
        number -= int(begins[k])
        ends = np.cumsum(counts[k])
        n = int(np.searchsorted(ends, number, side="right"))
        token = (number - int(ends[n]) + counts[k][n]) * (context_length + 1)
        shard = sets[k].split("train").shards[n].file
        locations.append({"set": k, "sequence": number, "shard": shard, "token": token})
    return locations


def save_tokens(folder: Path, rank: int, batches: Sequence[Tensor]) -> None:
    """Save the tokens of one rank, (B, T) for each micro-batch."""
    with staged(folder / f"tokens.{rank}.npy") as part:
        np.save(part, np.concatenate([b.cpu().numpy().astype(np.int32) for b in batches]))


def data_order_at(run: Path, step: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the data order settings at a step (the first is 1), and `first`, the sequences served before it.

    Args:
        run: the run folder.
        step: the step.
        settings: :func:`data_order_settings`, used where rollbacks.jsonl records no others.
    """
    since, first = 0, 0
    for record in _records(run):
        if record["step"] < step:
            since, first, settings = record["step"], record["first"], record.get("place", settings)
    return {**settings, "first": first + (step - 1 - since) * settings["global_batch_size"]}


def _records(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / ROLLBACKS, "step")


def record_rollback(run: Path, step: int, first: int, settings: dict[str, Any], **more: Any) -> None:
    """Record in rollbacks.jsonl which sequence comes after `step`, unless that follows from step and config.

    Args:
        run: the run folder.
        step: the last finished step.
        first: sequences served before the next step.
        settings: :func:`data_order_settings` of this run.
        more: recorded too.
    """
    if data_order_at(run, step + 1, settings) != {**settings, "first": first}:
        write_lines(run / ROLLBACKS, [*_records(run), {"step": step, "first": first, **more}])


def record_resume(run: Path, step: int, first: int, previous: dict[str, Any] | None, settings: dict[str, Any]) -> None:
    """Record in rollbacks.jsonl what a resume changes, and drop the records of steps that are repeated.

    Args:
        run: the run folder.
        step: the last finished step.
        first: sequences served before the next step.
        previous: :func:`data_order_settings` of the run before; None if unknown.
        settings: the same of this run.
    """
    all_records = _records(run)
    records = [record for record in all_records if record["step"] <= step]
    if records != all_records:
        write_lines(run / ROLLBACKS, records)
    if data_order_at(run, step + 1, previous or settings) == {**settings, "first": first}:
        return
    if previous is not None and previous != settings and not any("place" in record for record in records):
        # config.yaml, which held the settings of the steps before, is overwritten
        records = [{"place": previous, **record} for record in [{"step": 0, "first": 0}, *records]]
    write_lines(run / ROLLBACKS, [*records, {"step": step, "first": first, "place": settings}])

"""`mm data show`: the batch of a step as shards, documents and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mm_lightning.checkpoint.discovery import no_checkpoint
from mm_lightning.checkpoint.run_folder import numbered_runs
from mm_lightning.data import mixture
from mm_lightning.data.manifest import FILE
from mm_lightning.data.mixture import DataSet
from mm_lightning.data.shards import read_shard, unmarked
from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.ranges import Count, Natural, Place
from mm_lightning.side_files import pass_over, read_config, read_object
from mm_lightning.terminal import display
from mm_lightning.training.data_order import (
    BAD_STEPS,
    STEP_FILE,
    configured_data_order,
    data_order_at,
    locate_sequences,
)


def show(
    path: Place,
    step: Count | None = None,
    sequences: Natural = 3,
    tokens: Natural = 200,
    data: list[Place] | Place | None = None,
) -> None:
    """Show what an optimization step was trained on: shards, documents, decoded text; or list a run's bad steps.

    The batch of a bad step was saved when it happened; any other follows from the run's config and data.

    Args:
        path: a run folder, a folder of numbered runs (the newest), or the saved folder of a bad step.
        step: the step, counted from 1 as in metrics.jsonl; without one the bad steps are listed.
        sequences: number of sequences to show.
        tokens: number of tokens to decode of each.
        data: where the run's data are now, if not where its config says; several folders as [a, b].
    """
    folder = Path(path).expanduser()
    batch: dict[str, Any] = {}
    if not folder.is_dir():
        raise no_checkpoint(folder)
    if not (folder / STEP_FILE).is_file():
        run = _run_folder(folder)
        if step is None:
            _list_bad_steps(run)
            return
        end = read_object(run / "finished.json") or read_config(run / "config.yaml").get("trainer") or {}
        steps = end.get("step") or end.get("max_steps") or -1  # -1 where epochs say how many
        if 0 < steps < step:
            raise UserError(f"{run} ends with step {steps:,} and has no step {step:,}: give --step 1 to {steps:,}")
        batch = {**data_order_at(run, step, configured_data_order(run)), "step": step, "sets": _data_sets_at(run, step)}
        folder = run / BAD_STEPS / f"step={step}"
    if bad_step := read_object(folder / STEP_FILE):
        batch = bad_step
        display(f"step {batch['step']}: {batch['why']}")
    elif not batch:
        raise UserError(f"{folder / STEP_FILE} is damaged: mm data show RUN --step N finds the batch without it")
    sets = mixture.read(_moved_weights(batch["data"], data))
    sources = ", ".join(str(s.folder) for s in sets)
    tokenizer = load_tokenizer(sets[0].folder)
    saved = _saved_tokens(folder, batch)
    if changed := batch.get("sets") and mixture.differing(batch["sets"], sets):
        warning = f"the data in {sources} are not those that step {batch['step']} was trained on ({changed})"
        if saved is None or batch.get("tokenizer") != tokenizer.sha256:
            raise UserError(f"{warning}: --data names where those lie")
        display(f"{warning}; these are the tokens that it was given:")
        for number, row in enumerate(saved[:sequences], 1):
            display(f"\nsequence {number} of the step")
            display(tokenizer.decode(row[:tokens].tolist(), special=True))
        return
    locations = batch.get("sequences") or locate_sequences(batch, sets, batch["first"])
    for n, location in enumerate(locations[:sequences]):
        one = sets[location.get("set", 0)]
        where = f"{one.folder}, " if len(sets) > 1 else ""
        trained_on = None if saved is None else saved[n]
        _show_sequence(one, where, tokenizer, location, batch["context_length"], tokens, trained_on)
    display(f"{min(sequences, len(locations))} of {len(locations)} sequences of step {batch['step']}, data {sources}")


def _run_folder(folder: Path) -> Path:
    """Return a run folder itself, or the newest run below it."""
    runs = [run for run in (*numbered_runs(folder), folder) if (run / "config.yaml").is_file()]
    if not runs:
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    return runs[-1]


def _list_bad_steps(run: Path) -> None:
    # a folder without step.json is incomplete: the disk was full
    folders = {file.parent.name.removeprefix("step="): file.parent for file in (run / BAD_STEPS).glob(f"*/{STEP_FILE}")}
    steps = sorted(filter(str.isdecimal, folders), key=int)
    for step in steps:
        display(f"{step:>8}  {read_object(folders[step] / STEP_FILE).get('why', 'why is not known')}")
    display(f"{run}: {len(steps)} bad steps saved; --step N shows the batch of any step")


def _data_sets_at(run: Path, step: int) -> list[dict[str, Any]] | None:
    """Return the data sets that environment.json records for a step of a run; None if it records none."""
    environment = read_object(run / "environment.json")
    sessions = [*environment.get("earlier", []), environment]
    begun = [session for session in sessions if session.get("step", 0) < step]
    return (begun or sessions)[-1].get("data")


def _moved_weights(weights: dict[str, float] | str, moved: list[str] | str | None) -> dict[Path, float]:
    """Return the weights of data sets by folder, with the folders of `--data` in place of the recorded ones."""
    recorded = mixture.folders(weights)
    present = [moved] if isinstance(moved, str) else moved or [str(folder) for folder in recorded]
    if len(present) != len(recorded):
        names = ", ".join(map(str, recorded))
        raise UserError(f"--data names {len(present)} folders, the run has {len(recorded)}: {names}")
    return mixture.folders(dict(zip(present, recorded.values(), strict=True)))


def _saved_tokens(folder: Path, batch: dict[str, Any]) -> list[np.ndarray] | None:
    """Return the saved tokens of each sequence of a step, in its order; None unless those of all ranks are there."""
    files = [folder / f"tokens.{rank}.npy" for rank in range(batch.get("world_size", 0))]
    if not files or not all(file.is_file() for file in files):
        return None
    try:
        ranks = [np.load(file, allow_pickle=False) for file in files]
    except (OSError, ValueError, EOFError) as error:
        pass_over(f"the tokens in {folder} are damaged ({error}): passed over")
        return None
    size = batch["micro_batch_size"]
    return [row for at in range(0, len(ranks[0]), size) for rank in ranks for row in rank[at : at + size]]


def _show_sequence(
    data: DataSet,
    where: str,
    tokenizer: Tokenizer,
    location: dict[str, Any],
    context_length: int,
    shown: int,
    trained_on: np.ndarray | None,
) -> None:
    shard = next((s for s in data.split("train").shards if s.file == location["shard"]), None)
    if shard is None:
        raise UserError(f"{data.folder / FILE} names no shard {location['shard']}: the data are not those of the run")
    stored = read_shard(data.folder / "train" / shard.file, data.manifest.dtype, shard.tokens)
    begin, end = location["token"], location["token"] + context_length
    tokens = unmarked(np.asarray(stored[begin:end]).astype(np.int64))
    documents_before = int(np.count_nonzero(stored[:begin] == tokenizer.bos))
    starts = np.flatnonzero(tokens == tokenizer.bos)
    lengths = np.diff(np.unique([0, *starts.tolist(), len(tokens)])).tolist()
    first = documents_before + (1 if len(starts) and starts[0] == 0 else 0)
    display(
        f"\nsequence {location['sequence']:,}: {where}{shard.file}, tokens {begin:,} to {end - 1:,}, documents "
        f"{first:,} to {documents_before + len(starts):,} of the shard, with {', '.join(map(str, lengths))} tokens"
    )
    if trained_on is not None and not np.array_equal(trained_on, tokens):
        display("the data have changed since; these are the tokens that the run was trained on:")
        tokens = trained_on
    display(tokenizer.decode(tokens[:shown].tolist(), special=True))

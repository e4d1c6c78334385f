"""What an optimisation step was trained on: kept for bad steps, found again for any other.

`bad_steps/step=N/` in a run folder holds step.json (why, the settings that decide the batch, the data and where each of
its sequences lies in them) and tokens.R.npy, (sequences, context) the tokens that process R was given.

`rollbacks.jsonl` in the run folder tells where the data do not follow from step and config alone: from `step` on, the
next step begins with sequence `first` of the whole run's order, and where a resume has changed what decides the order
(`place`), it is that one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mm_lightning.data import mixture
from mm_lightning.data.manifest import FILE
from mm_lightning.data.mixture import DataSet
from mm_lightning.data.shards import read_shard
from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_bytes, write_text
from mm_lightning.ranges import Count, Natural, Place
from mm_lightning.side_files import pass_over, read_config, read_lines, read_object
from mm_lightning.terminal import display

FOLDER = "bad_steps"
RETURNS = "rollbacks.jsonl"
STEP = "step.json"


def place(weights: dict[Path, float], context_length: int, global_batch_size: int, seed: int) -> dict[str, Any]:
    """The settings that decide which sequences a step gets."""
    decides = {"context_length": context_length, "global_batch_size": global_batch_size, "seed": seed}
    return {"data": {str(folder): weight for folder, weight in weights.items()}, **decides}


def numbers(about: dict[str, Any], sets: list[DataSet], first: int) -> list[dict[str, Any]]:
    """Where the sequences of a step lie: the data set of each, its number there, its shard, and its first token there.

    Args:
        about: of :func:`place`.
        sets: the data.
        first: how many sequences the run had served to all devices before.
    """
    size, context_length = about["global_batch_size"], about["context_length"]
    order = mixture.training_order(sets, context_length, size, size, about["seed"])
    counts = [s.counts(context_length) for s in sets]
    begins = np.cumsum([0, *map(sum, counts)])
    found = []
    for number in islice(order.since(first), size):
        k = int(np.searchsorted(begins, number, side="right")) - 1
        number -= int(begins[k])
        ends = np.cumsum(counts[k])
        n = int(np.searchsorted(ends, number, side="right"))
        token = (number - int(ends[n]) + counts[k][n]) * (context_length + 1)
        shard = sets[k].split("train").shards[n].file
        found.append({"set": k, "sequence": number, "shard": shard, "token": token})
    return found


def keep_tokens(folder: Path, rank: int, batches: Sequence[Tensor]) -> None:
    """Writes the tokens of a process, (B, T) a batch."""
    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.save(file, np.concatenate([b.cpu().numpy().astype(np.int32) for b in batches]))
    write_bytes(folder / f"tokens.{rank}.npy", file.getvalue())


def place_of_step(run: Path, step: int, about: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the sequences of a step (the first is 1), and `first`, how many were served before it.

    Args:
        run: the run folder.
        step: which step.
        about: of :func:`place`, where the run folder notes no other.
    """
    since, first = 0, 0
    for line in _notes(run):
        if line["step"] < step:
            since, first, about = line["step"], line["first"], line.get("place", about)
    return {**about, "first": first + (step - 1 - since) * about["global_batch_size"]}


def _notes(run: Path) -> list[dict[str, Any]]:
    """The lines of rollbacks.jsonl; a last one that a killed process left unfinished is no line."""
    return read_lines(run / RETURNS, "step")


def note_place(run: Path, step: int, first: int, about: dict[str, Any], **more: Any) -> None:
    """Write into rollbacks.jsonl with which sequence the step after `step` begins, and in which order, if need be.

    Args:
        run: the run folder.
        step: the last finished step.
        first: sequences served before the next one.
        about: of :func:`place`, of this run.
        more: kept too.
    """
    if place_of_step(run, step + 1, about) != {**about, "first": first}:
        _append(run, {"step": step, "first": first, **more})


def note_resume(run: Path, step: int, first: int, was: dict[str, Any] | None, about: dict[str, Any]) -> None:
    """Write into rollbacks.jsonl what a resume changes, and drop what was noted of steps that come again.

    Args:
        run: the run folder.
        step: the last finished step.
        first: sequences served before the next one.
        was: of :func:`place`, as the run was before; None where that is not known.
        about: the same of this run.
    """
    known = _notes(run)
    kept = [line for line in known if line["step"] <= step]
    if kept != known:
        write_text(run / RETURNS, "".join(json.dumps(line) + "\n" for line in kept))
    before = place_of_step(run, step + 1, was or about)
    if before == {**about, "first": first}:
        return
    if was is not None and was != about and not any("place" in line for line in kept):
        # the config of the steps before is overwritten
        write_text(run / RETURNS, "".join(json.dumps({"place": was, **line}) + "\n" for line in [_BEGIN, *kept]))
    _append(run, {"step": step, "first": first, "place": about})


_BEGIN = {"step": 0, "first": 0}


def _append(run: Path, line: dict[str, Any]) -> None:
    text = "".join(json.dumps(known) + "\n" for known in [*_notes(run), line])
    write_text(run / RETURNS, text)


def show(
    path: Place,
    step: Count | None = None,
    sequences: Natural = 3,
    tokens: Natural = 200,
    data: list[Place] | Place | None = None,
) -> None:
    """Show what an optimisation step was trained on: shards, documents, decoded text; or list a run's bad steps.

    The batch of a bad step was kept when it happened; that of any other follows from the run's config and data.

    Args:
        path: a run folder, a root of numbered ones (the newest), or the kept folder of a bad step.
        step: which step, counted from 1 as in metrics.jsonl; without one the bad steps are listed.
        sequences: how many sequences of it to show.
        tokens: how many tokens of each to decode.
        data: where the run's data lie now, if no longer where its config says; of several folders all, as [a, b].
    """
    folder = Path(path).expanduser()
    about: dict[str, Any] = {}
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    if not (folder / STEP).is_file():
        folder = _run_folder(folder)
        whole = [file.parent for file in (folder / FOLDER).glob(f"step=*/{STEP}")]  # others a full disk has cut off
        found = {path.name.removeprefix("step="): path for path in whole}
        kept = [found[n] for n in sorted(filter(str.isdecimal, found), key=int)]
        if step is None:
            _list(folder, kept)
            return
        about = _computed(folder, step)
        folder = folder / FOLDER / f"step={step}"
    if (folder / STEP).is_file():
        if content := read_object(folder / STEP):
            about = content
            display(f"step {about['step']}: {about['why']}")
        elif not about:
            raise UserError(f"{folder / STEP} is damaged: mm data show RUN --step N finds the batch without it")
    sets = mixture.read(_now(about["data"], data))
    tokenizer = load_tokenizer(sets[0].folder)
    given = _given(folder, about)
    if changed := about.get("sets") and mixture.differing(about["sets"], sets):
        readable = given is not None and about.get("tokenizer") == tokenizer.sha256
        _show_given(given if readable else None, about, changed, sequences, tokens, sets)
        return
    rows = about.get("sequences") or numbers(about, sets, about["first"])
    for n, row in enumerate(rows[:sequences]):
        one = sets[row.get("set", 0)]
        where = f"{one.folder}, " if len(sets) > 1 else ""
        _show_sequence(one, where, tokenizer, row, about["context_length"], tokens, None if given is None else given[n])
    sources = ", ".join(str(s.folder) for s in sets)
    display(f"{min(sequences, len(rows))} of {len(rows)} sequences of step {about['step']}, data {sources}")


def _now(weights: dict[str, float] | str, moved: list[str] | str | None) -> dict[Path, float]:
    """The folders and weights of a run's data, where they lie now."""
    was = mixture.folders(weights)
    now = [moved] if isinstance(moved, str) else moved or [str(folder) for folder in was]
    if len(now) != len(was):
        raise UserError(f"--data names {len(now)} folders, the run has {len(was)}: {', '.join(map(str, was))}")
    return mixture.folders(dict(zip(now, was.values(), strict=True)))


def _run_folder(folder: Path) -> Path:
    """Itself, or the newest of a root of numbered run folders."""
    if (folder / "config.yaml").is_file():
        return folder
    runs = [p for p in folder.iterdir() if p.name.isdigit() and (p / "config.yaml").is_file()]
    if not runs:
        raise UserError(f"{folder} is no run folder: it has no config.yaml")
    return max(runs, key=lambda p: int(p.name))


def _list(run: Path, kept: list[Path]) -> None:
    for path in kept:
        display(f"{path.name.removeprefix('step='):>8}  {read_object(path / STEP).get('why', 'why is not known')}")
    display(f"{run}: {len(kept)} bad steps kept; --step N shows the batch of any step")


def _computed(run: Path, step: int) -> dict[str, Any]:
    """The settings of a run, and where a step begins."""
    if step < 1:
        raise UserError(f"step {step}: the first is 1")
    return {**place_of_step(run, step, configured_place(run)), "step": step, "sets": _recorded(run, step)}


def configured_place(run: Path) -> dict[str, Any]:
    """Return :func:`place` of a run's config.yaml."""
    config = read_config(run / "config.yaml")
    data = config.get("data") or {}
    if missing := {"path", "context_length", "global_batch_size"} - data.keys():
        raise UserError(f"{run / 'config.yaml'} does not say what was trained on: no data.{min(missing)}")
    weights = mixture.folders(data["path"])
    return place(weights, data["context_length"], data["global_batch_size"], config.get("seed_everything", 1))


def _recorded(run: Path, step: int) -> list[dict[str, Any]] | None:
    """Return the data that a step of a run was trained on, as the run has recorded them; None where it has not."""
    if not (environment := read_object(run / "environment.json")):
        return None
    sessions = [*environment.get("earlier", []), environment]
    begun = [session for session in sessions if session.get("step", 0) < step]
    return (begun or sessions)[-1].get("data")


def _given(folder: Path, about: dict[str, Any]) -> list[np.ndarray] | None:
    """The kept tokens of each sequence of the step, in its order; None where not all processes' are there."""
    files = [folder / f"tokens.{rank}.npy" for rank in range(about.get("world_size", 0))]
    if not files or not all(file.is_file() for file in files):
        return None
    try:
        ranks = [np.load(file, allow_pickle=False) for file in files]
    except (OSError, ValueError, EOFError) as error:
        pass_over(f"the tokens in {folder} are damaged ({error}): passed over")
        return None
    size = about["micro_batch_size"]
    return [row for at in range(0, len(ranks[0]), size) for rank in ranks for row in rank[at : at + size]]


def _show_given(
    given: list[np.ndarray] | None,
    about: dict[str, Any],
    changed: str,
    sequences: int,
    tokens: int,
    sets: list[DataSet],
) -> None:
    """Print the kept tokens of a step whose data are others now.

    Raises:
        UserError: none were kept that can be read.
    """
    sources = ", ".join(str(s.folder) for s in sets)
    warning = f"the data in {sources} are others than step {about['step']} was trained on ({changed})"
    if given is None:
        raise UserError(f"{warning}: --data names where those lie")
    display(f"{warning}; these are the tokens that it was given:")
    tokenizer = load_tokenizer(sets[0].folder)
    for number, row in enumerate(given[:sequences], 1):
        display(f"\nsequence {number} of the step")
        display(tokenizer.decode(row[:tokens].tolist(), special=True))


def _show_sequence(
    data: DataSet,
    where: str,
    tokenizer: Tokenizer,
    row: dict[str, Any],
    context_length: int,
    shown: int,
    given: np.ndarray | None,
) -> None:
    shard = next((s for s in data.split("train").shards if s.file == row["shard"]), None)
    if shard is None:
        raise UserError(f"{data.folder / FILE} names no shard {row['shard']}: the data are others than the run's")
    stored = read_shard(data.folder / "train" / shard.file, data.manifest.dtype, shard.tokens)
    begin, end = row["token"], row["token"] + context_length
    here = np.asarray(stored[begin:end]).astype(np.int64)
    before = int(np.count_nonzero(stored[:begin] == tokenizer.bos))
    starts = np.flatnonzero(here == tokenizer.bos)
    bounds = np.unique([0, *starts.tolist(), len(here)])
    first = before + (1 if len(starts) and starts[0] == 0 else 0)
    display(
        f"\nsequence {row['sequence']:,}: {where}{shard.file}, tokens {begin:,} to {end - 1:,}, documents {first:,} to "
        f"{before + len(starts):,} of the shard, with {', '.join(map(str, np.diff(bounds).tolist()))} tokens"
    )
    if given is not None and not np.array_equal(given, here):
        display("the run was given other tokens than lie there now; these are the run's:")
        here = given
    display(tokenizer.decode(here[:shown].tolist(), special=True))

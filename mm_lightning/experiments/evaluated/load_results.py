"""Reads the folders that `mm evaluate` wrote."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.metrics import find_metric
from mm_lightning.evaluation.origin import origin
from mm_lightning.evaluation.registry import find_task, restore_task
from mm_lightning.evaluation.run import run_name
from mm_lightning.evaluation.samples import RESULTS, SETTINGS, Samples, read_json
from mm_lightning.evaluation.task import title_of
from mm_lightning.experiments.evaluated.evaluations import (
    LOSS_TASKS,
    Evaluation,
    EvaluationResults,
    Network,
    data_of,
    in_common,
)


def places(folder: Path) -> Iterator[Path]:
    """The folders below one that hold answers to a task."""
    found = {p.parent for name in (SETTINGS, RESULTS) for p in folder.rglob(f"*/{name}")}
    for path in sorted(found, key=_natural):
        known = path / RESULTS if (path / RESULTS).is_file() else path / SETTINGS
        content = read_json(known)
        if isinstance(content, dict) and ("rows" in content or "identity" in content):
            yield path


def _natural(path: Path) -> list[tuple[int, str]]:
    """step=20 before step=100."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def load_results(folders: Sequence[Path]) -> EvaluationResults:
    """All evaluations below some folders; the newest where a network was asked the same twice."""
    notes: list[str] = []
    raw = [(path, read) for folder in folders for path in places(folder) if (read := _read(path, notes)) is not None]
    known: dict[str, dict[str, Any]] = {}
    for _, found in raw:  # what is known of a network from its other, finished tasks
        if "parameters" in found["network"]:
            known.setdefault(_identity(found["network"]), found["network"])
    names = _names(raw)
    evaluations: dict[tuple[str, str, str], Evaluation] = {}
    for path, found in sorted(raw, key=lambda entry: _started(entry[1])):
        identity = _identity(found["network"])
        network = Network(identity, names[identity], known.get(identity, found["network"]))
        e = Evaluation(
            title_of(found["task"], found["settings"]),
            found["settings"],
            network,
            [_row(found["task"], row) for row in found["rows"]],
            found.get("answers"),
            path,
            found.get("sessions") or [],
            _source(path) if found["task"] in LOSS_TASKS else None,
            found["task"],
        )
        key = identity, e.task, json.dumps([e.asked(), e.settings], sort_keys=True, default=str)
        if key in evaluations and e.answers is not None and evaluations[key].answers is None:
            continue
        if key in evaluations:
            notes.append(f"{evaluations[key].path} is left out: {path} is newer and has the same task and network.")
        evaluations[key] = e
        if e.answers is not None:
            notes.append(
                f"{e.task} of {network.name} is partial: its numbers are those of the first {e.answers:,} answers. The "
                f"same mm evaluate goes on with it."
            )
    order = {identity: n for n, identity in enumerate(names)}
    ordered = sorted(evaluations.values(), key=lambda e: order[e.network.key])
    return EvaluationResults(ordered, notes + _mixed(ordered))


def _read(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """Read the results of a folder, or those of the answers so far; None without answers."""
    if (path / RESULTS).is_file():
        found = read_json(path / RESULTS)
        missing = [name for name in ("task", "run", "rows", "settings", "network") if name not in found]
        if missing:
            raise UserError(f"{path / RESULTS} has no {', '.join(missing)}: was it written by another version of mm?")
        return _asked_in_training(found) if "tokens" in found["network"] else found
    samples = Samples(path)
    records = list(samples.read().values())
    if not records:
        return None
    known = read_json(path / SETTINGS)
    identity = known["identity"]
    found = {"task": identity["task"], "run": path.parent.name, "settings": identity["settings"]}
    try:
        rows = restore_task(found["task"], found["settings"]).rows(records)
    except UserError as error:
        notes.append(f"{path} has {len(records):,} answers and no results, which cannot be summed up here: {error}")
        return None
    return {
        **found,
        "rows": rows,
        "network": identity["network"],
        "answers": len(records),
        "sessions": known["sessions"],
    }


def _row(task: str, row: dict[str, Any] | Row) -> Row:
    """A number with its unit, which earlier versions did not write down."""
    found = Row(**row) if isinstance(row, dict) else row
    if found.unit:
        return found
    try:
        metric = find_task(task).metric(found.metric)
    except UserError:
        metric = find_metric(found.metric)
    return dataclasses.replace(found, unit=metric.unit)


def _asked_in_training(found: dict[str, Any]) -> dict[str, Any]:
    """What a run evaluated while it trained, as if the checkpoint of that step had been asked."""
    network = found["network"]
    checkpoint = Path(network["checkpoint"])
    trained = {name: value for name, value in origin(checkpoint).items() if value is not None}
    known = {"run_folder": str(checkpoint.parent.parent), "training_tokens": network["tokens"], "long_term": True}
    about = {**network, **known, **trained, "weights": f"{checkpoint}, while it trained", "inference_delay": None}
    return {**found, "run": run_name(checkpoint), "network": about}


def _identity(network: dict[str, Any]) -> str:
    """The weights, and how they were asked."""
    names = ("weights", "long_term", "inference_delay", "settings", "precision")
    return json.dumps([network.get(name) for name in names])


def _started(found: dict[str, Any]) -> str:
    sessions = found.get("sessions") or [{}]
    return sessions[-1].get("started", "")


def _source(path: Path) -> str | None:
    """The text that was read."""
    record = next(iter(Samples(path).read().values()), {})
    return record.get("source")


def _names(raw: list[tuple[Path, dict[str, Any]]]) -> dict[str, str]:
    """What networks are called, no two alike: after the run, the options, and where that does not do, the folder."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path, found in raw:
        first.setdefault(_identity(found["network"]), (path, found))

    def name(found: dict[str, Any]) -> str:
        run, network = found["run"], found["network"]
        if network.get("long_term") is False:
            return f"{run.removesuffix('-no-long-term')}, long-term memory removed"
        return run

    called = {identity: name(found) for identity, (_, found) in first.items()}
    for words in (_options, _folder, lambda path, found: str(found["network"].get("weights"))):
        alike: dict[str, list[str]] = {}
        for identity, said in called.items():
            alike.setdefault(said, []).append(identity)
        for same in alike.values():
            more = {identity: words(*first[identity]) for identity in same}
            if len(set(more.values())) > 1:
                called |= {identity: f"{called[identity]}, {word}" for identity, word in more.items() if word}
    order = sorted(called, key=lambda identity: first[identity][1]["network"].get("long_term") is False)
    # without its long-term memory a network stands behind itself
    weights = list(dict.fromkeys(first[identity][1]["network"].get("weights") for identity in called))
    order.sort(key=lambda identity: weights.index(first[identity][1]["network"].get("weights")))
    return {identity: called[identity] for identity in order}


def _folder(path: Path, found: dict[str, Any]) -> str:
    """Return the folder of the results."""
    return path.parent.parent.name


def _options(path: Path, found: dict[str, Any]) -> str:
    network = found["network"]
    delay = network.get("inference_delay")
    said = [f"m = {delay}"] if delay is not None else []
    said += [f"{name} = {value}" for name, value in (network.get("settings") or {}).items()]
    return ", ".join([*said, *([network["precision"]] if network.get("precision") else [])])


def _mixed(evaluations: list[Evaluation]) -> list[str]:
    """What makes networks hard to compare."""
    notes = []
    tokenizers: dict[str, set[str]] = {}
    for e in evaluations:
        if e.task not in LOSS_TASKS:  # there it is a setting
            tokenizers.setdefault(e.task, set()).add(e.tokenizer)
    for one, other in itertools.combinations(evaluations, 2):
        same = json.dumps(one.asked(), default=str) == json.dumps(other.asked(), default=str)
        if same and (common := in_common(one, other)) is not None:
            notes.append(
                f"{one.task}: {one.network.name} and {other.network.name} were asked different questions, "
                f"{common[0]:,} of {common[1]:,} in common, because different ones fit for their tokenizers: they "
                "stand in separate tables."
            )
    for task, found in tokenizers.items():
        if len(found - {"unknown"}) > 1:
            notes.append(f"{task}: the networks have different tokenizers, so a length in tokens is not one in words.")
    if len({e.network.about.get("precision") for e in evaluations} - {None}) > 1:
        notes.append("The networks were asked in different precisions.")
    tasks: dict[str, set[str]] = {}
    for e in evaluations:
        tasks.setdefault(e.task, set()).add(json.dumps([e.asked(), data_of(e)], sort_keys=True, default=str))
    for task, settings in tasks.items():
        if len(settings) > 1:
            notes.append(
                f"{task} was asked under {len(settings)} different settings: they stand in separate tables and "
                f"figures, and do not compare."
            )
    return notes

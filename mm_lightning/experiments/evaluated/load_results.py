"""Load the results of `mm evaluate`, those of interrupted evaluations, and those of evaluations while training."""

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

Content = dict[str, Any]
"""The content of a results.json."""


def result_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders below one that hold answers to a task, step=20 before step=100."""
    for path in sorted({p.parent for name in (SETTINGS, RESULTS) for p in folder.rglob(f"*/{name}")}, key=_natural):
        content = read_json(path / RESULTS if (path / RESULTS).is_file() else path / SETTINGS)
        if isinstance(content, dict) and ("rows" in content or "identity" in content):
            yield path


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def load_results(folders: Sequence[Path]) -> EvaluationResults:
    """Load all evaluations below some folders; the newest where a network was asked the same twice."""
    notes: list[str] = []
    contents = [
        (path, content)
        for folder in folders
        for path in result_folders(folder)
        if (content := _read(path, notes)) is not None
    ]
    described: dict[str, dict[str, Any]] = {}  # by a task that is finished
    for _, content in contents:
        if "parameters" in content["network"]:
            described.setdefault(_identity(content), content["network"])
    names = _names(contents)
    evaluations: dict[tuple[str, str, str], Evaluation] = {}
    for path, content in sorted(contents, key=lambda entry: _started(entry[1])):
        identity = _identity(content)
        e = Evaluation(
            title_of(content["task"], content["settings"]),
            content["settings"],
            Network(identity, names[identity], described.get(identity) or content["network"]),
            [_row(content["task"], row) for row in content["rows"]],
            content.get("answers"),
            path,
            content.get("sessions") or [],
            _source(path) if content["task"] in LOSS_TASKS else None,
            content["task"],
        )
        key = identity, e.task, json.dumps([e.asked(), e.settings], sort_keys=True, default=str)
        if key in evaluations and e.answers is not None and evaluations[key].answers is None:
            continue
        if key in evaluations:
            notes.append(f"{evaluations[key].path} is left out: {path} is newer and has the same task and network.")
        evaluations[key] = e
        if e.answers is not None:
            notes.append(
                f"{e.task} of {e.network.name} is partial: its numbers are those of the first {e.answers:,} answers. "
                f"The same mm evaluate goes on with it."
            )
    order = list(names)
    ordered = sorted(evaluations.values(), key=lambda e: order.index(e.network.key))
    return EvaluationResults(ordered, notes + _remarks(ordered))


def _read(path: Path, notes: list[str]) -> Content | None:
    """Read the results of a folder, or those of the answers so far; None without answers."""
    if (path / RESULTS).is_file():
        content = read_json(path / RESULTS)
        missing = [name for name in ("task", "run", "rows", "settings", "network") if name not in content]
        if missing:
            raise UserError(f"{path / RESULTS} has no {', '.join(missing)}: was it written by another version of mm?")
        return _of_training(content) if "tokens" in content["network"] else content
    records = list(Samples(path).read().values())
    if not records:
        return None
    state = read_json(path / SETTINGS)
    content = {**state["identity"], "run": path.parent.name, "answers": len(records), "sessions": state["sessions"]}
    try:
        return {**content, "rows": restore_task(content["task"], content["settings"]).rows(records)}
    except UserError as error:
        notes.append(f"{path} has {len(records):,} answers and no results, which cannot be summed up here: {error}")
        return None


def _row(task: str, fields: dict[str, Any] | Row) -> Row:
    """Return a number with its unit, which earlier versions did not write down."""
    row = Row(**fields) if isinstance(fields, dict) else fields
    if row.unit:
        return row
    try:
        metric = find_task(task).metric(row.metric)
    except UserError:
        metric = find_metric(row.metric)
    return dataclasses.replace(row, unit=metric.unit)


def _of_training(content: Content) -> Content:
    """Return the results of an evaluation while training in the form of those of the checkpoint of that step."""
    network = content["network"]
    checkpoint = Path(network["checkpoint"])
    trained = {name: value for name, value in origin(checkpoint).items() if value is not None}
    run = {"run_folder": str(checkpoint.parent.parent), "training_tokens": network["tokens"], "long_term": True}
    about = {**network, **run, **trained, "weights": f"{checkpoint}, while it trained", "inference_delay": None}
    return {**content, "run": run_name(checkpoint), "network": about}


def _identity(content: Content) -> str:
    """Return the weights and options of the network."""
    names = ("weights", "long_term", "inference_delay", "settings", "precision")
    return json.dumps([content["network"].get(name) for name in names])


def _started(content: Content) -> str:
    sessions = content.get("sessions") or [{}]
    return sessions[-1].get("started", "")


def _source(path: Path) -> str | None:
    """Return the text that was read."""
    record = next(iter(Samples(path).read().values()), {})
    return record.get("source")


def _names(contents: Sequence[tuple[Path, Content]]) -> dict[str, str]:
    """Name networks by identity, no two alike: by the run, else also by options, folder or weights.

    They are in the order of `contents`; without its long-term memory a network stands behind itself.
    """
    first: dict[str, tuple[Path, Content]] = {}
    for path, content in contents:
        first.setdefault(_identity(content), (path, content))
    names = {identity: _run(content) for identity, (_, content) in first.items()}
    for describe in (_options, _folder, _weights):
        alike: dict[str, list[str]] = {}
        for identity, name in names.items():
            alike.setdefault(name, []).append(identity)
        for same in alike.values():
            more = {identity: describe(*first[identity]) for identity in same}
            if len(set(more.values())) > 1:
                names |= {identity: f"{names[identity]}, {word}" for identity, word in more.items() if word}
    weights = list(dict.fromkeys(_weights(*entry) for entry in first.values()))

    def place(identity: str) -> tuple[int, bool]:
        path, content = first[identity]
        return weights.index(_weights(path, content)), content["network"].get("long_term") is False

    return {identity: names[identity] for identity in sorted(names, key=place)}


def _run(content: Content) -> str:
    if content["network"].get("long_term") is False:
        return f"{content['run'].removesuffix('-no-long-term')}, long-term memory removed"
    return content["run"]


def _weights(path: Path, content: Content) -> str:
    return str(content["network"].get("weights"))


def _folder(path: Path, content: Content) -> str:
    return path.parent.parent.name


def _options(path: Path, content: Content) -> str:
    network = content["network"]
    delay = network.get("inference_delay")
    options = [f"m = {delay}"] if delay is not None else []
    options += [f"{name} = {value}" for name, value in (network.get("settings") or {}).items()]
    return ", ".join([*options, *([network["precision"]] if network.get("precision") else [])])


def _remarks(evaluations: list[Evaluation]) -> list[str]:
    """Return what makes networks hard to compare, in sentences."""
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
    for task, hashes in tokenizers.items():
        if len(hashes - {"unknown"}) > 1:
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

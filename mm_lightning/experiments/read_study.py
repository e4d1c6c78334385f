"""Read the run folders of a sweep, or any run folders, as a study: settings, status, metrics by step."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint.run_folder import has_finished, newest_step
from mm_lightning.errors import UserError
from mm_lightning.experiments.study import LOSS, Run, Study, Tuning
from mm_lightning.side_files import known_config, read_lines, read_object


def read_study(folders: list[Path], baseline: str | None = None) -> Study:
    """Read all runs below some folders.

    Args:
        folders: sweep folders, or any folders that contain run folders.
        baseline: the variant that others are compared with, instead of the sweep's; without a sweep the first one.

    Raises:
        UserError: a folder is missing or has no runs, or there is no variant of the baseline's name.
    """
    studies = [_read_folder(folder) for folder in folders]
    if len(studies) == 1:
        study = studies[0]
    else:
        for part, folder in zip(studies, folders, strict=True):
            # where two folders have the same name, the whole path tells their variants apart
            twice = sum(_label(other) == _label(folder) for other in folders) > 1
            _rename(part, _label(folder), folder.as_posix() if twice else _label(folder))
        study = Study(
            name=", ".join(part.name for part in studies),
            runs=[run for part in studies for run in part.runs],
            command="; ".join(dict.fromkeys(part.command for part in studies if part.command)),
            baseline=studies[0].baseline,
            axes={axis: values for part in studies for axis, values in part.axes.items()},
            stop="; ".join(dict.fromkeys(part.stop for part in studies if part.stop)),
            notes=[note for part in studies for note in part.notes],
            source="; ".join(dict.fromkeys(part.source for part in studies if part.source)),
        )
        for part in studies:
            for metric, values in part.published.items():
                study.published.setdefault(metric, {}).update(values)
        study.notes += [
            f"{', '.join(part.tuning.axes)} of {part.name} was tuned for each variant: mm report {folder} shows it."
            for part, folder in zip(studies, folders, strict=True)
            if part.tuning
        ]
    if baseline is not None and baseline not in study.variants:
        raise UserError(f"no variant is called {baseline!r}: there are {', '.join(study.variants)}")
    study.baseline = baseline or study.baseline or study.variants[0]
    return study


def _label(folder: Path) -> str:
    """Return the label of a folder: its name, of a run folder with its number, as in quickstart/0."""
    path = folder.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.isdigit() else path.name


def _rename(study: Study, label: str, prefix: str) -> None:
    """Put a prefix before the names of a folder's variants and runs, or in place of its label where they have it."""

    def renamed(name: str) -> str:
        return prefix + name[len(label) :] if f"{name}/".startswith(f"{label}/") else f"{prefix}/{name}"

    study.published = {
        metric: {renamed(name) if name in study.variants else name: x for name, x in values.items()}
        for metric, values in study.published.items()
    }
    for run in study.all_runs:
        run.name, run.variant = renamed(run.name), renamed(run.variant)
    if study.baseline is not None:
        study.baseline = renamed(study.baseline)


def has_runs(folder: Path) -> bool:
    """Return whether a folder holds a sweep, or run folders at any depth.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name a sweep's folder, or one that contains run folders")
    return (folder / "sweep.json").is_file() or any(True for _ in _run_folders(folder))


def _read_folder(folder: Path) -> Study:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name a sweep's folder, or one that contains run folders")
    study = _read_sweep(folder) if (folder / "sweep.json").is_file() else _read_plain(folder)
    if not study.runs:
        raise UserError(f"{folder} has no runs: neither a sweep.json nor folders with config.yaml and metrics.jsonl")
    for run in study.all_runs:
        loss = [run.final().get(LOSS), *list(run.curve("train/loss").values())[-1:]]
        if run.finished and any(value is not None and not math.isfinite(value) for value in loss):
            run.status = "diverged"
    return study


def _read_sweep(folder: Path) -> Study:
    """Read a folder of `mm sweep`."""
    path = folder / "sweep.json"
    sweep = read_object(path)
    if not sweep:
        raise UserError(f"{path} is not what mm sweep writes: the same mm sweep writes it anew")
    study = Study(sweep.get("name") or folder.name, [], sweep.get("command") or "", sweep.get("baseline"))
    study.axes, study.stop = sweep.get("axes") or {}, _in_words(sweep.get("stop"))
    published = dict((sweep.get("declared") or {}).get("published") or {})
    study.source, study.published = published.pop("source", ""), published
    tuning = sweep.get("tuning") or {}
    runs: dict[str, Run] = {}  # by folder: a tuning run may be a final run, too
    for planned in [*(sweep.get("runs") or []), *(tuning.get("runs") or [])]:
        try:
            runs.setdefault(planned["folder"], _read_planned(folder, planned))
        except KeyError as error:
            raise UserError(f"{path}: a run has no {error}: was it written by another version of mm sweep?") from error
    study.runs = [runs[planned["folder"]] for planned in sweep.get("runs") or []]
    if tuning:
        tuned = [runs[planned["folder"]] for planned in tuning["runs"]]
        study.tuning = Tuning(tuning["axes"], tuning["metric"], tuning["mode"], _in_words(tuning.get("stop")), tuned)
    if study.baseline is not None and study.baseline not in study.variants:
        raise UserError(f"{path}: its baseline {study.baseline!r} is none of its variants {', '.join(study.variants)}")
    return study


def _read_planned(folder: Path, planned: dict[str, Any]) -> Run:
    """Read a run of a sweep's folder, as sweep.json plans it.

    Raises:
        KeyError: the plan lacks a key.
    """
    from mm_lightning.checkpoint.run_folder import numbered_runs

    run = Run(planned["variant"], planned["seed"], planned["folder"], None, "not started", planned["steps"])
    run.values, run.tuned = planned.get("values") or {}, planned.get("tuned") or {}
    run.parameters = planned.get("parameters")
    run.training_flops_per_token = planned.get("training_flops_per_token")
    run.step_tokens = planned.get("step_tokens")
    place = folder / run.name
    folders = numbered_runs(place)
    if folders:
        _read_run_folder(run, folders[-1])
    if run.finished and not has_finished(folders[-1], planned["steps"]):
        run.status, run.last_step = "unfinished", None  # the sweep has more steps now
    if (place / "failed").is_file() and not run.finished:
        run.status = "failed"
    if (place / "log.txt").is_file():
        lines = (place / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        run.last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return run


def _in_words(stop: Any) -> str:
    """Describe a stop rule: {"tokens": 1e6} -> 1,000,000 tokens."""
    if isinstance(stop, dict):
        return ", ".join(
            f"{value:,.0f} {unit}" if _is_number(value) else f"{unit}: {value}" for unit, value in stop.items()
        )
    return str(stop or "")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_plain(folder: Path) -> Study:
    """Read any folder that contains run folders; of runs of the same variant and seed, the newest counts."""
    study = Study(_label(folder), [])
    newest: dict[tuple[str, int], Run] = {}
    for path in _run_folders(folder):
        config = known_config(path / "config.yaml")
        run = Run(_variant_of(path, folder), config.get("seed_everything", 1), "", path)
        run.name = _label(folder) if path == folder else path.relative_to(folder).as_posix()
        steps = (config.get("trainer") or {}).get("max_steps")
        run.steps = steps if isinstance(steps, int) and steps > 0 else None  # -1 where epochs say how many
        _read_run_folder(run, path)
        older = newest.get((run.variant, run.seed))
        if older is not None:
            study.notes.append(
                f"{older.name} is left out: {run.name} is newer and has the same variant and seed. To compare the two, "
                f"name the run folders one by one."
            )
        newest[run.variant, run.seed] = run
    for run in newest.values():
        assert run.path is not None
        note = _add_cost(run, run.path)
        study.notes += [note] if note else []
    study.runs = list(newest.values())
    return study


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the run folders at any depth, in the order of their names and numbers."""
    walk = ((Path(place), files) for place, _, files in os.walk(folder))  # skips folders that cannot be read
    runs = [place for place, files in walk if {"metrics.jsonl", "config.yaml"} <= set(files)]
    yield from sorted(runs, key=lambda path: (path.parent, int(path.name) if path.name.isdigit() else -1, path.name))


def _variant_of(path: Path, folder: Path) -> str:
    """Return a run's path below the folder without the run's number; a folder that is itself a run keeps its number."""
    path, folder = path.resolve(), folder.resolve()
    if path == folder:
        return _label(folder)
    variant = path.parent if path.name.isdigit() else path
    if re.fullmatch(r"seed-\d+", variant.name) and variant != folder:  # below a sweep's folder
        variant = variant.parent
    return _label(folder) if variant == folder else variant.relative_to(folder).as_posix()


def _add_cost(run: Run, path: Path) -> str | None:
    """Set a run's parameters and FLOPs from its config; return a note if the config cannot be read."""
    from mm_lightning.networks.cost import parameters, training_flops_per_token
    from mm_lightning.training.parse_fit import parse_fit

    try:
        config = parse_fit(["--config", str(path / "config.yaml")])
    except UserError as error:
        return f"{run.name}: parameters and FLOPs are not known, its config is not readable by this version: {error}"
    data = config.data.get("init_args", config.data)
    run.parameters = parameters(config.model.network)
    run.training_flops_per_token = training_flops_per_token(config.model.network, data.context_length)
    return None


def _read_run_folder(run: Run, path: Path) -> None:
    """Read the files that `mm fit` wrote into a run folder."""
    run.path, run.status = path, "unfinished"
    run.saved_step = newest_step(path)
    run.environment = read_object(path / "environment.json")
    if end := read_object(path / "finished.json"):
        run.status, run.last_step, run.last_tokens = "finished", end.get("step"), end.get("tokens")
        run.wall_seconds = None if run.environment.get("earlier") else end.get("seconds")
    run.references = read_object(path / "baselines.json")
    run.records = read_metrics(path / "metrics.jsonl")


def read_metrics(path: Path) -> dict[int, dict[str, float]]:
    """Return all metrics by step; where a step appears again after a resume, the later line counts."""
    records: dict[int, dict[str, float]] = {}
    for line in read_lines(path, "step"):
        step = line.pop("step")
        records.setdefault(step, {}).update({k: v for k, v in line.items() if _is_number(v)})
    return records

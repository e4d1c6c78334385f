"""Tasks of lm-evaluation-harness, made from its own files with data from a folder or from the Hub."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.code import load_metric
from mm_lightning.evaluation.persistent.data import find_files, place_of, read_rows
from mm_lightning.evaluation.persistent.definitions import Definition, Function

try:
    import evaluate
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
except ImportError as missing:
    raise UserError(f"benchmarks need the package lm_eval ({missing}): pip install 'mm-lightning[eval]'") from missing

HUB_SECONDS = 5
"""How long the Hub may take to answer before only what was downloaded earlier is looked for."""

Config = dict[str, Any]


def configs(definition: Definition) -> dict[Path, Config]:
    """Return the content of a benchmark's files, functions by name."""
    root = Path(lm_eval.__path__[0]) / "tasks"
    paths = [path for pattern in definition.files for path in sorted(root.glob(pattern))]
    by_path = {path: {**read_yaml(path), **definition.changes} for path in paths}
    if definition.task_class:
        for config in by_path.values():
            config |= own_class(definition).about()
    return {path: config for path, config in by_path.items() if config["task"] != "minerva_math500"}


@functools.cache
def read_yaml(path: Path) -> Config:
    """Return a file of a task, with what it includes."""
    config = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    includes = config.pop("include", [])
    merged: Config = {}
    for name in [includes] if isinstance(includes, str) else includes:
        merged |= read_yaml(path.parent / name)
    return merged | config


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


_Loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))  # type: ignore[arg-type]
_Dumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def local_files(definition: Definition, data_dir: Path, shots: int) -> dict[str, dict[str, list[Path]]]:
    """Return the files of each split that each task of a benchmark needs.

    Raises:
        UserError: one is missing; it says where it belongs.
    """
    files = {}
    for config in configs(definition).values():
        place = str(config["dataset_path"]), config.get("dataset_name")
        files[config["task"]] = {split: find_files(data_dir, *place, split) for split in needed_splits(config, shots)}
    return files


def needed_splits(config: Config, shots: int) -> list[str]:
    """Return the split that is asked, and the one that examples are from."""
    asked = config.get("test_split") or config["validation_split"]
    if not shots or "samples" in (config.get("fewshot_config") or {}):
        return [asked]
    source = config.get("fewshot_split") or config.get("training_split") or config.get("validation_split")
    if source is None:
        raise UserError(f"{config['task']} has no documents for examples: leave --fewshot out")
    return [asked, source]


def own_class(definition: Definition) -> type[ConfigurableTask]:
    """Return the class of this package that stands for a task's."""
    assert definition.task_class
    module, name = definition.task_class.split(":")
    return getattr(importlib.import_module(module), name)


def load(definition: Definition, name: str, data_dir: Path | None, shots: int) -> dict[str, ConfigurableTask]:
    """Return the tasks of a benchmark by name, each with its documents.

    Args:
        definition: of the benchmark.
        name: of the benchmark, for errors.
        data_dir: local data; None for the Hub.
        shots: examples before each question.

    Raises:
        UserError: the data are missing, or of another form.
    """
    for config in configs(definition).values():
        needed_splits(config, shots)
    files = None if data_dir is None else local_files(definition, data_dir, shots)
    with (
        quiet(bars=files is None),
        replaced(evaluate, "load", load_metric),
        reachable(name, definition, files is None),
    ):
        try:
            tasks = _make_from_class(definition, files) if definition.task_class else _make(definition, files, shots)
        except UserError:
            raise
        except (ImportError, AssertionError) as error:
            raise UserError(f"{name}: {error}; pip install 'mm-lightning[eval]'") from error
        except Exception as error:
            if files is None:
                raise
            missing = type(error).__name__ in ("KeyError", "UndefinedError")  # all rows have the first one's fields
            first = next(iter(next(iter(files.values())).values()))[0]
            where = _first_null(files) or f"{first}{', row 1' if missing else ''}"
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(
                f"{name} cannot use the documents of {where} ({reason}): their form is another one"
            ) from error
    for task in tasks.values():
        task.set_config("num_fewshot", shots)
    return tasks


def _first_null(files: dict[str, dict[str, list[Path]]]) -> str | None:
    """Return the file and the row with the first field that is null, which the functions of tasks fail on."""
    for path in (path for splits in files.values() for paths in splits.values() for path in paths):
        for row, document in read_rows(path):
            for name, value in document.items():
                if value is None or (isinstance(value, list) and None in value):
                    return f"{path}, row {row}, where {name!r} {'is' if value is None else 'has a'} null"
    return None


def _make(definition: Definition, files: dict[str, dict[str, list[Path]]] | None, shots: int) -> Any:
    """Return the tasks through the harness' loader, from files that include its files."""
    with tempfile.TemporaryDirectory(prefix="mm-tasks-") as folder:
        names = []
        for path, config in configs(definition).items():
            names.append(config["task"])
            overlay = {"include": str(path), "task": config["task"], **definition.changes}
            if files is not None:
                overlay |= _local(config, files[config["task"]], shots)
            text = yaml.dump(overlay, Dumper=_Dumper)
            (Path(folder) / f"{config['task']}.yaml").write_text(text, encoding="utf-8")
        return TaskManager(include_path=folder, include_defaults=False).load(names)["tasks"]


def _local(config: Config, files: dict[str, list[Path]], shots: int) -> Config:
    """Return the settings with which a task reads local files, and only the splits that it needs."""
    overlay: Config = {
        "custom_dataset": Function("mm_lightning.evaluation.persistent.data.read"),
        "dataset_kwargs": {"files": {split: [str(path) for path in paths] for split, paths in files.items()}},
    }
    needed = set(needed_splits(config, shots))
    for name in ("training_split", "validation_split", "fewshot_split"):
        if config.get(name) not in needed:
            overlay[name] = None
    return overlay


def _make_from_class(definition: Definition, files: dict[str, dict[str, list[Path]]] | None) -> Any:
    (config,) = configs(definition).values()
    kind = own_class(definition)
    if files is not None:
        local = {split: [str(path) for path in paths] for split, paths in files[config["task"]].items()}
        kind = type(kind.__name__, (kind,), {"files": local})
    task = kind()
    task.config.task = config["task"]
    return {config["task"]: task}


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Context manager that gives a name of a module another value."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Context manager that hides the harness' hints to its users, and bars unless something is downloaded."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, shown = logger.level, not datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def reachable(name: str, definition: Definition, hub: bool) -> Iterator[None]:
    """Context manager that uses earlier downloads where the Hub does not answer soon.

    Raises:
        UserError: there is nothing; it says where local files belong.
    """
    if not hub:
        yield
        return
    import datasets
    from huggingface_hub import constants

    with contextlib.ExitStack() as stack:
        if not hub_answers():
            stack.enter_context(replaced(datasets.config, "HF_HUB_OFFLINE", True))
            stack.enter_context(replaced(constants, "HF_HUB_OFFLINE", True))
        try:
            yield
        except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
            config = next(iter(configs(definition).values()))
            place = place_of(Path("DIR"), config["dataset_path"], config.get("dataset_name"))
            raise UserError(
                f"{name} needs {config['dataset_path']} from the Hub, which cannot be had here "
                f"({' '.join(str(error).split())[:120]}): give --data_dir DIR, with the {needed_splits(config, 0)[0]} "
                f"documents in {place / needed_splits(config, 0)[0]}.jsonl"
            ) from error


def hub_answers() -> bool:
    """Return whether the Hub can be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.HfApi().dataset_info("openai/gsm8k", timeout=HUB_SECONDS)
    except HfHubHTTPError:
        return True
    except Exception:
        return False
    return True

"""The config.yaml of the run that a command continues or evaluates, which the command line overrides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint import find_checkpoint, run_folder_of
from mm_lightning.console import is_first_process
from mm_lightning.data.manifest import FILE
from mm_lightning.errors import UserError
from mm_lightning.ranges import Place, accept
from mm_lightning.redaction import HIDDEN, redact_values
from mm_lightning.side_files import pass_over, read_config
from mm_lightning.training.check_config import config_differences
from mm_lightning.training.config_files import ConfigFile
from mm_lightning.training.resume import NAMED_ELSEWHERE

CONFIG = "config.yaml"
DEFAULT_ROOT = "runs/default"


def continued_checkpoint(command: str, options: Sequence[str], files: Sequence[ConfigFile]) -> Path | None:
    """Return the checkpoint of the run whose config.yaml a command line builds on; None if there is none.

    `mm fit --resume` uses the run's configuration whatever configs are named; the other commands use that of the run
    they evaluate if no config is named.

    Raises:
        UserError: there is no valid checkpoint.
    """
    root = option_value("run", options) or next(
        (str(f.values["run"]) for f in reversed(files) if "run" in f.values), None
    )
    for name in ("run", "ckpt_path"):
        if (place := option_value(name, options)) is not None:
            accept(Place, place, f"--{name}")
    if command != "fit":
        place = option_value("ckpt_path", options) or option_value("run", options)
        return find_checkpoint(place) if place and not files else None
    resume = option_value("resume", options, alone="true")
    if resume is None:
        resume = next((str(f.values["resume"]) for f in reversed(files) if "resume" in f.values), "false")
    if resume.lower() == "false" or option_value("ckpt_path", options):
        return None
    place = accept(Place, resume if resume.lower() != "true" else root or DEFAULT_ROOT, "resume")
    # rank 0 verifies checksums, and its choice is what all ranks load
    return find_checkpoint(place, checksums=is_first_process())


def option_value(name: str, options: Sequence[str], alone: str = "") -> str | None:
    """Return the value of an option, `alone` for one without a value; None if it is not given."""
    value = None
    for word, following in zip(options, [*options, "--"][1:], strict=True):
        if word == f"--{name}":
            value = alone if following.startswith("--") else following
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
    return value


def read_run_config(checkpoint: Path, options: Sequence[str], files: Sequence[ConfigFile]) -> ConfigFile | None:
    """Return the config.yaml of a checkpoint's run, to be read before other configs; None if there is none.

    Args:
        checkpoint: a checkpoint of the run.
        options: the other command-line options.
        files: the configs of the command line.

    Raises:
        UserError: it is damaged and no other config is named, or it hides a secret that the command line lacks.
    """
    folder = run_folder_of(checkpoint)
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        values = read_config(path)
    except UserError as error:
        if not files:
            raise UserError(
                f"{error}. A checkpoint does not hold a run's settings: name the config that the run was begun with, "
                f"as in --config FILE"
            ) from error
        pass_over(f"{error}: passed over, the configs that are named are all there is")
        return None
    if folder.name.isdigit():
        values["run"] = str(folder.parent)  # the folder may have been moved
    named = [word.partition("=")[0].removeprefix("--") for word in options if word.startswith("--")]
    for section, content in values.items():
        if HIDDEN not in json.dumps(content, default=str):
            continue
        for key in hidden_keys(content, section):
            given_again = any(key.startswith(name) for name in named) or any(section in f.values for f in files)
            if not given_again and not (key.startswith("data.prepare.") and _is_prepared(values)):
                raise UserError(f"{path} keeps no secrets: give {key} again, as in --{key} VALUE")
    return ConfigFile(str(path), values)


def _is_prepared(values: dict[str, Any]) -> bool:
    """Return whether the data of a config are prepared, so that their sources are not needed."""
    path = values.get("data", {}).get("path")
    return isinstance(path, str) and (Path(path).expanduser() / FILE).is_file()


def hidden_keys(content: Any, name: str) -> list[str]:
    """Return the dotted names of values whose secret was redacted."""
    if isinstance(content, dict):
        return [inner for key, value in content.items() for inner in hidden_keys(value, f"{name}.{key}")]
    return [name.replace(".init_args", "")] if HIDDEN in json.dumps(content, default=str) else []


def overridden_settings(run_config: ConfigFile, config: dict[str, Any]) -> list[str]:
    """Return the settings that differ from a run's configuration, with both values unless they are long.

    Args:
        run_config: the run's configuration.
        config: this command's, with every default.
    """
    changes = []
    for name, (was, now) in config_differences(redact_values(run_config.values), redact_values(config)).items():
        both = f"{name} {now} instead of {was}"
        if name not in NAMED_ELSEWHERE:
            changes.append(both if len(both) < 200 else name)
    return changes

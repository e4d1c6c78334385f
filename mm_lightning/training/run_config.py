"""The config.yaml of the run that a command continues or evaluates, which the command line overrides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint.discovery import find_checkpoint, run_folder_of
from mm_lightning.console import is_first_process
from mm_lightning.data.manifest import FILE
from mm_lightning.errors import UserError
from mm_lightning.ranges import Place, accept
from mm_lightning.redaction import HIDDEN, redact_values
from mm_lightning.side_files import pass_over, read_config
from mm_lightning.training.check_config import config_differences
from mm_lightning.training.command_options import DEFAULT_ROOT
from mm_lightning.training.config_files import ConfigFile, flatten_config, option_texts
from mm_lightning.training.resume import LOGGED_ON_RESTORE


def continued_checkpoint(command: str, options: Sequence[str], files: Sequence[ConfigFile]) -> Path | None:
    """Return the checkpoint of the run whose config.yaml a command line builds on; None if there is none.

    `mm fit --resume` uses the run's configuration whatever configs are named; the other commands use that of the run
    they evaluate if no config is named.

    Raises:
        UserError: there is no valid checkpoint.
    """
    texts = option_texts(options)
    for name in ("run", "ckpt_path"):
        if name in texts:
            accept(Place, texts[name], f"--{name}")
    if command != "fit":
        place = texts.get("ckpt_path") or texts.get("run")
        return find_checkpoint(place) if place and not files else None
    settings = {name: str(value) for file in files for name, value in file.values.items()}
    settings |= option_texts(options, alone="true")
    resume = settings.get("resume", "false")
    if resume.lower() == "false" or "ckpt_path" in texts:
        return None
    root = settings.get("run", DEFAULT_ROOT)
    place = accept(Place, root if resume.lower() == "true" else resume, "resume")
    # rank 0 verifies checksums, and its choice is what all ranks load
    return find_checkpoint(place, checksums=is_first_process())


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
    path = folder / "config.yaml"
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
    named = option_texts(options)
    data = values.get("data", {}).get("path")
    prepared = isinstance(data, str) and (Path(data).expanduser() / FILE).is_file()  # from sources needed no more
    for key, value in flatten_config(values):
        if HIDDEN not in json.dumps(value, default=str):
            continue
        key, section = key.replace(".init_args", ""), key.partition(".")[0]
        given_again = any(key.startswith(name) for name in named) or any(section in f.values for f in files)
        if not given_again and not (key.startswith("data.prepare.") and prepared):
            raise UserError(f"{path} keeps no secrets: give {key} again, as in --{key} VALUE")
    return ConfigFile(str(path), values)


def overridden_settings(run_config: ConfigFile, config: dict[str, Any]) -> list[str]:
    """Return the settings that differ from a run's configuration, with both values unless they are long.

    Args:
        run_config: the run's configuration.
        config: this command's, with every default.
    """
    changes = []
    for name, (was, now) in config_differences(redact_values(run_config.values), redact_values(config)).items():
        both = f"{name} {now} instead of {was}"
        if name not in LOGGED_ON_RESTORE:
            changes.append(both if len(both) < 200 else name)
    return changes

"""Drop the data preparation of a config where a later config or option names another data.path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mm_lightning.errors import UserError
from mm_lightning.training.config_files import ConfigFile, flatten_config
from mm_lightning.yaml_text import load_yaml

MAKERS = ("prepare", "generate", "regbench", "facts")


def drop_other_preparation(data: Namespace, files: Sequence[ConfigFile], options: Sequence[str]) -> None:
    """Set `data.prepare` and the generators to null where they belong to another `data.path`.

    A preparation belongs to the path in its own config file. A later file or option that names another path has to
    name the preparation again.

    Args:
        data: the parsed section, changed in place.
        files: the config files, in order.
        options: the other command-line options, which override the files.

    Raises:
        UserError: settings of `data.prepare` are given for the other path, but no sources.
    """
    keys: set[str] = set()  # keys that belong to the last path
    path = None
    for layer in [*(dict(flatten_config(file.values.get("data"), "data")) for file in files), _typed(options)]:
        named = _expanded(layer.get("data.path"))
        if named is not None:
            keys, path = (keys if path in (None, named) else set()), named
        keys |= {key for key, value in layer.items() if value is not None}
    for maker in MAKERS:
        settings = sorted(key for key in keys if f"{key}.".startswith(f"data.{maker}."))
        if data.get(maker) is None:
            continue
        if not settings:
            data[maker] = None
        elif maker == "prepare" and "data.prepare.sources" not in settings:
            raise UserError(
                f"{settings[0]} is given for data.path {data.path}, but not what to prepare there: give "
                f"data.prepare.sources too, or, to train on what `mm data prepare` has put there, no data.prepare"
            )


def _typed(options: Sequence[str]) -> dict[str, Any]:
    """Return the values of the options of the data section by their dotted names."""
    layer: dict[str, Any] = {}
    for option, following in zip(options, [*options, ""][1:], strict=True):
        name, equals, value = option.partition("=")
        if name == "--data" or name.startswith("--data."):
            layer |= flatten_config(_plain(value if equals else following), name.removeprefix("--"))
    return layer


def _expanded(path: Any) -> Any:
    return str(Path(path).expanduser()) if isinstance(path, str) else path


def _plain(text: str) -> Any:
    try:
        return load_yaml(text, "data")
    except UserError:
        return text

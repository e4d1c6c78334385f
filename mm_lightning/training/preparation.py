"""The preparation of a data folder that does not exist yet: only one that was named together with its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mm_lightning.errors import UserError
from mm_lightning.training.config_files import ConfigFile, flatten_config
from mm_lightning.yaml_text import load_yaml

MAKERS = ("prepare", "regbench", "facts")


def drop_other_preparation(data: Namespace, files: Sequence[ConfigFile], options: Sequence[str]) -> None:
    """Set `data.prepare`, `data.regbench` and `data.facts` to null where they belong to another `data.path`.

    A preparation belongs to the path of its own config file. Where a later file or an option names another path, it
    has to be named again there.

    Args:
        data: the parsed section, changed in place.
        files: the config files, in order.
        options: the rest of the command line, which wins over them.

    Raises:
        UserError: some setting of `data.prepare` is named for the other path, but not what to prepare there.
    """
    keys: set[str] = set()  # those that belong to the path that was named last
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

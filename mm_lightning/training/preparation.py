"""What a data folder is filled with where nothing is there yet: only with what was named together with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mm_lightning.errors import UserError
from mm_lightning.training.config_files import ConfigFile
from mm_lightning.yaml_text import load_yaml

MAKERS = ("prepare", "regbench", "facts")


def keep_own_preparation(data: Namespace, files: Sequence[ConfigFile], options: Sequence[str]) -> None:
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
    own: set[str] = set()
    path = None
    for layer in [*(_flat(file.values.get("data")) for file in files), _given(options)]:
        named = _expanded(layer.get("path"))
        if named is not None:
            own, path = (own if path in (None, named) else set()), named
        own |= {key for key, value in layer.items() if value is not None}
    for maker in MAKERS:
        settings = sorted(key for key in own if key.split(".")[0] == maker)
        if data.get(maker) is None:
            continue
        if not settings:
            data[maker] = None
        elif maker == "prepare" and "prepare.sources" not in settings:
            raise UserError(
                f"data.{settings[0]} is given for data.path {data.path}, but not what to prepare there: give "
                f"data.prepare.sources too, or, to train on what `mm data prepare` has put there, no data.prepare"
            )


def _given(options: Sequence[str]) -> dict[str, Any]:
    """Return the options of the section by their keys in it."""
    layer: dict[str, Any] = {}
    for option, following in zip(options, [*options, ""][1:], strict=True):
        name, equals, value = option.partition("=")
        if name == "--data" or name.startswith("--data."):
            layer |= _flat(_plain(value if equals else following), name.removeprefix("--data").lstrip("."))
    return layer


def _expanded(path: Any) -> Any:
    return str(Path(path).expanduser()) if isinstance(path, str) else path


def _plain(text: str) -> Any:
    try:
        return load_yaml(text, "data")
    except UserError:
        return text


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted keys; of a path that is a mapping, the path."""
    if not isinstance(value, dict) or key == "path":
        return {key: value}
    parts: Iterable[dict[str, Any]] = (_flat(v, f"{key}.{k}".lstrip(".")) for k, v in value.items())
    return {k: v for part in parts for k, v in part.items()}

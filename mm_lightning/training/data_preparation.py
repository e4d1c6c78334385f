"""Fit a config to a data.path that a later config or option names: no preparation, a large enough vocabulary."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mm_lightning.console import say
from mm_lightning.data.manifest import FILE, Manifest
from mm_lightning.errors import UserError
from mm_lightning.training.config_files import ConfigFile, flatten_config, option_texts
from mm_lightning.yaml_text import load_yaml

MAKERS = ("prepare", "generate")


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
    for layer in _layers(files, options):
        named = layer.get("data.path")
        if named is not None:
            named = str(Path(named).expanduser()) if isinstance(named, str) else named
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


def enlarge_vocabulary(config: Namespace, files: Sequence[ConfigFile], options: Sequence[str]) -> None:
    """Raise `model.network.vocab_size` to the tokenizer's where the data are named after it and have more tokens.

    A vocabulary that is named together with the data, or later, stays; so do networks that weights are loaded into.

    Args:
        config: the parsed config, changed in place.
        files: the config files, in order.
        options: the other command-line options, which override the files.
    """
    layers = _layers(files, options)
    path, network = config.data.path, config.model.network.init_args
    folder = Path(next(iter(path)) if isinstance(path, dict) else path).expanduser()
    named = max((n for n, keys in enumerate(layers) if "data.path" in keys), default=-1)
    later = [key for keys in layers[named:] for key in keys if key.startswith("model.network")]
    if any(key.endswith(".vocab_size") for key in later) or not (folder / FILE).is_file():
        return
    size = Manifest.load(folder).vocab_size
    if size > network.get("vocab_size", size):
        change = f"vocabulary         {size:,} tokens, as {folder} has them (the config has {network.vocab_size:,})"
        say(change, stderr=True)  # `mm cost --json` parses such a config too
        network.vocab_size = size


def _layers(files: Sequence[ConfigFile], options: Sequence[str]) -> list[dict[str, Any]]:
    """Return the settings of each file, in order, and then of the options, by their dotted names."""
    typed: dict[str, Any] = {}
    for name, text in option_texts(options).items():
        value: Any = text
        with contextlib.suppress(UserError):  # no YAML: a text
            value = load_yaml(text, name)
        typed |= flatten_config(value, name)
    return [*(dict(flatten_config(file.values)) for file in files), typed]

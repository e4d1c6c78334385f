"""Configurations from what checkpoints and config.json say of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.networks.config import NetworkConfig
from mm_lightning.networks.memory_mosaic import MemoryMosaicConfig
from mm_lightning.networks.parts import load_class
from mm_lightning.networks.transformer import TransformerConfig


class UnknownNetwork(UserError):
    """A network, or a setting of one, that this version does not know: the message says which."""


CLASSES: dict[str, type[NetworkConfig]] = {c.__name__: c for c in (MemoryMosaicConfig, TransformerConfig)}


def config_of(described: dict[str, Any]) -> NetworkConfig:
    """Return the configuration that :meth:`NetworkConfig.described` described.

    A field that is missing has its default. The class may be of another module: module.Class.

    Raises:
        UnknownNetwork: the class, or one of the fields, is not of this version.
        UserError: a class of another module cannot be imported.
    """
    name, settings = described["class"], described["fields"]
    if "." not in name and name not in CLASSES:
        raise UnknownNetwork(f"a network {name!r}")
    found = load_class(name, NetworkConfig) if "." in name else CLASSES[name]
    strange = sorted(set(settings) - {field.name for field in fields(found)})
    if strange:
        raise UnknownNetwork(f"a {name.removesuffix('Config')} with {', '.join(strange)}")
    return found(**settings)

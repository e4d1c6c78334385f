"""Configurations read back from checkpoints and config.json."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mm_lightning.errors import UserError
from mm_lightning.networks.config import NetworkConfig
from mm_lightning.networks.gated_deltanet import GatedDeltaNetConfig
from mm_lightning.networks.memory_mosaic import MemoryMosaicConfig
from mm_lightning.networks.transformer import TransformerConfig
from mm_lightning.user_classes import load_class


class UnknownNetwork(UserError):
    """A network class, or a setting of one, that this version does not know; the message names it."""


CLASSES: dict[str, type[NetworkConfig]] = {
    c.__name__: c for c in (MemoryMosaicConfig, TransformerConfig, GatedDeltaNetConfig)
}


def config_from_dict(values: dict[str, Any]) -> NetworkConfig:
    """Return the configuration that :meth:`NetworkConfig.to_dict` wrote; fields that are missing have their defaults.

    Args:
        values: {class, fields}; a class of another module is named module.Class.

    Raises:
        UnknownNetwork: this version does not know the class or one of the fields.
        UserError: a class of another module cannot be imported.
    """
    name, settings = values["class"], values["fields"]
    if "." not in name and name not in CLASSES:
        raise UnknownNetwork(f"a network {name!r}")
    config_class = load_class(name, NetworkConfig) if "." in name else CLASSES[name]
    unknown = sorted(set(settings) - {field.name for field in fields(config_class)})
    if unknown:
        raise UnknownNetwork(f"a {name.removesuffix('Config')} with {', '.join(unknown)}")
    return config_class(**settings)

"""Parse `mm fit` command lines without running them."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace

from mm_lightning.networks import NetworkConfig
from mm_lightning.training.cli import TrainingCLI
from mm_lightning.user_classes import load_class


def network_config_of(config: Namespace) -> NetworkConfig:
    """Return the config of the network that a parsed config names."""
    network = config.model.network
    return load_class(network.class_path, NetworkConfig)(**network.init_args.as_dict())


def parse_fit(args: list[str]) -> Namespace:
    """Return the resolved config of an `mm fit` command line, with `model.network` as a NetworkConfig.

    Raises:
        UserError: for any mistake of the user's.
    """
    return resolve_fit(args)[0]


def resolve_fit(args: list[str]) -> tuple[Namespace, dict[str, Any]]:
    """Return the config of :func:`parse_fit`, and the same as the values of a config file.

    Raises:
        UserError: for any mistake of the user's.
    """
    parsed = TrainingCLI("fit", args, runs=False)
    values = parsed.resolved_config()
    parsed.config.model.network = network_config_of(parsed.config)
    return parsed.config, values

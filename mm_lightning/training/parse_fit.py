"""Parse `mm fit` command lines without running them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mm_lightning.errors import UserError
from mm_lightning.networks import NetworkConfig
from mm_lightning.training.cli import TrainingCLI, prepare
from mm_lightning.user_classes import load_class


class FitCommandLine(TrainingCLI):
    """An `mm fit` command line that is not run: a checkpoint that it names need not exist yet."""

    def __init__(self, args: list[str]) -> None:
        super().__init__("fit", args)

    def checkpoint_to_continue(self) -> Path | None:
        with contextlib.suppress(UserError):
            return super().checkpoint_to_continue()
        return None

    def run_command(self) -> None:
        """Do nothing."""


class FitParser(FitCommandLine):
    """Parser of an `mm fit` command line."""

    def instantiate_classes(self) -> None:
        """Build the config of the network, nothing else."""
        self.resolved = self.resolved_config()
        self.config.model.network = network_config_of(self.config)


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
    prepare()
    parsed = FitParser(args)
    return parsed.config, parsed.resolved

"""`mm fit` command lines that are read but not run."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mm_lightning.errors import UserError
from mm_lightning.networks import NetworkConfig
from mm_lightning.training.cli import TrainingCLI, prepare
from mm_lightning.yaml_text import load_yaml


class FitParser(TrainingCLI):
    """An `mm fit` command line that is read but not run."""

    def _continued_checkpoint(self) -> Path | None:
        with contextlib.suppress(UserError):  # what begins with a checkpoint may be read before there is one
            return super()._continued_checkpoint()
        return None

    def instantiate_classes(self) -> None:
        """Builds the dimensions of the network, nothing else."""
        self.resolved = self.resolved_config()
        self.config.fit.model.network = network_config_of(self.config.fit)

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def network_config_of(config: Namespace) -> NetworkConfig:
    """The dimensions of the network that a parsed config names."""
    network = config.model.network
    module, name = network.class_path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**network.init_args.as_dict())


def parse_fit(args: list[str]) -> Namespace:
    """The resolved config of an `mm fit` command line, with `model.network` as a NetworkConfig.

    Raises:
        UserError: for any mistake of the user's.
    """
    return resolve_fit(args)[0]


def resolve_fit(args: list[str]) -> tuple[Namespace, dict[str, Any]]:
    """As :func:`parse_fit`, and the same config as the plain values that a config file of it would hold.

    Raises:
        UserError: for any mistake of the user's.
    """
    prepare()
    parsed = FitParser("fit", args)
    return parsed.config.fit, load_yaml(parsed.resolved, "the config")

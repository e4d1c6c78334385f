"""A cluster that is not there: this process believes to be the first of many, and collectives return at once.

What others would have sent is missing: sums hold this process's part, gathered parameters this process's share.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment


class FakeCluster(ClusterEnvironment):
    """The first process of a cluster of this size.

    Args:
        devices: processes in all.
    """

    def __init__(self, devices: int) -> None:
        super().__init__()
        self._devices = devices

    @property
    def creates_processes_externally(self) -> bool:
        """Nobody needs to start the others."""
        return True

    @property
    def main_address(self) -> str:
        """Nobody connects to it."""
        return "localhost"

    @property
    def main_port(self) -> int:
        """Nobody connects to it."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Only when it is asked for."""
        return False

    def world_size(self) -> int:
        """Processes in all."""
        return self._devices

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        """The first."""
        return 0

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        """The first of its node."""
        return 0

    def node_rank(self) -> int:
        """The first."""
        return 0


@contextmanager
def fake_processes(devices: int) -> Iterator[None]:
    """Within it torch.distributed is set up as the first of so many processes. Leaves the environment as it was."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    before = dict(os.environ)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=devices)
    try:
        yield
    finally:
        deepspeed = sys.modules.get("deepspeed.comm.comm")
        if deepspeed is not None and deepspeed.cdb is not None:  # keeps groups of its own
            deepspeed.destroy_process_group()
            deepspeed.cdb = None
        else:
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)


def use_fake(strategy: Any) -> None:
    """Tells a strategy to use the process group that is there."""
    if hasattr(strategy, "_process_group_backend"):
        strategy._process_group_backend = "fake"
    if hasattr(strategy, "_ddp_kwargs"):
        strategy._ddp_kwargs["init_sync"] = False  # the others' parameters, which it would compare, are not there

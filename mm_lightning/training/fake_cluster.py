"""Fake process group: this process acts as rank 0 of N, and collectives return at once.

What other ranks would have sent is missing: reductions and gathered parameters hold this process's part alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment

from mm_lightning.training.sharding import destroy_process_groups, fake_store


class FakeCluster(ClusterEnvironment):
    """The environment of rank 0 of a cluster of which nothing else exists.

    Args:
        devices: processes in all.
    """

    def __init__(self, devices: int) -> None:
        super().__init__()
        self._devices = devices

    @property
    def creates_processes_externally(self) -> bool:
        """Return True: Lightning starts no processes."""
        return True

    @property
    def main_address(self) -> str:
        return "localhost"

    @property
    def main_port(self) -> int:
        return 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._devices

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return 0

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


@contextmanager
def fake_processes(devices: int) -> Iterator[None]:
    """Context manager in which torch.distributed is set up as rank 0 of a number of processes.

    It leaves the environment as it was.
    """
    before = dict(os.environ)
    torch.distributed.init_process_group("fake", store=fake_store(), rank=0, world_size=devices)
    try:
        yield
    finally:
        destroy_process_groups()
        os.environ.clear()
        os.environ.update(before)

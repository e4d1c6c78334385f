"""Fake process group: this process acts as rank 0 of N, and collectives return at once.

What other ranks would have sent is missing: reductions and gathered parameters hold this process's part alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mm_lightning.training.sharding import destroy_process_groups, fake_store


@contextmanager
def fake_processes(devices: int) -> Iterator[None]:
    """Context manager in which torch.distributed and the environment are those of rank 0 of a number of processes.

    Lightning's TorchElasticEnvironment reads them. The environment is restored afterwards.
    """
    before = dict(os.environ)
    os.environ |= {"WORLD_SIZE": str(devices), "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "plan"}
    torch.distributed.init_process_group("fake", store=fake_store(), rank=0, world_size=devices)
    try:
        yield
    finally:
        destroy_process_groups()
        os.environ.clear()
        os.environ.update(before)

"""The log lines of a run's start."""

import pytest
import torch

from mm_lightning.networks import GatedDeltaNetConfig, MemoryMosaicConfig, TransformerConfig
from mm_lightning.training.record_run import kernel_lines


@pytest.mark.parametrize(
    ("kind", "settings", "logged"),
    [
        (MemoryMosaicConfig, {}, ["attention backend", "key kernels"]),
        (MemoryMosaicConfig, {"retrieval": "biweight"}, ["attention backend  plain torch", "key kernels"]),
        (TransformerConfig, {}, ["attention backend"]),
        (GatedDeltaNetConfig, {}, []),
    ],
)
def test_only_kernels_that_run_are_logged(kind, settings, logged):
    network = kind(vocab_size=8, layers=1, dim=8, heads=2, persistent_dim=8, **settings).build()
    lines = kernel_lines(network, "torch", torch.device("cpu"), torch.float32)
    assert len(lines) == len(logged)
    assert all(line.startswith(start) for line, start in zip(lines, logged, strict=True))

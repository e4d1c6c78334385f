"""Evaluation of the network of a running training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from mm_lightning.networks import Network
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.sharding import is_partitioned, whole_copy


@contextlib.contextmanager
def evaluation_mode(trainer: Trainer, module: LanguageModule) -> Iterator[Network]:
    """Context manager that exposes the training network for evaluation and restores its state afterwards.

    All processes enter together; within it, each may use the network alone and as often as it likes. Random states and
    the training mode are restored. Where ZeRO-3 has partitioned the network, every process gets a whole copy in the
    type of the parameters, gathered one parameter at a time: as many bytes as a checkpoint's weights while it lasts.
    """
    network, training, device = module.network, module.network.training, module.device
    try:
        with (
            isolate_rng(include_cuda=False),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            trainer.precision_plugin.forward_context(),
            torch.inference_mode(),
        ):
            whole = whole_copy(network) if any(map(is_partitioned, network.parameters())) else network
            yield whole.eval()
    finally:
        network.train(training)

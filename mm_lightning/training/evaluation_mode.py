"""The network of a running training, lent to something that evaluates it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from mm_lightning.networks import Network
    from mm_lightning.training.module import LanguageModule


@contextlib.contextmanager
def evaluation_mode(trainer: Trainer, module: LanguageModule) -> Iterator[Network]:
    """Within it, the whole network in evaluation mode, which each process may use alone and as often as it likes.

    All processes enter together. Afterwards training goes on as if nothing had been: random states and modes are put
    back. Where ZeRO-3 has partitioned the network, every process gets a copy of its own in the type of the parameters,
    made of one parameter at a time: as many bytes as a checkpoint's weights, for as long as it lasts.
    """
    network = module.network
    training = network.training
    device = module.device
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            trainer.precision_plugin.forward_context(),
            torch.inference_mode(),
        ):
            lent = whole_copy(network) if any(hasattr(p, "ds_id") for p in network.parameters()) else network
            yield lent.eval()
    finally:
        network.train(training)
        random.setstate(python)
        np.random.set_state(numpy)


def whole_copy(network: Network) -> Network:
    """A copy of a network that DeepSpeed has partitioned; all processes call it together."""
    import deepspeed

    with torch.device("meta"):
        copy = network.config.build()
    weights = {}
    for name, parameter in network.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().clone()
    copy.load_state_dict(weights, assign=True)
    return copy

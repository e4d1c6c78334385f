"""Checkpoints of networks that know nothing."""

import dataclasses

import torch
from byte_networks import build

from mm_lightning.checkpoint import METADATA_KEY, network_metadata, tokenizer_metadata
from mm_lightning.checkpoint.trainer_io import AtomicCheckpointIO
from mm_lightning.data.tokenizer import load_tokenizer

TRAINED = 64
"""Tokens of a training sequence, so the checkpoints say."""


def save(name, folder, **fields):
    """A checkpoint of a network that knows nothing, in float32; returns its path and the network."""
    network = build(name).float()
    config = dataclasses.replace(network.config, **fields)
    if fields:
        torch.manual_seed(0)
        network = config.build().eval()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "step=1.ckpt"
    about = network_metadata(config, tokenizer_metadata(load_tokenizer("bytes")), TRAINED)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, METADATA_KEY: about}, path)
    return path, network


def save_run(folder, name, tokenizer="bytes"):
    """A run folder that holds a network, in float32."""
    network = build(name).float()
    described = tokenizer_metadata(load_tokenizer(tokenizer)) if tokenizer else None
    about = network_metadata(network.config, described, TRAINED)
    weights = {f"network.{name}": x for name, x in network.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": weights, METADATA_KEY: about}, folder / "checkpoints" / "step=20.ckpt"
    )
    return folder

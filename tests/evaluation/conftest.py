import dataclasses

import pytest
import torch

from mm_lightning.checkpoint import KEY, describe_network, describe_tokenizer
from mm_lightning.data.tokenizer import load_tokenizer
from tests.inference.conftest import CONFIGS, build

TRAINED = 64
"""Tokens of a training sequence, so the checkpoints say."""


@pytest.fixture(scope="session")
def tokenizer():
    """258 tokens: bytes, begin and end."""
    return load_tokenizer("bytes")


def save(name, folder, **fields):
    """A checkpoint of a network that knows nothing, in float32; returns its path and the network."""
    network = build(name).float()
    config = dataclasses.replace(network.config, **fields)
    if fields:
        torch.manual_seed(0)
        network = config.build().eval()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "step=1.ckpt"
    about = describe_network(config, describe_tokenizer(load_tokenizer("bytes")), TRAINED)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, KEY: about}, path)
    return path, network


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Run folders v2/0, v1/0 and transformer/0."""
    root = tmp_path_factory.mktemp("runs")
    for name in CONFIGS:
        save(name, root / name / "0" / "checkpoints")
    return root

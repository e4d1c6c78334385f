"""Networks over bytes that know nothing."""

import pytest
import torch
from overlay_networks import overlay_configs

from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.networks import V1, MemoryMosaicConfig, TransformerConfig

SMALL = {"vocab_size": 258, "layers": 2, "dim": 24, "heads": 3, "persistent_dim": 40}
CONFIGS = {
    "v2": MemoryMosaicConfig(**SMALL, short_term_window=8, long_term_delay=(3, 9), inference_delay=5),
    "v1": MemoryMosaicConfig(**SMALL, **{**V1, "persistent_slots": 30}),
    "transformer": TransformerConfig(**SMALL),
}
BASELINES = overlay_configs(**SMALL, short_term_window=8, long_term_delay=(3, 9), inference_delay=5)
STATES = "gated_deltanet_hybrid", "transformer_canon", "transformer_forget"
"""Baselines with a state beside their keys and values."""


def build(name, seed=0):
    """A network in float64, so that no two forms of it disagree about a token."""
    torch.manual_seed(seed)
    network = (BASELINES | CONFIGS)[name].build().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1 and parameter.numel() == 3:
                parameter.add_(0.3 * torch.randn(3))
    return network


@pytest.fixture(scope="session")
def tokenizer():
    """258 tokens: bytes, begin and end."""
    return load_tokenizer("bytes")


@pytest.fixture(scope="session")
def network():
    """A v2 network that knows nothing."""
    return build("v2")

"""Small networks of every kind, those of all overlays among them, and tokens for them."""

import pytest
import torch
from overlay_networks import overlay_configs

from mm_lightning.memory.documents import Documents
from mm_lightning.networks import V1, MemoryMosaicConfig, TransformerConfig

SMALL = {"vocab_size": 40, "layers": 2, "dim": 24, "heads": 3, "persistent_dim": 40}
SPANS = {"short_term_window": 20, "long_term_delay": (5, 30), "inference_delay": 9}
SMALL_V1 = {**V1, "persistent_slots": 30, "dropout": 0.0}
CONFIGS = {
    **overlay_configs(**SMALL, **SPANS),
    "v2": MemoryMosaicConfig(**SMALL, **SPANS),
    "v2-paper-spans": MemoryMosaicConfig(**SMALL),
    "v1-banks": MemoryMosaicConfig(**SMALL, **{**SMALL_V1, "persistent_banks": 2, "tied": False}),
    "v1-bias": MemoryMosaicConfig(**SMALL, **SMALL_V1, bias=True),
    "v1-biweight": MemoryMosaicConfig(**SMALL, **SMALL_V1, retrieval="biweight"),
    "transformer": TransformerConfig(**SMALL),
    "transformer-sharp": TransformerConfig(
        **SMALL, kv_heads=1, qk_norm=True, scalable_softmax=True, canon=4, yarn_factor=4.0, yarn_context=16
    ),
    "transformer-forgets": TransformerConfig(**SMALL, **SPANS, levels=("long", "short"), forget_gate=True),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request):
    """One configuration of each kind."""
    return request.param


@pytest.fixture
def build():
    """Builds a network whose per-head scalars have left their initial values."""

    def build(config, dtype=torch.float32):
        torch.manual_seed(0)
        network = config.build()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 1 and parameter.numel() == config.heads:
                    parameter.add_(0.3 * torch.randn(config.heads))
        return network.to(dtype)

    return build


@pytest.fixture
def packed():
    """Random tokens packed into documents."""

    def packed(config, batch, time, chance, seed=0):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(config.vocab_size, (batch, time), generator=generator)
        return tokens, Documents.from_starts(torch.rand(batch, time, generator=generator) < chance)

    return packed


def run(network, tokens, pieces, starts=None, state=None, capacity=0):
    """Logits of tokens (B, T) fed in pieces of these lengths."""
    state = state or network.new_state(tokens.shape[0], capacity)
    found, at = [], 0
    with torch.inference_mode():
        for size in pieces:
            part = None if starts is None else starts[:, at : at + size]
            found.append(network(tokens[:, at : at + size], state=state, starts=part))
            at += size
    assert at == tokens.shape[1]
    return torch.cat(found, 1)

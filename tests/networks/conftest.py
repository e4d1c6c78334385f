import pytest
import torch

from mm_lightning.memory.documents import Documents
from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig

SMALL = {"vocab_size": 40, "layers": 2, "dim": 24, "heads": 3, "persistent_dim": 40}
CONFIGS = {
    "mosaic": MemoryMosaicConfig(**SMALL, short_term_window=20, long_term_delay=(5, 30), inference_delay=9),
    "mosaic-paper-spans": MemoryMosaicConfig(**SMALL),
    "mosaic-short-only": MemoryMosaicConfig(**SMALL, levels=("short",), short_term_window=20),
    "mosaic-long-only": MemoryMosaicConfig(**SMALL, levels=("long",)),
    "transformer": TransformerConfig(**SMALL),
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

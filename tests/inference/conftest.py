import pytest
import torch

from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.networks import V1, MemoryMosaicConfig, TransformerConfig

SMALL = {"vocab_size": 258, "layers": 2, "dim": 24, "heads": 3, "persistent_dim": 40}
CONFIGS = {
    "v2": MemoryMosaicConfig(**SMALL, short_term_window=8, long_term_delay=(3, 9), inference_delay=5),
    "v1": MemoryMosaicConfig(**SMALL, **{**V1, "persistent_slots": 30}),
    "transformer": TransformerConfig(**SMALL),
}


def build(name, seed=0):
    """A network in float64, so that no two forms of it disagree about a token."""
    torch.manual_seed(seed)
    network = CONFIGS[name].build().double().eval()
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


class Recites(torch.nn.Module):
    """Always continues with the next byte of a text, then ends it."""

    def __init__(self, text: str, end: int = 257):
        super().__init__()
        self.next = [*text.encode(), end]
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def new_state(self, batch=1, capacity=0, long_store=None):
        return Places(batch)

    def forward(self, tokens, state, starts=None, last=1):
        begun = (
            torch.full((len(tokens),), tokens.shape[1]) if starts is None else tokens.shape[1] - starts.int().argmax(1)
        )
        state.place += begun
        state.length += tokens.shape[1]
        logits = torch.zeros(len(tokens), 1, 258)
        for row, place in enumerate(state.place.tolist()):
            logits[row, -1, self.next[min(place - 1, len(self.next) - 1)]] = 50.0
        return logits


class Places:
    """All that reciting remembers: how far each row is."""

    bytes = 8

    def __init__(self, batch):
        self.place, self.length = torch.zeros(batch, dtype=torch.int64), 0

    def rows(self, index, empty):
        empty.place, empty.length = self.place[index], self.length
        return empty

    def mark(self):
        return self.place.clone(), self.length

    def rewind(self, mark):
        self.place, self.length = mark

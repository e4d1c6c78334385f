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
    """Always continues with the next byte of a text, or the next of some tokens, then ends it."""

    def __init__(self, text: str | list[int], end: int = 257, vocab_size: int = 258):
        super().__init__()
        self.next = [*(text.encode() if isinstance(text, str) else text), end]
        self.vocab_size = vocab_size
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def new_state(self, batch=1, capacity=0, sublinear=None):
        return Places(batch)

    def forward(self, tokens, state, starts=None, last=1):
        begun = (
            torch.full((len(tokens),), tokens.shape[1]) if starts is None else tokens.shape[1] - starts.int().argmax(1)
        )
        state.place += begun
        state.length += tokens.shape[1]
        logits = torch.zeros(len(tokens), 1, self.vocab_size)
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


WORDS = ["the", "river", "values", "Document", "old", "5", "."]


def spaced_tokenizer(kind, folder):
    """A tokenizer whose tokens stand for words with the space before them, as SentencePiece and WordPiece have them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    if kind == "wordpiece":
        names = [*special, *WORDS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
        inner = Tokenizer(models.WordPiece({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    else:
        letters = "▁abcdefghijklmnopqrstuvwxyzD5.,:!"
        names = [*special, *(f"<0x{n:02X}>" for n in range(256)), *letters]
        merges = []
        for word in WORDS:
            parts = "▁" + word
            for end in range(2, len(parts) + 1):
                if parts[:end] not in names:
                    names.append(parts[:end])
                    merges.append((parts[: end - 1], parts[end - 1]))
        ids = {name: n for n, name in enumerate(names)}
        inner = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if kind == "metaspace":
            inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
            inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
        else:
            inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens(special)
    inner.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.fixture(scope="session", params=["metaspace", "llama2", "wordpiece"])
def spaced(request, tmp_path_factory):
    """Each of them."""
    return spaced_tokenizer(request.param, tmp_path_factory.mktemp(request.param))

"""Sampling, against a network whose next token is known."""

import pytest
import torch

from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.inference.generate import generate, generate_tokens, next_token_probabilities, stream
from mm_lightning.networks import MemoryMosaicConfig

TOKENIZER = load_tokenizer("bytes")


class Recites(torch.nn.Module):
    """Always continues with the next byte of a text, then ends it."""

    def __init__(self, text: str):
        super().__init__()
        self.next = [*text.encode(), TOKENIZER.eos]
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        place = tokens.shape[1] - 1
        logits = torch.zeros(1, tokens.shape[1], TOKENIZER.vocab_size)
        logits[0, -1, self.next[min(place, len(self.next) - 1)]] = 50.0
        return logits


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MemoryMosaicConfig(vocab_size=258, layers=1, dim=16, heads=2, persistent_dim=16).build().eval()


def test_temperature_by_hand():
    logits = torch.tensor([0.0, 1.0, 2.0])
    assert next_token_probabilities(logits).tolist() == pytest.approx([0.0900306, 0.2447285, 0.6652410], abs=1e-6)
    assert next_token_probabilities(logits, 0.5).tolist() == pytest.approx([0.0158762, 0.1173104, 0.8668133], abs=1e-6)
    assert next_token_probabilities(logits, 0).tolist() == [0, 0, 1]


def test_top_k_and_top_p_by_hand():
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()
    assert next_token_probabilities(logits, top_k=2).tolist() == pytest.approx([4 / 7, 0, 3 / 7, 0])
    assert next_token_probabilities(logits, top_p=0.7).tolist() == pytest.approx([4 / 7, 0, 3 / 7, 0])
    assert next_token_probabilities(logits, top_p=0.71).tolist() == pytest.approx([4 / 9, 0, 3 / 9, 2 / 9])
    assert next_token_probabilities(logits, top_p=0.1).tolist() == [1, 0, 0, 0]
    assert next_token_probabilities(logits, top_k=3, top_p=0.99).tolist() == pytest.approx([4 / 9, 0, 3 / 9, 2 / 9])
    assert next_token_probabilities(logits, top_k=99).tolist() == pytest.approx([0.4, 0.1, 0.3, 0.2])


def test_the_end_of_text_ends_it():
    assert generate(Recites("hello"), TOKENIZER, max_new_tokens=50) == "hello"
    assert generate(Recites("hello"), TOKENIZER, prompt="he", max_new_tokens=50) == "llo"
    assert generate(Recites("hello"), TOKENIZER, max_new_tokens=3) == "hel"


def test_stop_strings_end_it_before_them():
    assert generate(Recites("one two three"), TOKENIZER, stop=["three", "two"]) == "one "
    # Nothing that may still become a stop string is shown.
    assert "".join(stream(Recites("one two three"), TOKENIZER, stop=["wo th"])) == "one t"
    assert generate(Recites("one two"), TOKENIZER, stop=["two!"]) == "one two"


def test_characters_of_several_bytes_are_shown_whole():
    pieces = list(stream(Recites("né → ☃"), TOKENIZER))
    assert "".join(pieces) == "né → ☃"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_same_seed_same_text(network):
    texts = [generate(network, TOKENIZER, "a", 20, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_temperature_0_takes_the_most_probable(network):
    tokens = [TOKENIZER.bos, 97]
    for token in list(generate_tokens(network, tokens, 5, temperature=0)):
        with torch.no_grad():
            assert token == int(network(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"stop": [""]}, "must not be empty"),
    ],
)
def test_settings_out_of_range(network, settings, message):
    with pytest.raises(UserError, match=message):
        generate(network, TOKENIZER, **settings)

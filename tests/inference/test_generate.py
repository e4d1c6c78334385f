"""Writing from a state, against recomputing the whole document for each token."""

import pytest
import torch
from byte_networks import CONFIGS, STATES, build
from reciting_network import Recites

from mm_lightning.errors import UserError
from mm_lightning.inference.generate import collect, generate, generate_batch, read_prompts, stream, write
from mm_lightning.inference.reader import Reader
from mm_lightning.inference.sampling import Sampling

GREEDY = Sampling(temperature=0)
PROMPTS = ["a", "the cat sat on the mat", "\n\nfoo → bar"]


def recomputed(network, tokenizer, prompt, count):
    """The most probable tokens, the whole document read anew for each."""
    tokens = [tokenizer.bos, *tokenizer.encode(prompt)]
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(network(torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] == tokenizer.eos:
            return tokenizer.decode(tokens[len(tokenizer.encode(prompt)) + 1 : -1])
    return tokenizer.decode(tokens[len(tokenizer.encode(prompt)) + 1 :])


@pytest.mark.parametrize("name", [*CONFIGS, *STATES])
def test_the_state_writes_what_recomputation_writes(name, tokenizer):
    network = build(name)
    expected = [recomputed(network, tokenizer, prompt, 14) for prompt in PROMPTS]
    assert len(set(expected)) == 3
    assert [generate(network, tokenizer, prompt, GREEDY, 14) for prompt in PROMPTS] == expected
    assert generate_batch(network, tokenizer, PROMPTS, 2, GREEDY, 14) == [[text] * 2 for text in expected]


@pytest.mark.parametrize("together", [1, 7, 30])
def test_reading_in_small_chunks(network, tokenizer, together):
    documents = [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(PROMPTS)]
    whole, parts = Reader(network, 3), Reader(network, 3, together=together)
    whole.read(documents)
    done = []
    parts.read(documents, done.append)
    assert sum(done) == 23
    assert max(done) == max(1, together // 3)
    assert torch.allclose(parts.logits, whole.logits, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="unequal numbers"):
        parts.read([[1], [1, 2], [1]])


def test_bf16(tokenizer):
    """Under autocast, from a prompt of two chunks; the same as recomputing it in bf16, to its rounding."""
    torch.manual_seed(0)
    network = CONFIGS["v2"].build().eval()
    tokens = [tokenizer.bos, *b"hello you"]
    with torch.autocast("cpu", torch.bfloat16):
        reader = Reader(network, together=6)
        reader.read([tokens])
        with torch.no_grad():
            whole = network(torch.tensor([tokens]))[:, -1]
        assert (reader.logits - whole).abs().max() < 0.05 * whole.abs().max()
        assert len(collect(write(reader, tokenizer, Sampling(top_k=5), 3), 1)) == 1


def test_a_text_does_not_depend_on_its_neighbors(network, tokenizer):
    sampling = Sampling(temperature=1.0, seed=5, repetition_penalty=1.2)
    together = generate_batch(network, tokenizer, PROMPTS, 2, sampling, 12)
    assert len({text for texts in together for text in texts}) == 6
    reader = read_prompts(network, tokenizer, PROMPTS[2:], 2)
    assert collect(write(reader, tokenizer, sampling, 12, first=4), 2) == together[2]
    assert generate(network, tokenizer, PROMPTS[0], sampling, 12) == together[0][0]
    # documents that end early leave the others their random numbers
    stop = [texts[0][1] for texts in together[:2]]
    short = generate_batch(network, tokenizer, PROMPTS, 2, sampling, 12, stop)
    ended = [[min((text.split(end)[0] for end in stop), key=len) for text in texts] for texts in together]
    assert short == ended
    other = Sampling(temperature=1.0, seed=6, repetition_penalty=1.2)
    assert generate(network, tokenizer, PROMPTS[0], other, 12) != together[0][0]


def test_the_end_of_text_ends_it(tokenizer):
    assert generate(Recites("hello"), tokenizer, max_new_tokens=50) == "hello"
    assert generate(Recites("hello"), tokenizer, "he", max_new_tokens=50) == "llo"
    assert generate(Recites("hello"), tokenizer, max_new_tokens=3) == "hel"
    assert generate(Recites("hello"), tokenizer, "hello") == ""


def test_stop_strings_end_it_before_them(tokenizer):
    assert generate(Recites("one two three"), tokenizer, stop=["three", "two"]) == "one "
    assert list(stream(Recites("one two"), tokenizer, stop=["two!"])) == ["o", "n", "e", " ", "two"]


def test_each_document_of_a_batch_ends_by_itself(tokenizer):
    """At the end of the text, at a stop string or when there is no more room; the rows of the others go on."""
    text = "abc defghi"
    prompts = ["abc ", "", "abc d", "abc defgh", "a"]
    found = generate_batch(Recites(text), tokenizer, prompts, 1, GREEDY, 5, ["c"])
    assert found == [["defgh"], ["ab"], ["efghi"], ["i"], ["b"]]
    assert generate_batch(Recites(text), tokenizer, []) == []
    reader = read_prompts(Recites(text), tokenizer, prompts)
    drawn = list(write(reader, tokenizer, GREEDY, 20))
    assert len(drawn) == sum(len(text) - len(prompt) + 1 for prompt in prompts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"stop": [""]}, "not empty"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_settings_out_of_range(network, tokenizer, settings, message):
    with pytest.raises(UserError, match=message):
        generate_batch(network, tokenizer, ["a"], **settings)


def test_prompt_and_text_are_what_all_tokens_decode_to(spaced):
    ids = spaced.encode("Document 5. the river values the old")
    network, prompt = Recites(ids, spaced.eos, spaced.vocab_size), "Document 5. the river"
    assert generate(network, spaced, prompt, GREEDY) == " values the old"
    texts = generate_batch(network, spaced, [prompt, "Document", ""], 2, GREEDY)
    assert texts == [[" values the old"] * 2, [" 5. the river values the old"] * 2, [spaced.decode(ids)] * 2]
    assert generate(network, spaced, prompt, GREEDY, stop=[" the"]) == " values"

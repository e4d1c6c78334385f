"""What a model answers, against one plain forward pass over each whole document."""

import dataclasses
import math

import pytest
import torch
from byte_networks import CONFIGS, build
from saved_networks import TRAINED, save
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.evaluation.likelihoods import Choices, likelihoods
from mm_lightning.evaluation.model import Model
from mm_lightning.inference.generate import generate
from mm_lightning.inference.sampling import Sampling

PREFIX = [256, *b"Once upon a time there was a memory that"]
CONTINUATIONS = [b" kept", b" lost every pair", b".", b" was read\n"]


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name, tokenizer):
    return Model(build(name), tokenizer, together=10, batch_size=3)


def plain(network, context, continuation):
    """Log probability and greediness of a continuation from one forward pass."""
    tokens = [*context, *continuation]
    with torch.no_grad():
        logits = network(torch.tensor([tokens]))[0, len(context) - 1 : -1].double()
    wanted = torch.tensor(list(continuation))
    return -float(F.cross_entropy(logits, wanted, reduction="sum")), bool((logits.argmax(-1) == wanted).all())


def log_prob(model, context, continuation):
    """The same of the model."""
    return likelihoods(model, [Choices(context, [continuation])])[0][0].log_prob


@pytest.mark.parametrize("context", [b"", b" is short", b" is a longer context than many"])
def test_likelihoods_behind_a_common_beginning(model, context):
    beginning = model.prefill(PREFIX)
    questions = [Choices([*PREFIX, *context[: len(context) - n]], CONTINUATIONS[n:]) for n in range(3)]
    for _ in range(2):  # what was read first stays as it is
        for question, found in zip(questions, likelihoods(model, questions, beginning), strict=True):
            expected = [plain(model.network, question.context, wanted)[0] for wanted in question.continuations]
            assert [x.log_prob for x in found] == pytest.approx(expected, abs=1e-5)
        assert beginning.documents == [PREFIX]


def test_likelihoods_of_whole_documents(model):
    questions = [Choices([256, *b"abc" * n], [c]) for n, c in enumerate(CONTINUATIONS)]
    found = likelihoods(model, questions)
    expected = [plain(model.network, question.context, *question.continuations)[0] for question in questions]
    assert [x.log_prob for [x] in found] == pytest.approx(expected, abs=1e-5)


def test_greedy_is_what_greedy_decoding_writes(model, tokenizer):
    prompts = ["a", "the cat sat on the mat", "", "b"]
    wanted = [generate(model.network, tokenizer, prompt, Sampling(temperature=0), 9) for prompt in prompts]
    whole = [[tokenizer.bos, *prompt.encode()] for prompt in prompts]
    assert model.greedy(whole, 9) == wanted


def test_what_greedy_decoding_writes_is_greedy(model):
    tokens = []
    for _ in range(3):
        with torch.no_grad():
            tokens.append(int(model.network(torch.tensor([PREFIX + tokens]))[0, -1].argmax()))
    other = [*tokens[:2], (tokens[2] + 1) % 256]
    [found] = likelihoods(model, [Choices(PREFIX, [tokens, other, tokens[:1]])])
    assert [x.greedy for x in found] == [True, False, True]


def test_losses_equal_one_forward_pass(model):
    rows = torch.randint(0, 256, (2, 45), generator=torch.Generator().manual_seed(0))
    pieces = list(model.losses(rows))
    assert len(pieces) > 2
    with torch.no_grad():
        logits = model.network(rows)[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(2, 44)
    assert torch.allclose(torch.cat(pieces, 1), expected.float(), atol=1e-5)


def test_the_long_term_memory_is_removed(tmp_path):
    path, network = save("v2", tmp_path)
    whole, short = Model.load(path, "cpu"), Model.load(path, "cpu", long_term=False)
    same = Model.load(path, "cpu", settings={"levels": ["short"]})
    assert whole.context_length == TRAINED
    question = PREFIX, b" ends"
    assert math.isclose(log_prob(whole, *question), plain(network, *question)[0], abs_tol=1e-4)
    with torch.no_grad():  # nothing comes through the long-term memory's columns of W_o, which are the first d
        for block in network.blocks:
            block.W_o.weight[:, :24] = 0
    assert math.isclose(log_prob(short, *question), plain(network, *question)[0], abs_tol=1e-4)
    assert log_prob(same, *question) == log_prob(short, *question)
    with pytest.raises(UserError, match=r"left out, not added, got \['full'\]"):
        Model.load(path, "cpu", settings={"levels": ["short", "full"]})


def test_another_delay(tmp_path):
    path, network = save("v2", tmp_path)
    found = log_prob(Model.load(path, "cpu", inference_delay=11), PREFIX, b" ends")
    network.config = dataclasses.replace(network.config, inference_delay=11)
    assert math.isclose(found, plain(network, PREFIX, b" ends")[0], abs_tol=1e-4)


@pytest.mark.parametrize("options", [{"long_term": False}, {"inference_delay": 3}])
def test_what_cannot_be_changed(tmp_path, options):
    path, _ = save("v1", tmp_path)
    with pytest.raises(UserError, match="no long-term memory"):
        Model.load(path, "cpu", **options)
    path, _ = save("v2", tmp_path, levels=("long",))
    if "long_term" in options:
        with pytest.raises(UserError, match="nothing is left"):
            Model.load(path, "cpu", **options)


def test_long_documents_are_taken_fewer_at_a_time(model):
    assert [model.rows_of(tokens) for tokens in (1, 1 << 14, 1 << 15, 1 << 16, 1 << 20)] == [3, 3, 2, 1, 1]


@pytest.mark.parametrize("bf16", [False, True])
def test_precision(tokenizer, bf16):
    with Model(build("v2"), tokenizer, bf16=bf16).computing():
        assert torch.is_autocast_enabled("cpu") == bf16
        assert torch.is_inference_mode_enabled()

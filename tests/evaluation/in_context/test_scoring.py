"""Sharing changes no score, and costs the tokens that it should."""

import random

import pytest
import torch

from mm_lightning.evaluation.in_context import scoring
from mm_lightning.evaluation.in_context.scoring import Shared, Tree, greedy, log_likelihoods
from mm_lightning.evaluation.model import Model
from mm_lightning.inference.reader import Reader
from tests.evaluation.in_context.conftest import Scripted
from tests.inference.conftest import CONFIGS, build

ANSWERS = [b" red\n", b" redish\n", b" re", b" blue\n", b" blown\n", b"x", b"red\n", b" redish\nand"]


def plain(network, document, answer):
    """log p of an answer, from one forward pass over everything."""
    tokens = torch.tensor([[*document, *answer]])
    with torch.no_grad():
        logs = network(tokens)[0].log_softmax(-1)
    return sum(float(logs[len(document) - 1 + n, token]) for n, token in enumerate(answer))


@pytest.mark.parametrize("name", CONFIGS)
def test_likelihoods_equal_the_plain_ones(name, tokenizer):
    network = build(name)
    draw = random.Random(0)
    begin = [256, *(draw.randrange(256) for _ in range(40))]
    questions = [[draw.randrange(256) for _ in range(n)] for n in (9, 5, 9, 9, 12, 5, 9)]
    tree = Tree.of(ANSWERS)
    for batch_size in (1, 4):
        shared = Shared(Model(network, tokenizer, batch_size=batch_size), room=30)
        assert shared.read(begin[:25]) == 25
        assert shared.read(begin) == 16
        found, sizes = {}, []
        for batch, reader in shared.batches(questions):
            sizes.append(len(batch))
            for n, scores in zip(batch, log_likelihoods(reader, tree, len(ANSWERS)), strict=True):
                found[n] = scores
            again = log_likelihoods(reader, tree, len(ANSWERS))  # nothing is left of the first time
            assert torch.allclose(again, torch.stack([found[n] for n in batch]), atol=1e-12)
        assert sorted(sizes) == {1: [1] * 7, 4: [1, 2, 4]}[batch_size]
        for n, question in enumerate(questions):
            expected = torch.tensor([plain(network, begin + question, a) for a in ANSWERS], dtype=torch.float64)
            assert torch.allclose(found[n], expected, atol=1e-9)


def test_another_beginning_is_read_from_its_start(tokenizer):
    network = build("v2")
    shared = Shared(Model(network, tokenizer), room=10)
    shared.read([256, 1, 2, 3])
    assert shared.read([256, 1, 9]) == 3
    ((_, reader),) = [(batch, reader.fork([0])) for batch, reader in shared.batches([[5]])]
    fresh = Reader(network)
    fresh.read([[256, 1, 9, 5]])
    assert torch.allclose(reader.logits, fresh.logits, atol=1e-12)


def test_greedy_stops_at_the_terminator_and_forgets(tokenizer):
    text = " red\nthing: "
    network = Scripted(lambda said: text[len(said.partition(":")[2])])
    reader = Reader(network, 2)
    reader.read([list(b"a:"), list(b"b:")])
    for _ in range(2):
        assert greedy(reader, tokenizer, "\n", 24) == [" red", " red"]
    assert greedy(reader, tokenizer, "zz", 3) == [" re", " re"]
    assert reader.documents == [list(b"a:"), list(b"b:")]


def test_a_tree_reads_each_beginning_once(tokenizer):
    network = Scripted(lambda said: "a")
    reader = Reader(network, 3)
    reader.read([list(b"a:")] * 3)
    before = network.tokens
    log_likelihoods(reader, Tree.of(ANSWERS), len(ANSWERS))
    distinct = {answer[:n] for answer in ANSWERS for n in range(1, len(answer))}
    assert network.tokens - before == 3 * len(distinct)


def test_copies_are_bounded_by_memory(tokenizer, monkeypatch):
    network = build("v2")
    shared = Shared(Model(network, tokenizer, batch_size=16), room=20)
    shared.read([256, *range(40)])
    each = shared._first.state.bytes * 61 // 41
    for copies, expected in ((0, 1), (3, 1), (4, 2), (9, 4), (1000, 16)):
        monkeypatch.setattr(scoring, "CPU_ROOM", copies * each + 1)
        sizes = [len(batch) for batch, _ in shared.batches([[1, 2]] * 16)]
        assert sizes == [expected] * (16 // expected)

"""Sharing changes no score, and costs the tokens that it should."""

import random

import pytest
import torch
from byte_networks import CONFIGS, build
from color_task import Scripted

from mm_lightning.evaluation.in_context.scoring import Shared, Tree, log_likelihoods
from mm_lightning.evaluation.model import Model
from mm_lightning.inference.reader import Reader

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
    for batch_size in (1, 3):
        shared = Shared(Model(network, tokenizer, batch_size=batch_size), room=30)
        assert shared.read(begin[:25]) == 25
        assert shared.read(begin) == 16
        found, sizes = {}, []
        for batch, reader in shared.batches(questions):
            sizes.append(len(batch))
            for n, scores in zip(batch, log_likelihoods(reader, tree, len(ANSWERS), batch_size), strict=True):
                found[n] = scores
            again = log_likelihoods(reader, tree, len(ANSWERS), batch_size)  # nothing is left of the first time
            assert torch.allclose(again, torch.stack([found[n] for n in batch]), atol=1e-12)
        assert sorted(sizes) == {1: [1] * 7, 3: [1, 1, 2, 3]}[batch_size]
        for n, question in enumerate(questions):
            expected = torch.tensor([plain(network, begin + question, a) for a in ANSWERS], dtype=torch.float64)
            assert torch.allclose(found[n], expected, atol=1e-9)


def test_another_beginning_is_read_from_its_start(tokenizer):
    network = build("v2")
    shared = Shared(Model(network, tokenizer), room=10)
    shared.read([256, 1, 2, 3])
    assert shared.read([256, 1, 9]) == 3
    ((_, reader),) = shared.batches([[5]])
    fresh = Reader(network)
    fresh.read([[256, 1, 9, 5]])
    assert torch.allclose(reader.logits, fresh.logits, atol=1e-12)


def test_a_tree_reads_each_beginning_once(tokenizer):
    network = Scripted(lambda said: "a")
    reader = Reader(network, 3)
    reader.read([list(b"a:")] * 3)
    before = network.tokens
    log_likelihoods(reader, Tree.of(ANSWERS), len(ANSWERS), 5)
    distinct = {answer[:n] for answer in ANSWERS for n in range(1, len(answer))}
    assert network.tokens - before == 3 * len(distinct)


def test_side_by_side(tokenizer):
    """As few passes as there are waves of branches of equal lengths: no padding, at most so many rows."""
    network = Scripted(lambda said: "a")
    reader = Reader(network, 2)
    reader.read([list(b"a:")] * 2)
    for rows, calls in ((100, 4), (2, 5), (1, 10)):
        before = network.calls
        log_likelihoods(reader, Tree.of([b" aa\n", b" ab\n", b" b\n"]), 3, rows)
        assert network.calls - before == calls

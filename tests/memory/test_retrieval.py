"""Equation (4): the reference and its weights against a plain loop."""

import math

import pytest
import torch

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.retrieval import read_reference, read_weights


@pytest.mark.parametrize("span", [Span(0), Span(1), Span(64), Span(1, 255), Span(1, 3), Span(2, 1), Span(5, 300)])
def test_the_reference_against_a_loop(span):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 70, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    documents = Documents.from_starts(torch.rand(1, 70, generator=generator) < 0.03)
    out = read_reference(q, k, v, span, documents, 0.7)
    for t in range(70):
        first = t - int(documents.position[0, t])
        last = t - span.delay
        if span.size is not None:
            first = max(first, last - span.size + 1)
        for head in range(2):
            total, weight = torch.zeros(8, dtype=torch.float64), 0.0
            for i in range(first, last + 1):
                w = math.exp(0.7 * float(q[0, t, head] @ k[0, i, head]))
                total, weight = total + w * v[0, i, head], weight + w
            expected = total / weight if weight else total
            assert (out[0, t, head] - expected).abs().max() < 1e-12
    counts = [
        max(0, t - span.delay - max(t - p, t - span.delay - (span.size or 99) + 1) + 1)
        for t, p in enumerate(documents.position[0].tolist())
    ]
    assert span.count(documents.position)[0].tolist() == counts


def test_a_memory_made_by_hand():
    """Scores of 0, ln 2 and ln 3 for the pairs 0, 1 and 2, whatever the query."""
    q = torch.ones(1, 5, 1, 1, dtype=torch.float64)
    k = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64).log().view(1, 5, 1, 1)
    found = read_weights(q, k, Span(2, 3), Documents.whole(1, 5))[0, 0]
    expected = [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1 / 3, 2 / 3, 0], [1 / 6, 2 / 6, 3 / 6]]
    assert torch.allclose(found[:, :3], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert (found[:, 3:] == 0).all()
    halved = read_weights(q, k, Span(2, 3), Documents.whole(1, 5), scale=0.5, queries=slice(3, 4))
    assert halved.shape == (1, 1, 1, 5)
    assert math.isclose(float(halved[0, 0, 0, 1] / halved[0, 0, 0, 0]), math.sqrt(2))


def test_rows_sum_to_one_or_nothing():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 30, n, 4, generator=generator, dtype=torch.float64) for n in (4, 2))
    documents = Documents.from_starts(torch.rand(2, 30, generator=generator) < 0.1)
    for span in (Span(0), Span(1), Span(1, 7), Span(6)):
        sums = read_weights(q, k, span, documents).sum(-1)
        expected = (span.count(documents.position) > 0).double()[:, None].expand_as(sums)
        assert torch.allclose(sums, expected)

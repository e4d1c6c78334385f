"""Retrieval by kernels of bounded support: weights, gradients, tiles, dropout, and what they are the limit of."""

import pytest
import torch
from torch.nn import functional as F

from mm_lightning.memory.compact_retrieval import (
    COMPACT_KERNELS,
    CompactRetrieval,
    compact_weights,
    compact_weights_reference,
)
from mm_lightning.memory.documents import Documents, Span

POWERS = pytest.mark.parametrize("power", COMPACT_KERNELS.values(), ids=COMPACT_KERNELS)


def scores(*shape, scale=3.0, dtype=torch.float64, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_sparsemax_by_sorting():
    """The projection onto the simplex, by the algorithm of its paper (arXiv 1602.02068)."""
    z = scores(50, 20)
    ordered = z.sort(-1, descending=True).values
    count = (1 + torch.arange(1, 21) * ordered > ordered.cumsum(-1)).sum(-1, keepdim=True)
    tau = (ordered.cumsum(-1).gather(-1, count - 1) - 1) / count
    torch.testing.assert_close(compact_weights(z, 1), (z - tau).clamp(min=0))


@POWERS
def test_the_kernel_of_the_distance(power):
    """With keys of norm 1, weights are (1 - |q - k|^2 / r^2)_+^n over their sum, for one radius r a query."""
    q, k = F.normalize(scores(1, 8), dim=-1), F.normalize(scores(30, 8, seed=1), dim=-1)
    beta = 4.0
    weights = compact_weights_reference(beta * q @ k.T, power)[0]
    distance = (q - k).square().sum(-1)
    tau = (beta * (q @ k.T)[0] / power - weights.pow(1 / power))[weights > 0].mean()
    radius = 2 * (1 - power * tau / beta)
    kernel = (1 - distance / radius).clamp(min=0).pow(power)
    torch.testing.assert_close(weights, kernel / kernel.sum(), rtol=1e-6, atol=1e-9)
    assert 0 < (weights > 0).sum() < 30


@POWERS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("pairs", [1, 300, 20_000])
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_newton_finds_the_reference(power, dtype, tolerance, pairs, scale):
    z = scores(4, pairs, scale=scale)
    expected = compact_weights_reference(z, power)
    weights = compact_weights(z.to(dtype), power).double()
    torch.testing.assert_close(weights, expected, rtol=tolerance, atol=tolerance * expected.max().item())
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0)


@POWERS
def test_gradients(power):
    z = scores(6, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: compact_weights(z, power), z, eps=1e-7, atol=1e-5)


@POWERS
def test_pairs_that_are_not_read_and_rows_without_any(power):
    z = scores(3, 10)
    z[0, 4:], z[1] = -torch.inf, -torch.inf
    z.requires_grad_()
    weights = compact_weights(z, power)
    torch.testing.assert_close(weights[0, :4], compact_weights(z[0, :4], power))
    assert not weights[0, 4:].any()
    assert not weights[1].any()
    (gradient,) = torch.autograd.grad(weights.square().sum(), z)
    assert gradient.isfinite().all()


def test_the_gaussian_is_the_limit():
    z = scores(5, 9, scale=1.0)
    torch.testing.assert_close(compact_weights_reference(z, 3000), z.softmax(-1), rtol=2e-3, atol=1e-4)


@POWERS
@pytest.mark.parametrize("span", [Span(1), Span(1, 19), Span(40)], ids=["all", "window", "delay"])
def test_tiles_are_the_whole(power, span):
    """Values and gradients of tiles, with documents and shared keys, against the T x T matrix."""
    generator = torch.Generator().manual_seed(0)
    q = F.normalize(torch.randn(2, 300, 4, 5, generator=generator, dtype=torch.float64), dim=-1) * 6
    k, v = (torch.randn(2, 300, 2, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    k = F.normalize(k, dim=-1)
    documents = Documents.from_starts(torch.rand(2, 300, generator=generator) < 0.01)
    tensors = [x.requires_grad_() for x in (q, k, v)]
    retrieval = CompactRetrieval(power)
    answers = retrieval(*tensors, span, documents)
    weights = retrieval.weights(q, k, span, documents, 1.0, slice(0, 300))
    expected = torch.einsum("bhts,bshd->bthd", weights, v.repeat_interleave(2, 2))
    torch.testing.assert_close(answers, expected)
    age = torch.arange(300)[:, None] - torch.arange(300)
    unread = (age < span.delay) | (age >= span.delay + (span.size or 1000)) | (age > documents.position[..., None])
    assert not weights[unread[:, None].expand_as(weights)].any()
    outer = torch.randn(answers.shape, generator=generator, dtype=torch.float64)
    for x, y in zip(
        torch.autograd.grad((answers * outer).sum(), tensors),
        torch.autograd.grad((expected * outer).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    q, v = torch.ones(1, 500, 1, 4), torch.ones(1, 500, 1, 4)
    answers = CompactRetrieval(1)(q, q, v, Span(1), Documents.whole(1, 500), dropout=0.3)
    assert answers[0, 100:].mean().item() == pytest.approx(1, abs=0.01)
    assert answers[0, 100:].std() > 0.01

"""The loss without all logits at once agrees with the plain one, in values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from mm_lightning.networks import classifier as classifier_module
from mm_lightning.networks import loss
from mm_lightning.networks.classifier import Classifier
from mm_lightning.networks.loss import _in_chunks, linear_cross_entropy

TOKENS, DIM, VOCABULARY = 37, 8, 51


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """10 tokens at a time, so that the last ones are fewer."""
    monkeypatch.setattr(loss, "LOGITS", 10 * VOCABULARY + 3)


def arguments(ignored=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, DIM, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, DIM, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return x, weight, targets.masked_fill(torch.rand(TOKENS, generator=generator) < ignored, -100)


def plain(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight), targets, ignore_index=-100)


def with_gradients(function, x, weight, targets):
    found = function(x, weight, targets)
    return [found.detach(), *torch.autograd.grad(3 * found, [x, weight])]


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_agrees_with_the_plain_one(ignored):
    inputs = arguments(ignored)
    torch.testing.assert_close(
        with_gradients(linear_cross_entropy, *inputs), with_gradients(plain, *inputs), rtol=1e-12, atol=1e-14
    )


def test_without_targets_as_the_plain_one():
    found, expected = (with_gradients(f, *arguments(ignored=2)) for f in (linear_cross_entropy, plain))
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert found[0].isnan()
    assert not found[1].any()


def test_autocast_rounds_products_but_not_the_loss():
    x, weight, targets = arguments(dtype=torch.float32)
    with torch.no_grad():
        x.copy_(x.bfloat16())
        weight.copy_(weight.bfloat16())
    expected = with_gradients(plain, x, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(linear_cross_entropy, x, weight, targets)
    assert [y.dtype for y in found] == [torch.float32] * 3
    assert found[0] != expected[0]  # logits are products
    assert found[0] != found[0].bfloat16()
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 1e-2 * b.norm()


def test_weights_in_16_bits():
    inputs = arguments(dtype=torch.bfloat16)
    found = with_gradients(linear_cross_entropy, *inputs)
    exact = [t.detach().double().requires_grad_() for t in inputs[:2]]
    assert [y.dtype for y in found] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for a, b in zip(found, with_gradients(plain, *exact, inputs[2]), strict=True):
        assert (a.double() - b).norm() < 2e-2 * b.norm()


@pytest.mark.parametrize(("tokens", "most", "widths"), [(37, 10, [10, 10, 10, 7]), (600, 300, [256, 256, 88])])
def test_never_more_logits_than_that(monkeypatch, tokens, most, widths):
    """And where many tokens fit, as many as whole tiles of a matrix product take."""
    monkeypatch.setattr(loss, "LOGITS", most * VOCABULARY + 3)
    widest = []

    def spy(x, weight):
        widest.append(len(x))
        return torch.matmul(x, weight.T)

    monkeypatch.setattr(loss.F, "linear", spy)
    with torch.no_grad():
        linear_cross_entropy(torch.ones(tokens, DIM), torch.ones(VOCABULARY, DIM), torch.zeros(tokens).long())
    assert widest == widths


def test_the_operator_keeps_its_promises():
    x, weight, targets = (t.detach() for t in arguments())
    for learns in (False, True):
        torch.library.opcheck(_in_chunks, (x, weight, targets, torch.float64, learns, False))


@pytest.mark.parametrize("tokens", [3, TOKENS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_classifier(monkeypatch, tokens, dtype):
    """Few tokens have few logits; of many, only a chunk's exist at a time."""
    x, _, targets = (t[:tokens] for t in arguments(dtype=dtype))
    x = x.detach().requires_grad_()
    classifier = Classifier(DIM, VOCABULARY, 1.0).to(dtype)
    calls = []
    monkeypatch.setattr(
        classifier_module, "linear_cross_entropy", lambda *a: calls.append(1) or linear_cross_entropy(*a)
    )
    found = with_gradients(lambda *a: classifier(a[0][None], a[2][None]), x, classifier.weight, targets)
    exact = [t.detach().double().requires_grad_() for t in (x, classifier.weight)]
    assert [y.dtype for y in found] == [torch.float32, dtype, dtype]
    for a, b in zip(found, with_gradients(plain, *exact, targets), strict=True):
        assert (a.double() - b).norm() < (1e-5 if dtype == torch.float32 else 2e-2) * b.norm()
    assert len(calls) == (tokens >= DIM)

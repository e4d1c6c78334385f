"""Reads with dropout against the written-out matrix with the same weights dropped."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels.fused_read import fused_read
from mm_lightning.memory.retrieval import read_reference

SPANS = {"attention": Span(0), "long": Span(64), "window": Span(1, 200), "narrow": Span(2, 3)}


def inputs(time, heads=2, groups=2, batch=1, dim=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, time, n, dim) for n in (heads, groups, groups)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def one_hot(v):
    """Values that make a read's output its weights; a value is as long as a document."""
    return torch.eye(v.shape[1], dtype=v.dtype)[:, None].expand(v.shape)


def seeded(*arguments):
    torch.manual_seed(5)
    return fused_read(*arguments)


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize(("batch", "chance"), [(2, 0.0), (1, 0.015)], ids=["whole", "documents"])
def test_values_and_gradients_with_the_same_weights_dropped(span, batch, chance):
    time, scale, share = 261, 0.07, 0.3
    q, k, v = inputs(time, heads=2, groups=1, batch=batch, dim=time)
    starts = torch.rand(batch, time, generator=torch.Generator().manual_seed(1)) < chance
    documents = Documents.from_starts(starts)
    whole, left = (
        f(q, k, one_hot(v), span, documents, scale, *rest).detach()
        for f, rest in ((read_reference, ()), (seeded, (share,)))
    )
    kept = (left != 0).double() / (1 - share)  # (B, T, H, T)
    assert not left[whole == 0].any()
    assert float(kept[whole != 0].mean()) == pytest.approx(1, abs=0.03)

    weights = read_reference(q, k, one_hot(v), span, documents, scale) * kept
    expected = torch.einsum("bths,bshd->bthd", weights, v.repeat_interleave(2, 2))
    found = seeded(q, k, v, span, documents, scale, share)
    assert (found - expected).abs().max() < 1e-12
    by = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = (torch.autograd.grad(out, (q, k, v), by) for out in (found, expected))
    assert all((a - b).abs().max() < 1e-11 for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("share", [0.002, 0.05, 0.9])
def test_each_weight_is_dropped_with_the_same_probability(share):
    """Along queries, keys and heads, and independently of its neighbors."""
    time = 260
    q, k, v = (torch.zeros(8, time, 2, time) for _ in range(3))
    torch.manual_seed(0)
    weights = fused_read(q, k, one_hot(v), Span(0), Documents.whole(8, time), dropout=share)
    lost = (weights == 0).transpose(1, 2).flatten(0, 1).double()  # (16, T, T)
    seen = torch.ones(time, time, dtype=torch.float64).tril()

    def check(found, count, chance):
        assert ((found - count * chance).abs() <= 5.5 * (count * chance * (1 - chance)).sqrt() + 1).all()

    lost = lost * seen
    check(lost.sum(), 16 * seen.sum(), share)
    check(lost.sum((0, 1)), 16 * seen.sum(0), share)
    check(lost.sum((0, 2)), 16 * seen.sum(1), share)
    check(lost.sum((1, 2)), seen.sum(), share)
    for both, pairs in (
        (lost[:, :, 1:] * lost[:, :, :-1], seen[:, 1:]),
        (lost[:, 1:] * lost[:, :-1], seen[:-1]),
        (lost[1:] * lost[:-1], seen * 15 / 16),
    ):
        # Neighboring pairs overlap: their sum varies more than that of independent ones, by up to 1 + 2 p.
        spread = (16 * pairs.sum() * share**2 * (1 + 2 * share)).sqrt()
        assert abs(both.sum() - 16 * pairs.sum() * share**2) <= 5.5 * spread + 1


def test_the_expectation_is_the_read_without_dropout():
    arguments = inputs(40, dim=4)
    rest = Span(1, 30), Documents.whole(1, 40), 0.5
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.stack([fused_read(*arguments, *rest, 0.25) for _ in range(400)])
        expected = read_reference(*arguments, *rest)
    error = found.std(0) / 400**0.5
    assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
    assert not torch.equal(found[0], found[1])


def test_lower_precision_and_autocast():
    """bf16 inputs are read in float32; autocast rounds nothing more."""
    rest = Span(1, 200), Documents.whole(1, 300), 1.0, 0.2
    low = inputs(300, dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in low]
    found, expected = seeded(*low, *rest), seeded(*exact, *rest)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 2e-2
    single = [x.detach().float().requires_grad_() for x in low]
    with torch.autocast("cpu", torch.bfloat16):
        found = seeded(*single, *rest)
        gradients = torch.autograd.grad(found.sum(), single)
    assert (found - expected).abs().max() < 1e-5
    for a, b in zip(gradients, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert (a - b).abs().max() < 1e-4


def test_activation_checkpointing_drops_the_same_weights():
    arguments, rest = inputs(150), (Span(1), Documents.whole(1, 150), 1.0, 0.2)
    plain = seeded(*arguments, *rest)
    torch.manual_seed(5)
    again = checkpoint(fused_read, *arguments, *rest, use_reentrant=False)
    assert torch.equal(plain, again)
    for a, b in zip(*(torch.autograd.grad(x.square().sum(), arguments) for x in (plain, again)), strict=True):
        assert torch.equal(a, b)


def test_no_matrix_is_kept_for_the_backward_pass():
    kept = []
    arguments = inputs(400)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        fused_read(*arguments, Span(1), Documents.whole(1, 400), 1.0, 0.2)
    assert max(kept) <= arguments[0].numel()

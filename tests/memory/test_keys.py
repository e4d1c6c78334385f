"""Equation (8): the chunked form against the token by token one, and that one against numbers by hand."""

import math

import pytest
import torch

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels.torch_features import gated_average
from mm_lightning.memory.keys import gated_average_reference

LENGTHS = [1, 2, 63, 64, 65, 255, 256, 257, 530]


def inputs(time, gate_scale=1.0, decay_scale=1.0, dtype=torch.float64, batch=2, heads=2, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, time, heads, dim, generator=generator, dtype=torch.float64)
    gate = torch.randn(batch, time, heads, generator=generator, dtype=torch.float64).clamp(-1, 1) * gate_scale
    decay = -torch.rand(batch, time, heads, generator=generator, dtype=torch.float64) * decay_scale
    # In the type under test first, so that the reference computes on the very same numbers.
    return [x.to(dtype).double().requires_grad_() for x in (keys, gate, decay)]


def random_documents(time, chance, batch=2, seed=1):
    return Documents.from_starts(torch.rand(batch, time, generator=torch.Generator().manual_seed(seed)) < chance)


def values_and_gradients(function, arguments, documents, dtype=torch.float64):
    arguments = [x.detach().to(dtype).requires_grad_() for x in arguments]
    keys = function(*arguments, documents)
    weights = torch.randn(keys.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (keys.double() * weights).sum().backward()
    return [keys.detach().double(), *(x.grad.double() for x in arguments)]


def worst(found, expected):
    """The largest error of values, and of each gradient in units of the largest gradient by the keys or gates."""
    unit = max(1.0, *(x.abs().max().item() for x in expected[1:]))
    scales = [1.0, unit, unit, unit]
    errors = [(a - b).abs().max() / s for a, b, s in zip(found, expected, scales, strict=True)]
    return torch.stack(errors).max().item()  # NaN if any is


def test_reference_by_hand():
    """kbar = (g1 k1, g2 k2 + lambda2 g1 k1) with orthogonal raw keys, whose direction can be read off."""
    raw = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=torch.float64)
    gate = torch.tensor([[[math.log(3.0)], [math.log(2.0)]]], dtype=torch.float64)
    decay = torch.tensor([[[0.0], [math.log(0.5)]]], dtype=torch.float64)
    keys = gated_average_reference(raw, gate, decay, Documents.whole(1, 2))
    assert keys[0, 0, 0].tolist() == [1.0, 0.0]
    assert keys[0, 1, 0].tolist() == pytest.approx([1.5 / 2.5, 2 / 2.5])
    alone = gated_average_reference(raw, gate, decay, Documents.from_starts(torch.tensor([[True, True]])))
    assert alone[0, 1, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("chance", [0.0, 0.03, 0.7])
def test_chunks_agree_with_the_reference(time, chance):
    arguments, documents = inputs(time), random_documents(time, chance)
    expected = values_and_gradients(gated_average_reference, arguments, documents)
    assert worst(values_and_gradients(gated_average, arguments, documents), expected) < 1e-10


@pytest.mark.parametrize("time", [65, 200])
@pytest.mark.parametrize("gate_scale", [1.0, 500.0])
@pytest.mark.parametrize("decay_scale", [0.0, 1.0, 500.0])
@pytest.mark.parametrize("chance", [0.0, 0.05])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_extreme_gates(time, gate_scale, decay_scale, chance, dtype, tolerance):
    arguments, documents = inputs(time, gate_scale, decay_scale, dtype), random_documents(time, chance)
    expected = values_and_gradients(gated_average_reference, arguments, documents)
    found = values_and_gradients(gated_average, arguments, documents, dtype)
    assert all(x.isfinite().all() for x in found)
    assert worst(found, expected) < tolerance


@pytest.mark.parametrize("decay", [0.0, -500.0])
def test_constant_decay_of_0_and_500(decay):
    """lambda = 1 sums everything; lambda = exp(-500) forgets everything but the present token."""
    raw, gate, _ = inputs(300)
    keys = gated_average(raw, gate, torch.full_like(gate, decay), Documents.whole(2, 300))
    weighted = gate.exp()[..., None] * raw
    total = weighted.cumsum(1) if decay == 0 else weighted
    assert (keys - torch.nn.functional.normalize(total, dim=-1)).abs().max() < 1e-10


@pytest.mark.parametrize("chance", [0.0, 0.05])
def test_bf16_is_within_its_rounding(chance):
    """Inputs and outputs have 8 bits; everything between is float32, so only their rounding is seen."""
    arguments, documents = inputs(257, dtype=torch.bfloat16), random_documents(257, chance)
    expected = values_and_gradients(gated_average_reference, arguments, documents)
    found = values_and_gradients(gated_average, arguments, documents, torch.bfloat16)
    assert (found[0] - expected[0]).abs().max() < 2**-8
    assert worst(found, expected) < 2e-2


def test_a_key_of_zeros_is_zeros():
    raw, gate, decay = inputs(70)
    raw = torch.zeros_like(raw).requires_grad_()
    keys = gated_average(raw, gate, decay, Documents.whole(2, 70))
    keys.sum().backward()
    assert (keys == 0).all()
    assert raw.grad.isfinite().all()


def test_gradients_by_finite_differences():
    raw, gate, decay = inputs(5, batch=1, heads=1, dim=3)
    documents = Documents.from_starts(torch.tensor([[True, False, False, True, False]]))
    assert torch.autograd.gradcheck(lambda *x: gated_average(*x, documents), (raw, gate, decay))

"""Equation (9)."""

import pytest
import torch

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels.torch_features import look_ahead
from mm_lightning.memory.values import LookAheadValues, look_ahead_reference


def test_reference_by_hand():
    raw = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]]], dtype=torch.float64)
    gamma = torch.tensor([0.6], dtype=torch.float64)
    documents = Documents.from_starts(torch.tensor([[True, False, True]]))
    values = look_ahead_reference(raw, gamma, documents)[0, :, 0]
    norm = (0.6**2 + 0.4**2) ** 0.5
    assert values[0].tolist() == pytest.approx([0.6 / norm, 0.4 / norm])
    assert values[1].tolist() == [0.0, 1.0]  # the next token belongs to another document
    assert values[2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("time", [1, 2, 63, 257])
@pytest.mark.parametrize("chance", [0.0, 0.2])
def test_fast_form_agrees_with_the_reference(time, chance):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, time, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    gamma = torch.rand(3, generator=generator, dtype=torch.float64, requires_grad=True)
    documents = Documents.from_starts(torch.rand(2, time, generator=generator) < chance)
    weights = torch.randn(raw.shape, generator=generator, dtype=torch.float64)
    results = []
    for function in (look_ahead, look_ahead_reference):
        values = function(raw, gamma, documents)
        results.append([values, *torch.autograd.grad((values * weights).sum(), (raw, gamma))])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() < 1e-12


def test_bf16_keeps_its_type_and_rounding():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 65, 3, 16, generator=generator).bfloat16()
    gamma, documents = torch.rand(3, generator=generator), Documents.whole(2, 65)
    values = look_ahead(raw, gamma, documents)
    assert values.dtype == torch.bfloat16
    assert (values.double() - look_ahead_reference(raw.double(), gamma.double(), documents)).abs().max() < 2**-8


def test_norm_of_values_begins_at_1_and_can_leave_it():
    memory = LookAheadValues(2)
    values = memory(torch.randn(1, 8, 2, 4), Documents.whole(1, 8))
    assert values.norm(dim=-1).detach() == pytest.approx(torch.ones(1, 8, 2).numpy(), rel=1e-5)
    values.norm(dim=-1).sum().backward()
    assert memory.alpha_psi_theta.grad.tolist() == pytest.approx([8.0, 8.0], rel=1e-5)
    with torch.no_grad():
        memory.alpha_psi_theta.copy_(torch.tensor([-1.0, 99.0]))
    assert memory.alpha_psi.tolist() == pytest.approx([2.718281828, 3269017.37], rel=1e-6)

"""Equation (6)."""

import math

import pytest
import torch

from mm_lightning.memory.bandwidth import AdaptiveBandwidth


def test_initial_values_of_table_6():
    bandwidth = AdaptiveBandwidth(2)
    assert bandwidth.beta_0.tolist() == pytest.approx([math.exp(1.5)] * 2)
    assert bandwidth.beta_1.tolist() == pytest.approx([math.exp(1.5)] * 2)
    assert bandwidth.alpha.tolist() == pytest.approx([1 / 3] * 2)
    beta = bandwidth(torch.tensor([[8, 1000]]))
    assert beta[0, :, 0].tolist() == pytest.approx([math.exp(1.5) * (2 + 1), math.exp(1.5) * (10 + 1)], rel=1e-6)


def test_bounds_of_the_parameters():
    bandwidth = AdaptiveBandwidth(2)
    with torch.no_grad():
        for theta in bandwidth.parameters():
            theta.copy_(torch.tensor([50.0, -2.0]))
    assert bandwidth.alpha.tolist() == [1.0, 1.0]
    assert bandwidth.beta_0.tolist() == pytest.approx([math.exp(10), math.exp(-2)])


def test_an_empty_memory_has_finite_gradients():
    bandwidth = AdaptiveBandwidth(2)
    bandwidth(torch.tensor([[0, 1, 5]])).sum().backward()
    assert all(theta.grad.isfinite().all() for theta in bandwidth.parameters())


def test_bf16_parameters_give_float32_bandwidths():
    assert AdaptiveBandwidth(2).bfloat16()(torch.tensor([[3]])).dtype == torch.float32

"""Equation (6)."""

import math

import pytest
import torch

from mm_lightning.errors import UserError
from mm_lightning.memory.bandwidth import AdaptiveBandwidth
from mm_lightning.networks import MemoryMosaicConfig


def test_initial_values_of_table_6():
    bandwidth = AdaptiveBandwidth(2)
    assert bandwidth.beta_0.tolist() == pytest.approx([math.exp(1.5)] * 2)
    assert bandwidth.beta_1.tolist() == pytest.approx([math.exp(1.5)] * 2)
    assert bandwidth.alpha.tolist() == pytest.approx([1 / 3] * 2)
    beta = bandwidth(torch.tensor([[8, 1000]]))
    assert beta[0, :, 0].tolist() == pytest.approx([math.exp(1.5) * (2 + 1), math.exp(1.5) * (10 + 1)], rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, math.exp(1.5) * (250 ** (1 / 3) + 1)),
        ({"initial_bandwidth": 0.25}, math.exp(1.5) * (250 ** (1 / 3) + 1) / 4),
        ({"bandwidth": "fixed"}, math.exp(2)),
        ({"bandwidth": "fixed", "initial_bandwidth": 4.5}, math.exp(2) * 4.5),
    ],
)
def test_initial_values_as_a_multiple_of_the_published_ones(settings, expected):
    sizes = {"vocab_size": 11, "layers": 1, "dim": 8, "heads": 2, "persistent_dim": 8, "persistent_slots": 4}
    block = MemoryMosaicConfig(**sizes, **settings, persistent="key_value").build().blocks[0]
    for memory in block.contextual.values():
        beta = memory.bandwidth(torch.tensor([[250]])).broadcast_to(1, 1, 2)
        assert beta.flatten().tolist() == pytest.approx([expected] * 2, rel=1e-6)
    assert block.persistent.bandwidth.beta.tolist() == pytest.approx([math.exp(2)] * 2)


def test_the_initial_value_of_a_class_is_its_own():
    with pytest.raises(UserError, match="initial_bandwidth is of bandwidths adaptive and fixed"):
        MemoryMosaicConfig(bandwidth={"class_path": "mine.Mine"}, initial_bandwidth=2.0)


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

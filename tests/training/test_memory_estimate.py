"""Bytes per device by the arithmetic of the ZeRO paper and of AdamW."""

import pytest

from mm_lightning.errors import UserError
from mm_lightning.networks import MemoryMosaicConfig
from mm_lightning.networks.cost import parameters
from mm_lightning.training.memory_estimate import Layout, bytes_per_device, count_devices

CONFIG = MemoryMosaicConfig(vocab_size=1000, layers=2, dim=64, heads=2, persistent_dim=128)
P = parameters(CONFIG)


@pytest.mark.parametrize(
    ("layout", "weights", "gradients", "states"),
    [
        (Layout(), 4, 4, 8),
        (Layout(devices=8), 4, 4, 8),
        (Layout(precision="bf16-mixed"), 4, 4, 8),
        (Layout(precision="bf16-true"), 2, 2, 4),
        (Layout(precision="64-true"), 8, 8, 16),
        # 16 bytes a parameter in all (ZeRO, section 3.1), divided as the stages go up; 18 with gradients in float32
        (Layout(8, "bf16-mixed", 1, True), 2, 2, 12 / 8),
        (Layout(8, "bf16-mixed", 2, True), 2, 4 / 8, 12 / 8),
        (Layout(8, "bf16-mixed", 3, True), 2 / 8, 4 / 8, 12 / 8),
        (Layout(8, "bf16-mixed", 2, True, offload=True), 2, 4 / 8, 0),
    ],
)
def test_bytes_a_parameter(layout, weights, gradients, states):
    found = bytes_per_device(CONFIG, layout)
    assert found["weights"] == pytest.approx(weights * P, rel=1e-4)
    assert found["gradients"] == pytest.approx(gradients * P, rel=1e-4)
    assert found["optimizer states"] == pytest.approx(states * P, rel=1e-4)
    assert ("weights gathered for use" in found) == (layout.zero_stage == 3)


def test_activations_grow_with_tokens_and_shrink_when_recomputed():
    one = bytes_per_device(CONFIG, Layout(context_length=1000))["activations"]
    assert bytes_per_device(CONFIG, Layout(context_length=1000, micro_batch_size=3))["activations"] == 3 * one
    recomputed = Layout(context_length=1000, activation_checkpointing=True)
    assert bytes_per_device(CONFIG, recomputed)["activations"] < one


def test_the_loss_and_the_copies_of_autocast():
    """Logits are there a part at a time, in float32 and in the type of products; the classifier has 1000 x 64."""
    needed = bytes_per_device(CONFIG, Layout(precision="bf16-mixed", context_length=500))
    assert needed["weights in 16 bits"] == 2 * P
    assert needed["loss"] == 500 * 1000 * (4 + 2) + 64_000 * 8
    longest = bytes_per_device(CONFIG, Layout(precision="bf16-mixed", context_length=10**7))["loss"]
    assert longest == 2**28 * (4 + 2) + 64_000 * 8
    for other in (Layout(), Layout(precision="bf16-true"), Layout(8, "bf16-mixed", 3, True)):
        assert "weights in 16 bits" not in bytes_per_device(CONFIG, other)


def test_buckets_and_gathered_weights_are_no_larger_than_asked_for():
    layout = Layout(8, "bf16-mixed", 3, True, bucket=1000, live_parameters=5000)
    assert bytes_per_device(CONFIG, layout)["communication buckets"] == 2 * 1000
    assert bytes_per_device(CONFIG, layout)["weights gathered for use"] == 2 * 5000
    two = Layout(8, "bf16-mixed", 2, True)  # one bucket is filled while the other is sent; none exceeds the network
    assert bytes_per_device(CONFIG, two)["communication buckets"] == 2 * 2 * P
    assert "communication buckets" not in bytes_per_device(CONFIG, Layout(8))
    away = Layout(8, "bf16-mixed", 3, True, offload=True, offload_parameters=True)
    assert bytes_per_device(CONFIG, away)["weights"] == bytes_per_device(CONFIG, away)["optimizer states"] == 0


@pytest.mark.parametrize(
    ("devices", "count"),
    [(3, 3), ("3", 3), ([0, 5], 2), ("0,5", 2), ("4,", 1), ("auto", None), (-1, None), ("-1", None)],
)
def test_devices_are_counted_as_lightning_does(devices, count):
    assert count_devices(devices) == count


@pytest.mark.parametrize("devices", ["~/x", "0", 0, -2, "two", ""])
def test_devices_that_are_none(devices):
    with pytest.raises(UserError, match=r"trainer\.devices must be"):
        count_devices(devices)

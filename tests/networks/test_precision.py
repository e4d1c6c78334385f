"""Every kind of kernels in every precision of the trainer: a step that is right, or a refusal in one line."""

from functools import cache
from itertools import product

import pytest
import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import set_kernels
from mm_lightning.networks import V1, MemoryMosaicConfig, TransformerConfig

TINY = {"vocab_size": 31, "layers": 1, "dim": 16, "heads": 2, "persistent_dim": 24, "short_term_window": 8}
DELAYS = {"long_term_delay": (3, 6), "inference_delay": 3}
V1_TINY = {**V1, "persistent_slots": 8, "persistent_banks": 2, "bias": True, "dropout": 0.0}
VARIANTS = {
    "v2": MemoryMosaicConfig(**TINY, **DELAYS),
    "v1": MemoryMosaicConfig(**TINY, **V1_TINY),
    "experts": MemoryMosaicConfig(**TINY, **DELAYS, persistent="experts", experts=4),
    "no persistent memory": MemoryMosaicConfig(**TINY, **DELAYS, persistent="none"),
    "leaky keys": MemoryMosaicConfig(**TINY, **DELAYS, keys="leaky"),
    "fixed bandwidth": MemoryMosaicConfig(**TINY, **DELAYS, bandwidth="fixed"),
    "no look-ahead": MemoryMosaicConfig(**TINY, **DELAYS, look_ahead=False),
    "dropout": MemoryMosaicConfig(**TINY, **DELAYS, dropout=0.1),
    "transformer": TransformerConfig(**TINY, **DELAYS),
    "long-short transformer": TransformerConfig(**TINY, **DELAYS, levels=("long", "short"), kv_heads=1),
}
PRECISIONS = {
    "32-true": Precision,
    "64-true": DoublePrecision,
    "bf16-true": lambda: HalfPrecision("bf16-true"),
    "16-true": lambda: HalfPrecision("16-true"),
    "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cpu"),
    "16-mixed": lambda: MixedPrecision("16-mixed", "cpu"),
}


def step(config, kernels, precision) -> float:
    """The loss after a step of training, of text that is then also decoded token by token."""
    plugin = PRECISIONS[precision]()
    torch.manual_seed(0)
    network = config.build()
    network = plugin.convert_module(network)
    set_kernels(network, kernels)
    tokens = torch.randint(31, (2, 33), generator=torch.Generator().manual_seed(0))
    batch = tokens[:, :-1], Documents.from_starts(torch.arange(32).expand(2, 32) % 15 == 4), tokens[:, 1:]
    with plugin.forward_context():
        loss = network(*batch, **network.step_randomness(0, 0))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    torch.optim.SGD(network.parameters(), 0.1).step()
    network.eval()
    with plugin.forward_context(), torch.inference_mode():
        state = network.new_state(2)
        for chunk in tokens.split([5, 1, 3, 24], 1):
            assert network(chunk, state=state).isfinite().all()
        return float(network(*batch))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("kernels", "variant"),
    [
        *product(["reference", "torch", "numba"], VARIANTS),
        *product(["auto", "triton"], ["v2", "v1", "transformer"]),  # chosen or refused by type and device alone
    ],
)
def test_kernels_and_precisions(kernels, precision, variant):
    config = VARIANTS[variant]
    attention = isinstance(config, TransformerConfig)
    if kernels == "triton" and attention:
        pytest.skip("asked for by model.kernels, they are refused on a CPU whatever the network")
    refused = (
        kernels == "triton"
        or (kernels == "numba" and precision.startswith("16") and not attention)
        or (kernels == "reference" and config.dropout)
    )
    if refused:
        with pytest.raises(UserError) as error:
            step(config, kernels, precision)
        assert "choose" in str(error.value)
        assert "\n" not in str(error.value)
        return
    tolerance = {"32-true": 1e-4, "64-true": 1e-9}.get(precision, 0.02) + config.dropout
    assert step(config, kernels, precision) == pytest.approx(expected(variant), abs=tolerance)


@cache
def expected(variant) -> float:
    config = VARIANTS[variant]
    return step(config, "torch" if config.dropout else "reference", "64-true")

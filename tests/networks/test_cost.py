"""The cost model against the paper's table and against networks counted on the meta device."""

from dataclasses import dataclass

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mm_lightning.memory.persistent import SlotMemory
from mm_lightning.networks import MemoryMosaicConfig, Network, NetworkConfig, TransformerConfig
from mm_lightning.networks.cost import (
    forward_flops_per_token,
    module_costs,
    parameters,
    training_flops_per_token,
)
from mm_lightning.networks.short_convolution import ShortConvolution

LARGE = {"vocab_size": 128256, "layers": 32, "dim": 4096, "heads": 32, "persistent_dim": 14336}


@pytest.mark.parametrize(
    ("config", "billions", "gigaflops"),
    [
        (MemoryMosaicConfig(**LARGE), 9.9, 18.9),
        (MemoryMosaicConfig(**LARGE, levels=("short",)), 8.3, 15.6),
        (TransformerConfig(**LARGE), 8.8, 16.7),
    ],
    ids=["v2", "v2 without long-term memory", "transformer"],
)
def test_the_papers_table(config, billions, gigaflops):
    assert round(parameters(config) / 1e9, 1) == billions
    assert round(forward_flops_per_token(config, 256) / 1e9, 1) == gigaflops
    assert training_flops_per_token(config, 256) == 3 * forward_flops_per_token(config, 256)


def test_parameters_agree_with_the_network(config):
    for chosen in (config, type(config)(**LARGE)):
        with torch.device("meta"):
            network = chosen.build()
        assert parameters(chosen) == sum(p.numel() for p in network.parameters())


def test_products_are_counted_as_torch_counts_those_that_run(config):
    """All but reads: torch does not count the attention that reads pairs and slots, nor a convolution by hand."""
    network, time = config.build().eval(), 64
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, time, dtype=torch.int64))
    flops = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    others = (module for module in network.modules() if isinstance(module, ShortConvolution | SlotMemory))
    not_counted = sum(p.numel() for module in others for p in module.parameters(recurse=False) if p.dim() > 1)
    active = sum(part.active for part in module_costs(config)) - not_counted
    assert flops.get("aten.mm", 0) + flops.get("aten.addmm", 0) == 2 * time * active


def test_the_short_window_bounds_its_reads():
    config = MemoryMosaicConfig(**LARGE)
    by_name = {part.name: part for part in module_costs(config)}
    short, long = by_name["short-term memory"], by_name["long-term memory"]
    assert short.forward_flops(32768) == short.forward_flops(256)
    assert long.forward_flops(32768) - long.forward_flops(256) == 2 * 32 * 4096 * (32768 - 256)


@dataclass
class Linears(NetworkConfig):
    """Blocks of a class of its own."""

    def build(self):
        return Network(self, [torch.nn.Linear(self.dim, self.dim) for _ in range(self.layers)])


@pytest.mark.parametrize("tied", [True, False])
def test_blocks_of_a_users_class(tied):
    config = Linears(vocab_size=50, layers=3, dim=16, heads=2, tied=tied)
    assert parameters(config) == sum(p.numel() for p in config.build().parameters())
    assert forward_flops_per_token(config, 99) == 2 * (3 * 16 * 16 + 50 * 16)  # an embedding is looked up


def test_unknown_networks_have_no_cost():
    with pytest.raises(TypeError, match="NetworkConfig"):
        parameters(NetworkConfig())

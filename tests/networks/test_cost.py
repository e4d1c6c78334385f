"""The cost model against the paper's table and against networks counted on the meta device."""

from functools import partial
from inspect import signature

import pytest
import torch

from mm_lightning.memory.kernels import fused_read
from mm_lightning.networks import MemoryMosaicConfig, NetworkConfig, TransformerConfig, base
from mm_lightning.networks.cost import (
    activation_bytes_per_token,
    forward_flops_per_token,
    module_costs,
    parameters,
    training_flops_per_token,
)

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


def test_the_short_window_bounds_its_reads():
    config = MemoryMosaicConfig(**LARGE)
    by_name = {part.name: part for part in module_costs(config)}
    short, long = by_name["short-term memory"], by_name["long-term memory"]
    assert short.forward_flops(32768) == short.forward_flops(256)
    assert long.forward_flops(32768) - long.forward_flops(256) == 2 * 32 * 4096 * (32768 - 256)


def test_unknown_networks_have_no_cost():
    with pytest.raises(TypeError, match="NetworkConfig"):
        parameters(NetworkConfig())


@torch.library.custom_op("tests_of_cost::attention", mutates_args=())
def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Keeps what a flash kernel keeps."""
    return torch.zeros_like(q)


_attention.register_autograd(
    lambda ctx, grad: (None, None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, output),
)


@pytest.mark.parametrize("network", [MemoryMosaicConfig, TransformerConfig])
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False, "selective"])
def test_activations_agree_with_what_autograd_keeps(network, bf16, checkpointing, monkeypatch):
    """Bytes of each block beyond the first, with the kernels of CUDA replaced by one that keeps the same."""
    monkeypatch.setattr(fused_read, "attention_backend", lambda *_: fused_read.VARLEN)
    monkeypatch.setattr(fused_read, "_varlen_attn", lambda: lambda q, k, v, *rest, **settings: _attention(q, k, v))
    if checkpointing == "selective":
        if "respect_saved_tensors_hooks" not in signature(base.checkpoint).parameters:
            pytest.skip("this torch does not show what it keeps")
        monkeypatch.setattr(base, "checkpoint", partial(base.checkpoint, respect_saved_tensors_hooks=True))
    tokens, dim = 512, 64
    kept, estimated = [], []
    for layers in (1, 3):
        config = network(vocab_size=64, layers=layers, dim=dim, heads=2, persistent_dim=192)
        kept.append(_bytes_kept(config, tokens, bf16, checkpointing) / tokens)
        estimated.append(activation_bytes_per_token(config, 2 if bf16 else 4, 4, checkpointing))
    # On CPUs RMSNorm keeps a normalised copy that the fused one of CUDA does not: two of 4 d bytes a block.
    composite = 0 if checkpointing else 2 * 2 * 4 * dim
    assert kept[1] - kept[0] - composite == pytest.approx(estimated[1] - estimated[0], rel=0.04)


def _bytes_kept(config, tokens, bf16, checkpointing):
    network = config.build()
    network.activation_checkpointing = checkpointing
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    shapes = {tuple(p.shape) for p in network.parameters()} | {tuple(reversed(p.shape)) for p in network.parameters()}
    storages = {}

    def pack(tensor):
        # Weights, and their bf16 copies made by autocast, are not activations.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in shapes:
            storages[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    inputs = torch.randint(config.vocab_size, (1, tokens))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        loss = network(inputs, targets=inputs)
    assert loss.requires_grad
    return sum(nbytes for nbytes, _ in storages.values())

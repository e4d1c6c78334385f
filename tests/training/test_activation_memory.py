"""The bytes that a block is estimated to keep for the backward pass against those that autograd keeps."""

from functools import partial
from inspect import signature

import pytest
import torch

from mm_lightning.memory.kernels import fused_read
from mm_lightning.networks import GatedDeltaNetConfig, MemoryMosaicConfig, TransformerConfig, base
from mm_lightning.training.activation_memory import activation_bytes_per_token, block_activations


@torch.library.custom_op("tests_of_activation_memory::attention", mutates_args=())
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


def test_blocks_of_several_kinds_are_counted_each():
    sizes = {"vocab_size": 64, "layers": 4, "dim": 64, "heads": 2, "persistent_dim": 192}
    blocks = block_activations(GatedDeltaNetConfig(**sizes, attention_every=2), 2, 4)
    (delta, *_), (attention, *_) = (
        block_activations(kind(**sizes), 2, 4) for kind in (GatedDeltaNetConfig, TransformerConfig)
    )
    assert blocks == [delta, attention, delta, attention]
    assert delta != attention


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

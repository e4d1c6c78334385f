"""Count the bytes that a network keeps for the backward pass, in a forward pass of a block on fake tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.layers import Norm
from mm_lightning.memory.retrieval import SoftmaxRetrieval
from mm_lightning.networks import Checkpointing, NetworkConfig
from mm_lightning.networks.base import keeps_result
from mm_lightning.networks.config import once_per_config
from mm_lightning.training.lightning_internals import fake_tensors, intercept_operations

_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def activation_bytes_per_token(
    config: NetworkConfig, compute_bytes: int, residual_bytes: int, checkpointing: Checkpointing
) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, per token; the loss's logits not included.

    Args:
        config: the network.
        compute_bytes: the bytes of an element in matrix products: 2 in bf16, 4 in float32.
        residual_bytes: the bytes of an element of the residual stream: 4, or 2 where parameters themselves are in bf16.
        checkpointing: recompute blocks: each then keeps its input, and one at a time the rest; selective keeps the
            results of matrix products and reads as well.
    """
    blocks = block_activations(config, compute_bytes, residual_bytes)
    # embedding, last norm, the classifier's float32 input and its gradient
    ends = config.dim * (2 * residual_bytes + 8)
    if not checkpointing:
        return sum(total for total, _ in blocks) + ends
    saved = [products if checkpointing == "selective" else 0 for _, products in blocks]
    recomputed = max(total - kept for (total, _), kept in zip(blocks, saved, strict=True))
    return len(blocks) * config.dim * residual_bytes + sum(saved) + max(recomputed, 0) + ends


@once_per_config
def block_activations(config: NetworkConfig, compute_bytes: int, residual_bytes: int) -> list[tuple[int, int]]:
    """Count the bytes that each block keeps for the backward pass, per token.

    A block runs on fake tensors, which have shapes and types but no storage, at two lengths; the difference is free of
    weights and their 16-bit copies. Blocks of one class are taken to be alike; masks of dropout are left out.

    Args:
        config: the network.
        compute_bytes: the bytes of an element in matrix products: 2 in bf16, 4 in float32.
        residual_bytes: the bytes of an element of the residual stream and of a parameter.

    Returns:
        All bytes of each block, and those of the results of matrix products and reads that selective checkpointing
        keeps.

    Raises:
        UserError: a block's forward pass depends on the values of tensors.
    """
    tokens = 2 * max(512, *(config.span(level).delay for level in config.levels))
    try:
        counts = [_count(config, n, compute_bytes, residual_bytes) for n in (tokens, 2 * tokens)]
    except (RuntimeError, NotImplementedError) as error:  # a user's part branches on values of tensors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the memory of activations cannot be estimated: this network needs real tensors ({reason})"
        ) from error
    return [
        ((long[0] - short[0]) // tokens, (long[1] - short[1]) // tokens) for short, long in zip(*counts, strict=True)
    ]


def _count(config: NetworkConfig, tokens: int, compute_bytes: int, residual_bytes: int) -> list[tuple[int, int]]:
    """Return the bytes that each block keeps for `tokens` tokens, and those of products and reads."""
    dtype, before = _DTYPES[residual_bytes], torch.get_default_dtype()
    with fake_tensors():
        torch.set_default_dtype(dtype)
        try:
            network = replace(config, dropout=0.0).build()
        finally:
            torch.set_default_dtype(before)
        context = network.context(Documents.whole(1, tokens))
        x = torch.empty(1, tokens, config.dim, dtype=dtype, requires_grad=True)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=compute_bytes < residual_bytes)
        counts = {}
        for kind, block in {type(block): block for block in network.blocks}.items():
            saved, results = _Saved(context.rotation or ()), _Results()
            for module in block.modules():
                saved.watch(module)
            hooks = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor)
            with hooks, autocast, intercept_operations(results.compute):
                block(x, context)
            counts[kind] = saved.total, results.total
        return [counts[type(block)] for block in network.blocks]


class _Saved:
    """Count the storages that autograd keeps, each once, as on CUDA.

    Args:
        shared: tensors that all blocks share, which count for none.
    """

    def __init__(self, shared: tuple[Tensor, ...]) -> None:
        self.shared = [x.untyped_storage() for x in shared]
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no id is used again
        self.in_norm = False

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())

    def pack(self, tensor: Tensor) -> Tensor:
        if not self.in_norm:
            self._keep(tensor)
        return tensor

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if not any(storage is shared for shared in self.shared):
            self.storages[id(storage)] = storage

    def watch(self, module: nn.Module) -> None:
        """Count for a module what CUDA's kernels keep, where a CPU's keep something else."""
        if isinstance(module, Norm):  # the fused kernel keeps its input, a CPU's also a normalized copy
            module.register_forward_pre_hook(self._enter_norm)
            module.register_forward_hook(self._leave_norm)
        elif isinstance(module, SoftmaxRetrieval):
            module.read = _read  # type: ignore[assignment, method-assign]

    def _enter_norm(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._keep(inputs[0])
        self.in_norm = True

    def _leave_norm(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.in_norm = False


def _read(q: Tensor, k: Tensor, v: Tensor, span: Span, *rest: Any) -> Tensor:
    """Read as variable-length attention does, which keeps queries, answers, and copies of delayed keys and values."""
    if span.delay:
        k, v = k.clone(), v.clone()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


class _Results:
    """Count the bytes of the results that selective checkpointing keeps; tokens are shared equally among experts."""

    def __init__(self) -> None:
        self.total, self.shares = 0, list[int]()

    def compute(self, operation: Any, args: Any, kwargs: Any) -> Any:
        if operation is torch.ops.aten.bincount.default:  # tokens of each expert: fake tensors have no values
            bins = args[2] if len(args) > 2 else kwargs["minlength"]
            share, rest = divmod(args[0].numel(), bins)
            self.shares = [share] * (bins - 1) + [share + rest]
            return args[0].new_empty(bins)
        if operation is torch.ops.aten._local_scalar_dense.default and self.shares:
            return self.shares.pop()
        result = operation(*args, **kwargs)
        if keeps_result(operation):
            self.total += (result[0] if isinstance(result, tuple | list) else result).nbytes
        return result

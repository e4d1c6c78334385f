"""The residual block of all networks: norms and linear maps around memories, which torch.compile can fuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.layers import Linear, Norm
from mm_lightning.memory.persistent import SwiGLU
from mm_lightning.networks.base import ForwardContext, depth_std
from mm_lightning.networks.config import NetworkConfig


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def compile_pointwise(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method that acts on each token alone: run it through torch.compile where its module is `compiled`.

    It is compiled once for all modules of the class, and used only while gradients are recorded: evaluation and
    decoding come in many shapes, each of which would trigger recompilation.
    """

    @wraps(method)
    def call(module: Any, *args: Any) -> Any:
        return (_compiled(method) if module.compiled and torch.is_grad_enabled() else method)(module, *args)

    return call


def set_compiled(network: nn.Module, on: bool = True) -> None:
    """Turn torch.compile of all blocks on or off. Parameters keep their names."""
    for module in network.modules():
        if hasattr(type(module), "compiled"):
            setattr(module, "compiled", on)  # noqa: B010


class Block(nn.Module):
    """x += W_o answers(norm(x));  x += persistent(norm(x)), with the answers of contextual memories or attention.

    Attributes:
        compiled: see :func:`compile_pointwise`.
        dropout: share of what both halves add that is dropped in training.
    """

    compiled = False

    def __init__(self, config: NetworkConfig, index: int):
        super().__init__()
        d, bias = config.dim, config.bias
        self.dropout = config.dropout
        self.contextual_norm = Norm(d, config.norm_eps, config.norm, bias)
        self.contextual = nn.ModuleDict(self.contextual_memories(config, index))
        self.W_o = self.output(config, index)
        persistent = self.persistent_memory(config, index)
        self.persistent_norm = None if persistent is None else Norm(d, config.norm_eps, config.norm, bias)
        self.persistent = persistent

    def contextual_memories(self, config: Any, index: int) -> dict[str, nn.Module]:
        """Build the memories (or attentions) of the block of this index, by level."""
        raise NotImplementedError

    def output(self, config: Any, index: int) -> nn.Module:
        """Build W_o."""
        width, std = len(config.levels) * config.dim, depth_std(config.dim, index)
        return Linear(width, config.dim, std, config.bias)

    def persistent_memory(self, config: Any, index: int) -> nn.Module | None:
        """Build the persistent memory, a SwiGLU network by default."""
        d, f = config.dim, config.persistent_dim
        return SwiGLU(d, f, depth_std(d, index), depth_std(f, index))

    def read(self, level: str, x: Tensor, context: ForwardContext) -> Tensor:
        """Return the answers of one memory to its inputs, (B, T, d)."""
        memory = self.contextual[level]
        return memory(x, context.spans[level], context.documents, context.state_of(memory))

    def answers(self, x: Tensor, context: ForwardContext) -> Tensor:
        """Return the answers of all memories side by side, (B, T, n d), to the residual stream x, (B, T, d)."""
        y = self.pre_norm(x)
        return torch.cat([self.read(level, y, context) for level in self.contextual], -1)

    def forward(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor | None]:
        """Return the residual stream after this block, and its load-balancing loss if it has one."""
        return self.residual_update(*context.keep_last(x, self.answers(x, context))), None

    @compile_pointwise
    def pre_norm(self, x: Tensor) -> Tensor:
        """Return the input of the memories, the normalized residual stream, (B, T, d)."""
        return self.contextual_norm(x)

    def add(self, x: Tensor, answers: Tensor) -> Tensor:
        """Add W_o of the answers, (B, T, n d) of n memories side by side, to the residual stream x, (B, T, d)."""
        return x + F.dropout(self.W_o(answers), self.dropout, self.training)

    @compile_pointwise
    def residual_update(self, x: Tensor, answers: Tensor) -> Tensor:
        """Return the residual stream after both halves; the persistent memory, if any, acts on each token alone."""
        x = self.add(x, answers)
        if self.persistent is None or self.persistent_norm is None:
            return x
        return x + F.dropout(self.persistent(self.persistent_norm(x)), self.dropout, self.training)

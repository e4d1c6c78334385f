"""The residual block of all networks: norms and linear maps around memories, which torch.compile can fuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    dropout: float
    contextual_norm: nn.Module
    contextual: nn.ModuleDict
    W_o: nn.Module
    persistent_norm: nn.Module | None
    persistent: nn.Module | None

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

"""What blocks of all networks share: norms and linear maps around memories, which torch.compile can join."""

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
    """For a method of a module that knows neither documents nor delays nor a state: where the module is `compiled` it
    is computed by what torch.compile makes of it, once for all modules of the class, whenever gradients are wanted.

    (Evaluation and decoding come in many shapes, each of which would be compiled anew.)
    """

    @wraps(method)
    def call(module: Any, *args: Any) -> Any:
        return (_compiled(method) if module.compiled and torch.is_grad_enabled() else method)(module, *args)

    return call


def set_compiled(network: nn.Module, on: bool = True) -> None:
    """Has all blocks of a network compiled, or no more. Parameters keep their names."""
    for module in network.modules():
        if hasattr(type(module), "compiled"):
            setattr(module, "compiled", on)  # noqa: B010


class Block(nn.Module):
    """x += W_o answers(norm(x));  x += persistent(norm(x)), with the answers of contextual memories or attention.

    Attributes:
        compiled: see :func:`compile_pointwise`.
        dropout: share of both sums' second terms dropped in training.
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
        """What memories see of the residual stream x, (B, T, d) each."""
        return self.contextual_norm(x)

    def add(self, x: Tensor, answers: Tensor) -> Tensor:
        """The stream after the first half, from (B, T, n d) answers of n memories side by side."""
        return x + F.dropout(self.W_o(answers), self.dropout, self.training)

    @compile_pointwise
    def residual_update(self, x: Tensor, answers: Tensor) -> Tensor:
        """The stream after both halves, for a persistent memory that is a function of a token, or for none."""
        x = self.add(x, answers)
        if self.persistent is None or self.persistent_norm is None:
            return x
        return x + F.dropout(self.persistent(self.persistent_norm(x)), self.dropout, self.training)

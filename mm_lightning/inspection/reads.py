"""Watch the reads of a network's memories during its forward pass, by hooks on its modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.keys import AverageKeys
from mm_lightning.memory.retrieval import Retrieval
from mm_lightning.networks import Network

_READ = inspect.signature(Retrieval.forward)
MAX_WEIGHTS = 1 << 24
"""Weights that are materialized at a time."""


@dataclass
class Read:
    """One read of a memory (or attention) by all positions of a batch.

    Attributes:
        layer: the layer, counted from 0.
        level: long, short or full.
        memory: the module, a ContextualMemory or an Attention.
        q, k, v, span, documents, scale: the arguments of `retrieval`.
        retrieval: the module's :class:`mm_lightning.memory.retrieval.Retrieval`.
        beta: bandwidths, (B, T, H); None for attention.
        gate: g of equation (8), (B, T, H), 1 for leaky keys; None where keys are not an average.
        decay: lambda, (B, T, H), likewise.
    """

    layer: int
    level: str
    memory: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    span: Span
    documents: Documents
    scale: float
    retrieval: Retrieval
    beta: Tensor | None = None
    gate: Tensor | None = None
    decay: Tensor | None = None

    def weights(self, first: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Yield the weights of all positions from `first` on, in float32 at least, some queries at a time.

        Returns:
            An iterator of the positions T' of some queries and their weights, (B, H, T', T).
        """
        batch, time, heads, _ = self.q.shape
        exact = torch.promote_types(self.q.dtype, torch.float32)
        q, k = self.q.to(exact), self.k.to(exact)
        size = max(1, MAX_WEIGHTS // (batch * heads * time))
        with torch.autocast(q.device.type, enabled=False):
            for at in range(first, time, size):
                queries = slice(at, min(at + size, time))
                yield queries, self.retrieval.weights(q, k, self.span, self.documents, self.scale, queries)


@contextmanager
def watch_reads(network: Network, visit: Callable[[Read], object]) -> Iterator[None]:
    """Context manager in which `visit` is called with each read of each memory, layer by layer.

    It is for forward passes over whole documents, without a state. Only `visit` holds on to tensors.
    """
    current: dict[str, Any] = {}

    def begin(layer: int, level: str, memory: nn.Module, inputs: tuple) -> None:
        current.clear()
        current.update(layer=layer, level=level, memory=memory)
        if isinstance(keys := getattr(memory, "keys", None), AverageKeys):
            gate, decay = keys.gates(inputs[0])
            current.update(gate=gate.exp(), decay=decay.exp())

    def keep_bandwidth(bandwidth: nn.Module, inputs: Any, beta: Tensor) -> None:
        current.update(beta=beta)

    def read(retrieval: Retrieval, inputs: tuple, named: dict[str, Any]) -> None:
        call = _READ.bind(retrieval, *inputs, **named)
        call.apply_defaults()
        arguments = {name: call.arguments[name] for name in ("q", "k", "v", "span", "documents", "scale")}
        if "beta" in current:  # a fixed one is the same at all positions
            current["beta"] = current["beta"].expand(arguments["q"].shape[:-1])
        visit(Read(**current, **arguments, retrieval=retrieval))
        current.clear()

    with ExitStack() as hooks:
        for layer, block in enumerate(network.blocks):
            for name, memory in block.named_modules():
                retrieval, level = getattr(memory, "retrieval", None), name.rsplit(".", 1)[-1]
                if not isinstance(retrieval, Retrieval):  # no memory, or one that keeps a state instead of pairs
                    continue
                hooks.enter_context(memory.register_forward_pre_hook(partial(begin, layer, level)))
                hooks.enter_context(retrieval.register_forward_pre_hook(read, with_kwargs=True))
                if isinstance(memory, ContextualMemory):
                    hooks.enter_context(memory.bandwidth.register_forward_hook(keep_bandwidth))
        yield

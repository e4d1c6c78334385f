"""What the memories of a network read while it runs, taken from the network's own modules."""

from __future__ import annotations

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

NUMBERS = 1 << 24
"""Weights that are written out at a time."""


@dataclass
class Read:
    """One memory (or attention) about to be read by all positions of a batch.

    Attributes:
        layer: the block, counted from 0.
        level: long, short or full.
        memory: the module, a ContextualMemory or an Attention.
        q, k, v, span, documents, scale: what it hands to its :class:`mm_lightning.memory.retrieval.Retrieval`.
        retrieval: that.
        beta: bandwidths, (B, T, H); None for attention.
        gate: g of equation (8), (B, T, H), 1 where keys are leaky; None where keys are not an average.
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
        """The weights of all positions from `first` on, in float32 at least: pieces of some queries each.

        Returns:
            the positions T' of a piece and its weights, (B, H, T', T).
        """
        batch, time, heads, _ = self.q.shape
        exact = torch.promote_types(self.q.dtype, torch.float32)
        q, k = self.q.to(exact), self.k.to(exact)
        size = max(1, NUMBERS // (batch * heads * time))
        with torch.autocast(q.device.type, enabled=False):
            for at in range(first, time, size):
                queries = slice(at, min(at + size, time))
                yield queries, self.retrieval.weights(q, k, self.span, self.documents, self.scale, queries)


@contextmanager
def watch_reads(network: Network, visit: Callable[[Read], object]) -> Iterator[None]:
    """Within it, each memory of the network is shown to `visit` when it is read, block after block.

    It is for networks that run over whole documents, without a state. Nothing is kept but what `visit` keeps.
    """
    now: dict[str, Any] = {}

    def begin(layer: int, level: str, memory: nn.Module, inputs: tuple) -> None:
        now.clear()
        now.update(layer=layer, level=level, memory=memory)
        if isinstance(keys := getattr(memory, "keys", None), AverageKeys):
            gate, decay = keys.gates(inputs[0])
            now.update(gate=gate.exp(), decay=decay.exp())

    def keep_bandwidth(bandwidth: nn.Module, inputs: Any, beta: Tensor) -> None:
        now.update(beta=beta)

    def read(retrieval: nn.Module, inputs: tuple) -> None:
        q, k, v, span, documents, _, _, scale, _ = inputs
        if "beta" in now:
            now["beta"] = now["beta"].expand(q.shape[:-1])  # a fixed one is the same at all positions
        assert isinstance(retrieval, Retrieval)
        visit(Read(**now, q=q, k=k, v=v, span=span, documents=documents, scale=scale, retrieval=retrieval))
        now.clear()

    with ExitStack() as hooks:
        for layer, block in enumerate(network.blocks):
            for name, memory in block.named_modules():
                retrieval, level = getattr(memory, "retrieval", None), name.rsplit(".", 1)[-1]
                if not isinstance(retrieval, Retrieval):  # no memory, or one that keeps a state instead of pairs
                    continue
                hooks.enter_context(memory.register_forward_pre_hook(partial(begin, layer, level)))
                hooks.enter_context(retrieval.register_forward_pre_hook(read))
                if isinstance(memory, ContextualMemory):
                    hooks.enter_context(memory.bandwidth.register_forward_hook(keep_bandwidth))
        yield

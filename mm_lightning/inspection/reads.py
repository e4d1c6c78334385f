"""What the memories of a network read while it runs, taken from the network's own modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.retrieval import Span, read_weights, watched
from mm_lightning.memory.units import ContextualMemory
from mm_lightning.networks import Network
from mm_lightning.networks.block import Block

NUMBERS = 1 << 24
"""Weights that are written out at a time."""


@dataclass
class Read:
    """One memory (or attention) about to be read by all positions of a batch.

    Attributes:
        layer: the block, counted from 0.
        level: long, short or full.
        memory: the module, a ContextualMemory or an Attention.
        q, k, v, span, documents, scale: what it hands to :func:`mm_lightning.memory.retrieval.read`.
        beta: bandwidths, (B, T, H); None for attention, as are the next two.
        gate: g of equation (8), (B, T, H); 1 where keys are leaky.
        decay: lambda, (B, T, H).
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
                yield queries, read_weights(q, k, self.span, self.documents, self.scale, queries)


@contextmanager
def watch_reads(network: Network, visit: Callable[[Read], object]) -> Iterator[None]:
    """Within it, each memory of the network is shown to `visit` when it is read, block after block.

    It is for networks that run over whole documents, without a state. Nothing is kept but what `visit` keeps.
    """
    now: dict[str, Any] = {}

    def begin(layer: int, level: str, memory: nn.Module, *_: Any) -> None:
        now.clear()
        now.update(layer=layer, level=level, memory=memory)

    def keep_features(keys: nn.Module, inputs: Any, features: tuple[Tensor, Tensor, Tensor]) -> None:
        now.update(gate=features[1].exp(), decay=features[2].exp())

    def keep_bandwidth(bandwidth: nn.Module, inputs: Any, beta: Tensor) -> None:
        now.update(beta=beta)

    def watcher(q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float) -> None:
        if not now:  # another network's
            return
        if "beta" in now:
            now["beta"] = now["beta"].expand(q.shape[:-1])  # a fixed one is the same at all positions
        visit(Read(**now, q=q, k=k, v=v, span=span, documents=documents, scale=scale))
        now.clear()

    with ExitStack() as hooks:
        for layer, block in enumerate(network.blocks):
            assert isinstance(block, Block)
            for level, memory in block.contextual.items():
                hooks.enter_context(memory.register_forward_pre_hook(partial(begin, layer, level)))
                if isinstance(memory, ContextualMemory):
                    hooks.enter_context(memory.keys.register_forward_hook(keep_features))
                    hooks.enter_context(memory.bandwidth.register_forward_hook(keep_bandwidth))
        hooks.enter_context(watched(watcher))
        yield

"""The transformer that mosaics are compared with: Llama's architecture, with everything else shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.layers import Linear, Norm
from mm_lightning.memory.pair_cache import PairCache
from mm_lightning.memory.persistent import SwiGLU
from mm_lightning.memory.retrieval import SoftmaxRetrieval
from mm_lightning.memory.state import MemoryState
from mm_lightning.networks.base import ForwardContext, Network, depth_std
from mm_lightning.networks.block import Block, compile_pointwise
from mm_lightning.networks.config import NetworkConfig, Reach
from mm_lightning.ranges import Count, Name, Positive


@dataclass
class TransformerConfig(NetworkConfig):
    """Llama-style transformer: RMSNorm, rotary positions, SwiGLU, multi-head attention.

    With levels [long, short] each attention is split in two with projections of their own, a window and a delayed one
    (Figure 5 of the v2 paper).

    Args:
        rope_base: base of the rotary position encoding; Llama 3 uses 500,000.
        kv_heads: heads of keys and values, each shared by heads / kv_heads queries (grouped-query attention); as many
            as heads if not given.
    """

    levels: tuple[Name, ...] = ("full",)
    rope_base: Positive = 500_000.0
    kv_heads: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise UserError(f"kv_heads must divide heads: {self.kv_heads} does not divide {self.heads}")
        if self.head_dim % 2:
            raise UserError(f"rotary positions need an even head dimension, got dim / heads = {self.head_dim}")

    def _delay(self, reach: Reach, drawn: int | None) -> int:
        """Return the age of the newest pair that is read: an attention without a delay reads its own position too."""
        return 0 if reach.delays == (1, 1) else super()._delay(reach, drawn)

    def build(self) -> Transformer:
        return Transformer(self)


def rotary(position: Tensor, dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cos, and -sin beside sin, of the angles position * base^(-2i/D): (B, T, 1, D) each in float32."""
    # In float64, because position times frequency loses all accuracy in float32 at long contexts.
    frequency = base ** -(torch.arange(0, dim, 2, device=position.device, dtype=torch.float64) / dim)
    angle = position[..., None, None] * frequency
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of (B, T, H, D) by the angles of their positions."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention within documents, before its output projection.

    Attributes:
        compiled: see :func:`compile_pointwise`.
    """

    compiled = False

    def __init__(self, dim: int, heads: int, kv_heads: int, std: float, dropout: float):
        super().__init__()
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        self.W_q = Linear(dim, dim, std)
        self.W_k = Linear(dim, dim // heads * kv_heads, std)
        self.W_v = Linear(dim, dim // heads * kv_heads, std)
        self.retrieval = SoftmaxRetrieval()

    def forward(
        self,
        x: Tensor,
        span: Span,
        documents: Documents,
        rotation: tuple[Tensor, Tensor],
        state: MemoryState | None = None,
    ) -> Tensor:
        """Return retrieved values (B, T, d) from inputs (B, T, d): of whole documents, or of a chunk of a stream."""
        q, k, v = self.project(x, rotation)
        pairs, dropout = None if state is None else state.pairs, self.dropout if self.training else 0.0
        return self.retrieval(q, k, v, span, documents, pairs, 0, q.shape[-1] ** -0.5, dropout).flatten(-2)

    @compile_pointwise
    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), and keys and values (B, T, kv_heads, D)."""
        q = rotate(self.W_q(x).unflatten(-1, (self.heads, -1)), rotation)
        k = rotate(self.W_k(x).unflatten(-1, (self.kv_heads, -1)), rotation)
        return q, k, self.W_v(x).unflatten(-1, (self.kv_heads, -1))

    def new_state(self, span: Span, capacity: int) -> MemoryState:
        """Return the empty inference state with `capacity` preallocated keys and values."""
        return MemoryState(PairCache(span.keep, capacity))


class TransformerBlock(Block):
    """x += W_o attention(norm(x));  x += SwiGLU(norm(x))"""

    def __init__(self, config: TransformerConfig, index: int):
        super().__init__()
        d, f = config.dim, config.persistent_dim
        std = depth_std(d, index)
        kv_heads = config.kv_heads or config.heads
        self.dropout = config.dropout
        self.contextual_norm = Norm(d, config.norm_eps, config.norm)
        self.contextual = nn.ModuleDict()
        for level in config.levels:
            self.contextual[level] = Attention(d, config.heads, kv_heads, std, config.dropout)
        self.W_o = Linear(len(config.levels) * d, d, std)
        self.persistent_norm = Norm(d, config.norm_eps, config.norm)
        self.persistent = SwiGLU(d, f, std, depth_std(f, index))

    def forward(self, x: Tensor, context: ForwardContext) -> tuple[Tensor, None]:
        """Return the residual stream after this block; there is no load-balancing loss."""
        y = self.pre_norm(x)
        answers = [
            a(y, context.spans[n], context.documents, context.rotation, context.state_of(a))
            for n, a in self.contextual.items()
        ]
        return self.residual_update(*context.keep_last(x, torch.cat(answers, -1))), None


class Transformer(Network):
    """The baseline of the papers' comparisons."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig):
        super().__init__(config, [TransformerBlock(config, index) for index in range(config.layers)])

    def context(self, documents: Documents, delays: Mapping[str, int] | None = None) -> ForwardContext:
        """Return what all blocks share, with the rotary angles of the positions within each document."""
        context = super().context(documents, delays)
        context.rotation = rotary(documents.position, self.config.head_dim, self.config.rope_base)
        return context

"""The transformer that mosaics are compared with: Llama's architecture, with everything else shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.layers import Linear, Norm
from mm_lightning.memory.pair_cache import PairCache
from mm_lightning.memory.retrieval import SoftmaxRetrieval
from mm_lightning.memory.state import MemoryState
from mm_lightning.networks.base import ForwardContext, Network, depth_std
from mm_lightning.networks.block import Block, compile_pointwise
from mm_lightning.networks.config import NetworkConfig, Reach
from mm_lightning.networks.forget_gate import ForgetGate
from mm_lightning.networks.rotary import Rotation, rotary, rotate
from mm_lightning.networks.short_convolution import ShortConvolution
from mm_lightning.ranges import AtLeastTwo, Count, Name, Positive, Range

Stretch = Annotated[float, Range(1, 1e6)]
SHARPNESS = 0.43
"""Initial s of the scalable softmax: queries begin multiplied by about log10 n."""


@dataclass
class TransformerConfig(NetworkConfig):
    """Llama-style transformer: RMSNorm, rotary positions, SwiGLU, multi-head attention.

    With levels [long, short] each attention is split in two with projections of their own, a window and a delayed one
    (Figure 5 of the v2 paper).

    Args:
        rope_base: base of the rotary position encoding; Llama 3 uses 500,000.
        kv_heads: heads of keys and values, each shared by heads / kv_heads queries (grouped-query attention); as many
            as heads if not given.
        rotary_levels: levels whose queries and keys are rotated by their positions; all by default, none with [].
        yarn_factor: how many times longer than yarn_context texts are to be: frequencies stretched as by YaRN, for
            evaluation or fine-tuning beyond the training context. 1: as trained.
        yarn_context: tokens of the training context; needed with yarn_factor.
        qk_norm: RMSNorm of each head's queries and keys, with a learned weight.
        scalable_softmax: multiply queries by s log n, n the pairs read and s learned for each head (arXiv 2501.19399).
        canon: width of a short causal convolution that is added to queries, keys and values (Canon, arXiv 2512.17351,
            which takes 4); none by default.
        forget_gate: let weights decay with the age of a pair as the text in between says (FoX, arXiv 2503.02130).
    """

    levels: tuple[Name, ...] = ("full",)
    rope_base: Positive = 500_000.0
    kv_heads: Count | None = None
    rotary_levels: tuple[Name, ...] | None = None
    yarn_factor: Stretch = 1.0
    yarn_context: AtLeastTwo | None = None
    qk_norm: bool = False
    scalable_softmax: bool = False
    canon: AtLeastTwo | None = None
    forget_gate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise UserError(f"kv_heads must divide heads: {self.kv_heads} does not divide {self.heads}")
        if self.rotary_levels is not None:
            self.rotary_levels = tuple(self.rotary_levels)
            for level in self.rotary_levels:
                if level not in self.levels:
                    raise UserError(f"rotary_levels takes levels of this network, {list(self.levels)}, got {level!r}")
        if (self.yarn_factor != 1) != (self.yarn_context is not None):
            raise UserError(
                f"yarn_factor and yarn_context go together, got {self.yarn_factor:g} and {self.yarn_context}: a factor "
                f"above 1, and the tokens of the training context"
            )
        if self.head_dim % 2 and self.rotary_levels != ():
            raise UserError(f"rotary positions need an even head dimension, got dim / heads = {self.head_dim}")

    def _delay(self, reach: Reach, drawn: int | None) -> int:
        """Return the age of the newest pair that is read: an attention without a delay reads its own position too."""
        return 0 if reach.delays == (1, 1) else super()._delay(reach, drawn)

    def build(self) -> Transformer:
        return Transformer(self)


class Attention(nn.Module):
    """Multi-head attention within documents, before its output projection.

    Args:
        config: of the network.
        rotated: whether queries and keys are rotated by their positions.
        std: initial standard deviation of the matrices.

    Attributes:
        compiled: see :func:`compile_pointwise`.
    """

    compiled = False

    def __init__(self, config: TransformerConfig, rotated: bool, std: float):
        super().__init__()
        dim, heads, kv_heads = config.dim, config.heads, config.kv_heads or config.heads
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, config.dropout
        self.rotated = rotated
        self.W_q = Linear(dim, dim, std)
        self.W_k = Linear(dim, dim // heads * kv_heads, std)
        self.W_v = Linear(dim, dim // heads * kv_heads, std)
        self.retrieval = SoftmaxRetrieval()
        self.q_norm = Norm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.convolution = ShortConvolution(dim + 2 * dim // heads * kv_heads, config.canon) if config.canon else None
        self.forget = ForgetGate(dim, kv_heads, std) if config.forget_gate else None
        self.sharpness = nn.Parameter(torch.empty(heads)) if config.scalable_softmax else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.sharpness is not None:
            nn.init.constant_(self.sharpness, SHARPNESS)

    def forward(
        self, x: Tensor, span: Span, documents: Documents, rotation: Rotation, state: MemoryState | None = None
    ) -> Tensor:
        """Return retrieved values (B, T, d) from inputs (B, T, d): of whole documents, or of a chunk of a stream."""
        if self.convolution is None:
            q, k, v = self.project(x, rotation)
        else:
            projected = [self.W_q(x), self.W_k(x), self.W_v(x)]
            joined, carried = torch.cat(projected, -1), None if state is None else state.carried("convolution")
            mixed = joined + self.convolution(joined, documents, carried)
            q, k, v = mixed.split([y.shape[-1] for y in projected], -1)
            q, k, v = self.place(q, k, v, rotation)
        if self.sharpness is not None:
            log_n = documents.count(span).clamp(min=1).log()
            q = (q * (self.sharpness * log_n[..., None])[..., None]).to(q.dtype)
        pairs, dropout = None if state is None else state.pairs, self.dropout if self.training else 0.0
        scale, dim = q.shape[-1] ** -0.5, v.shape[-1]
        if self.forget is not None:
            c = self.forget.sums(x, documents, None if state is None else state.carried("forget"))
            q, k, v = self.forget.extend(q, k, v, c, scale)
        return self.retrieval(q, k, v, span, documents, pairs, 0, scale, dropout)[..., :dim].flatten(-2)

    @compile_pointwise
    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), and keys and values (B, T, kv_heads, D)."""
        return self.place(self.W_q(x), self.W_k(x), self.W_v(x), rotation)

    def place(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return projections by heads, with queries and keys normalized and rotated to their positions."""
        q = q.unflatten(-1, (self.heads, -1))
        k, v = (y.unflatten(-1, (self.kv_heads, -1)) for y in (k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotated:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return q, k, v

    def new_state(self, span: Span, capacity: int) -> MemoryState:
        """Return the empty inference state with `capacity` preallocated keys and values."""
        return MemoryState(PairCache(span.keep, capacity))


class TransformerBlock(Block):
    """x += W_o attention(norm(x));  x += SwiGLU(norm(x))"""

    def contextual_memories(self, config: TransformerConfig, index: int) -> dict[str, nn.Module]:
        rotated = config.levels if config.rotary_levels is None else config.rotary_levels
        std = depth_std(config.dim, index)
        return {level: Attention(config, level in rotated, std) for level in config.levels}

    def read(self, level: str, x: Tensor, context: ForwardContext) -> Tensor:
        attention = self.contextual[level]
        return attention(x, context.spans[level], context.documents, context.rotation, context.state_of(attention))


class Transformer(Network):
    """The baseline of the papers' comparisons."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig):
        super().__init__(config, [self.block(config, index) for index in range(config.layers)])

    @staticmethod
    def block(config: Any, index: int) -> Block:
        """Build the block of this index."""
        return TransformerBlock(config, index)

    def context(self, documents: Documents, delays: Mapping[str, int] | None = None) -> ForwardContext:
        """Return what all blocks share, with the rotary angles of the positions within each document."""
        context = super().context(documents, delays)
        c = self.config
        context.rotation = rotary(documents.position, c.head_dim, c.rope_base, c.yarn_factor, c.yarn_context or 1)
        return context

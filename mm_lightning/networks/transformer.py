"""The transformer that mosaics are compared with: Llama's architecture, with everything else shared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.layers import Linear, RMSNorm
from mm_lightning.memory.persistent import SwiGLU
from mm_lightning.memory.retrieval import Span, read
from mm_lightning.networks.base import Network, NetworkConfig, depth_std


@dataclass
class TransformerConfig(NetworkConfig):
    """Llama-style transformer: RMSNorm, rotary positions, SwiGLU, multi-head attention.

    Args:
        rope_base: base of the rotary position encoding; Llama 3 uses 500,000.
    """

    rope_base: float = 500_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 2:
            raise UserError(f"rotary positions need an even head size, got dim / heads = {self.head_dim}")

    def build(self) -> Transformer:
        return Transformer(self)


def rotary(position: Tensor, dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles position * base^(-2i/D), each (B, T, 1, D/2) in float32."""
    # In float64, because position times frequency loses all accuracy in float32 at long contexts.
    frequency = base ** -(torch.arange(0, dim, 2, device=position.device, dtype=torch.float64) / dim)
    angle = position[..., None, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (x_i, x_{i + D/2}) of (B, T, H, D) by the angles of their positions."""
    cos, sin = rotation
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head attention within documents."""

    def __init__(self, dim: int, heads: int, std: float):
        super().__init__()
        self.heads = heads
        self.W_q = Linear(dim, dim, std)
        self.W_k = Linear(dim, dim, std)
        self.W_v = Linear(dim, dim, std)
        self.W_o = Linear(dim, dim, std)

    def forward(self, x: Tensor, documents: Documents, rotation: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (W(x).unflatten(-1, (self.heads, -1)) for W in (self.W_q, self.W_k, self.W_v))
        q, k = rotate(q, rotation), rotate(k, rotation)
        return self.W_o(read(q, k, v, Span(0), documents, scale=q.shape[-1] ** -0.5).flatten(-2))


class TransformerBlock(nn.Module):
    """x += attention(norm(x));  x += SwiGLU(norm(x))"""

    def __init__(self, config: TransformerConfig, index: int):
        super().__init__()
        d, f = config.dim, config.persistent_dim
        std = depth_std(d, index)
        self.attention_norm = RMSNorm(d, config.norm_eps)
        self.attention = Attention(d, config.heads, std)
        self.persistent_norm = RMSNorm(d, config.norm_eps)
        self.persistent = SwiGLU(d, f, std, depth_std(f, index))

    def forward(self, x: Tensor, documents: Documents, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), documents, rotation)
        return x + self.persistent(self.persistent_norm(x))


class Transformer(Network):
    """The baseline of the papers' comparisons."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig):
        super().__init__(config, [TransformerBlock(config, index) for index in range(config.layers)])

    def context(self, documents: Documents) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The rotary angles of the positions within each document."""
        return rotary(documents.position, self.config.head_dim, self.config.rope_base)

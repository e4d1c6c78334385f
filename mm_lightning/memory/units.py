"""A contextual memory: keys, values, bandwidth and the read, together."""

from __future__ import annotations

from torch import Tensor, nn

from mm_lightning.memory.bandwidth import AdaptiveBandwidth
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.features import Values
from mm_lightning.memory.layers import Linear
from mm_lightning.memory.recurrence import gated_average
from mm_lightning.memory.retrieval import Span, read


class GatedKeys(nn.Module):
    """Keys of equation (8): a gated, time-variant average of W_phi x over the document so far, of norm 1."""

    def __init__(self, dim: int, heads: int, std: float):
        super().__init__()
        self.heads = heads
        self.W_phi = Linear(dim, dim, std)
        self.W_g = Linear(dim, heads, std)
        self.W_lambda = Linear(dim, heads, std)

    def forward(self, x: Tensor, documents: Documents) -> Tensor:
        """(B, T, H, D) keys from (B, T, d) inputs."""
        raw = self.W_phi(x).unflatten(-1, (self.heads, -1))
        return gated_average(raw, self.W_g(x), -self.W_lambda(x).abs(), documents)


class ContextualMemory(nn.Module):
    """H associative memories over the documents' own past, one a head.

    Query and key are the same vector. Which pairs are read is decided by the caller's span, so that the short-term
    and the long-term memory are this one module.
    """

    def __init__(self, dim: int, heads: int, std: float):
        super().__init__()
        self.heads = heads
        self.keys = GatedKeys(dim, heads, std)
        self.W_psi = Linear(dim, dim, std)
        self.values = Values(heads)
        self.bandwidth = AdaptiveBandwidth(heads)

    def forward(self, x: Tensor, span: Span, documents: Documents) -> Tensor:
        """(B, T, d) retrieved values from (B, T, d) inputs."""
        k = self.keys(x, documents)
        v = self.values(self.W_psi(x).unflatten(-1, (self.heads, -1)), documents)
        beta = self.bandwidth(span.count(documents.position))
        q = k * beta[..., None].to(k.dtype)
        return read(q, k, v, span, documents).flatten(-2)

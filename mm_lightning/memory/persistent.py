"""Persistent memory: what training taught, independent of the context."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mm_lightning.memory.layers import Linear


class SwiGLU(nn.Module):
    """W_2(SiLU(W_1 x) * W_3 x) with f hidden units."""

    def __init__(self, dim: int, hidden: int, std_in: float, std_out: float):
        super().__init__()
        self.W_1 = Linear(dim, hidden, std_in)
        self.W_3 = Linear(dim, hidden, std_in)
        self.W_2 = Linear(hidden, dim, std_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.W_2(F.silu(self.W_1(x)) * self.W_3(x))

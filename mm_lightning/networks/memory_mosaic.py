"""Memory Mosaics v2: blocks of long-term, short-term and persistent memory (section 3 of the v2 paper)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.layers import Linear, RMSNorm
from mm_lightning.memory.persistent import SwiGLU
from mm_lightning.memory.retrieval import Span
from mm_lightning.memory.units import ContextualMemory
from mm_lightning.networks.base import Network, NetworkConfig, depth_std

Level = Literal["long", "short"]


@dataclass
class MemoryMosaicConfig(NetworkConfig):
    """Memory Mosaics v2.

    Args:
        levels: the contextual memories of a block. Without `long` or `short` that level's parameters do not exist.
        short_term_window: h; the short-term memory reads the pairs t-h+1 .. t-1.
        long_term_delay: [smallest, largest] m of a training step, drawn anew for each; the long-term memory reads
            the pairs 1 .. t-m.
        inference_delay: m at evaluation.
    """

    levels: tuple[Level, ...] = ("long", "short")
    short_term_window: int = 256
    long_term_delay: tuple[int, int] = (64, 256)
    inference_delay: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.levels = tuple(self.levels)
        self.long_term_delay = (self.long_term_delay[0], self.long_term_delay[1])
        low, high = self.long_term_delay
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise UserError(f"levels must name long, short or both, each once, got {list(self.levels)}")
        if self.short_term_window < 2:
            raise UserError(
                f"short_term_window must be at least 2, got {self.short_term_window}: "
                f"a window of h tokens holds h-1 pairs, so a smaller one holds none"
            )
        if low > high:
            raise UserError(f"long_term_delay must be [smallest, largest], got [{low}, {high}]: swap them")
        if min(low, self.inference_delay) < 1:
            raise UserError(
                f"long_term_delay and inference_delay must be at least 1, got [{low}, {high}] and "
                f"{self.inference_delay}: a memory never reads its own position"
            )

    def build(self) -> MemoryMosaic:
        return MemoryMosaic(self)


class MosaicBlock(nn.Module):
    """x += W_o [long(norm(x)), short(norm(x))];  x += persistent(norm(x))"""

    def __init__(self, config: MemoryMosaicConfig, index: int):
        super().__init__()
        d, f = config.dim, config.persistent_dim
        std = depth_std(d, index)
        self.contextual_norm = RMSNorm(d, config.norm_eps)
        self.contextual = nn.ModuleDict({n: ContextualMemory(d, config.heads, std) for n in config.levels})
        self.W_o = Linear(len(config.levels) * d, d, std)
        self.persistent_norm = RMSNorm(d, config.norm_eps)
        self.persistent = SwiGLU(d, f, std, depth_std(f, index))

    def forward(self, x: Tensor, documents: Documents, spans: dict[str, Span]) -> Tensor:
        y = self.contextual_norm(x)
        x = x + self.W_o(torch.cat([m(y, spans[n], documents) for n, m in self.contextual.items()], -1))
        return x + self.persistent(self.persistent_norm(x))


class MemoryMosaic(Network):
    """A language model whose contextual memories are kernel regressions over the document so far."""

    config: MemoryMosaicConfig

    def __init__(self, config: MemoryMosaicConfig):
        super().__init__(config, [MosaicBlock(config, index) for index in range(config.layers)])

    def context(self, documents: Documents, long_term_delay: int | None = None) -> dict[str, Span]:  # type: ignore[override]
        """The span each level reads; `long_term_delay` is m, by default the one of inference."""
        delay = self.config.inference_delay if long_term_delay is None else long_term_delay
        return {"long": Span(delay), "short": Span(1, self.config.short_term_window - 1)}

    def draw_step(self, seed: int, step: int) -> dict[str, Any]:
        draw = random.Random(f"long-term delay of seed {seed}, step {step}")
        return {"long_term_delay": draw.randint(*self.config.long_term_delay)}

    def memory_scalars(self) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for block in self.blocks:
            assert isinstance(block, MosaicBlock)
            for level, memory in block.contextual.items():
                assert isinstance(memory, ContextualMemory)
                scalars = {
                    "alpha": memory.bandwidth.alpha,
                    "beta_0": memory.bandwidth.beta_0,
                    "beta_1": memory.bandwidth.beta_1,
                    "gamma": memory.values.gamma,
                    "alpha_psi": memory.values.alpha_psi,
                }
                for name, value in scalars.items():
                    found.setdefault(f"{level}/{name}", []).append(value.detach())
        return {name: torch.cat(values) for name, values in found.items()}

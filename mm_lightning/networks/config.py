"""What every network is configured by: its dimensions, and the spans that its memories read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mm_lightning.errors import UserError
from mm_lightning.memory.retrieval import Span
from mm_lightning.ranges import AtLeastTwo, Count, Part, Range, Share, check_fields

if TYPE_CHECKING:
    from mm_lightning.networks.base import Network

Level = Literal["long", "short", "full"]
Vocabulary = Annotated[int, Range(1, 2**31 - 1)]
Layers = Annotated[int, Range(1, 10_000)]
Dimension = Annotated[int, Range(1, 2**20)]
Hidden = Annotated[int, Range(1, 2**24)]


@dataclass
class NetworkConfig:
    """What all networks have: dimensions, and the spans that their memories (or attentions) read.

    Args:
        vocab_size: tokens of the vocabulary, V.
        layers: blocks, L.
        dim: hidden size, d.
        heads: heads of each memory (or attention), H; must divide dim.
        persistent_dim: hidden size of the persistent memory (the SwiGLU network), f.
        norm_eps: added to the mean square in RMSNorm. Embeddings begin with a mean square of 1/(2d), so keep it small.
        norm: rms, or layer for LayerNorm without bias (v1).
        tied: whether the classifier's weights are the embedding's.
        dropout: share of retrieval weights, and of the outputs of each half-block, dropped in training.
        levels: the contextual memories (or attentions) of a block, whose outputs are concatenated: `long` and `short`,
            `full` (all that came before), or any of them. A level that is not named has no parameters.
        short_term_window: h; the short-term memory reads the h-1 pairs t-h+1 .. t-1.
        long_term_delay: [smallest, largest] m of a training step, drawn anew for each; the long-term memory reads
            the pairs 1 .. t-m.
        inference_delay: m at evaluation; at least 1, as a memory never reads its own position.
    """

    vocab_size: Vocabulary = 128256
    layers: Layers = 24
    dim: Dimension = 2048
    heads: Dimension = 16
    persistent_dim: Hidden = 6144
    norm_eps: Share = 1e-6
    norm: Literal["rms", "layer"] = "rms"
    tied: bool = False
    dropout: Part = 0.0
    levels: tuple[Level, ...] = ("long", "short")
    short_term_window: AtLeastTwo = 256
    long_term_delay: tuple[Count, Count] = (64, 256)
    inference_delay: Count = 64

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dim % self.heads:
            raise UserError(
                f"heads must divide dim: {self.heads} heads do not divide dim {self.dim}; "
                f"the nearest number of heads that does is {self._nearest_heads()}"
            )
        self._check_spans()

    def _check_spans(self) -> None:
        self.levels = tuple(self.levels)
        self.long_term_delay = (self.long_term_delay[0], self.long_term_delay[1])
        low, high = self.long_term_delay
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise UserError(f"levels must name one or more of long, short and full, each once, got {list(self.levels)}")
        if low > high:
            raise UserError(f"long_term_delay must be [smallest, largest], got [{low}, {high}]: swap them")

    def span(self, level: Level, delay: int) -> Span:
        """What a memory of this level reads; `delay` is m."""
        h = self.short_term_window
        return {"long": Span(delay), "short": Span(1, h - 1), "full": Span(1)}[level]

    def _nearest_heads(self) -> int:
        divisors = (h for h in range(1, self.dim + 1) if self.dim % h == 0)
        return min(divisors, key=lambda h: abs(h - self.heads))

    def described(self) -> dict[str, Any]:
        """Its class and fields in plain types, as checkpoints and config.json have them."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"class": type(self).__name__, "fields": fields}

    @property
    def head_dim(self) -> int:
        """D = d / H"""
        return self.dim // self.heads

    def build(self) -> Network:
        """The network with these dimensions, initialised (unless the default device is meta)."""
        raise TypeError("NetworkConfig has no network of its own: use MemoryMosaicConfig or TransformerConfig")

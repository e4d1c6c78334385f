"""What a network costs, counted from its configuration alone: parameters, FLOPs and bytes.

FLOPs follow Casson's count, which the v2 paper uses: two for each weight outside the embedding and each token, and for
each contextual memory (or attention) of each block 2 n d, with n the pairs read.
"""

from __future__ import annotations

from dataclasses import dataclass

from mm_lightning.networks.base import NetworkConfig
from mm_lightning.networks.memory_mosaic import MemoryMosaicConfig
from mm_lightning.networks.transformer import TransformerConfig


@dataclass(frozen=True)
class Part:
    """One part of a network, all blocks together.

    Attributes:
        name: what it is.
        parameters: how many numbers are learned.
        active: how many of them multiply a token: matrices outside the embedding.
        reads: hidden size times blocks of the reads made here, if it is a contextual memory or attention.
        window: the most pairs a query reads here; None for all.
    """

    name: str
    parameters: int
    active: int
    reads: int = 0
    window: int | None = None

    def forward_flops(self, context: int) -> int:
        """Floating-point operations per token in the forward pass with `context` tokens in the context."""
        pairs = context if self.window is None else min(context, self.window)
        return 2 * self.active + 2 * pairs * self.reads


def parts(config: NetworkConfig) -> list[Part]:
    """The parts of a network, from the embedding to the classifier."""
    d, f, L, V = config.dim, config.persistent_dim, config.layers, config.vocab_size
    return [
        Part("embedding", V * d, 0),
        *_contextual(config),
        Part("persistent memory", 3 * d * f * L, 3 * d * f * L),
        Part("norms", (2 * L + 1) * d, 0),
        Part("classifier", V * d, V * d),
    ]


def _contextual(config: NetworkConfig) -> list[Part]:
    d, H, L = config.dim, config.heads, config.layers
    if isinstance(config, TransformerConfig):
        return [Part("attention", 4 * d * d * L, 4 * d * d * L, d * L)]
    if not isinstance(config, MemoryMosaicConfig):
        raise TypeError(f"no cost is known for {type(config).__name__}")
    # W_phi, W_psi, this level's half of W_o; the gates W_g and W_lambda; five scalars a head.
    matrices, gates, scalars = 3 * d * d * L, 2 * d * H * L, 5 * H * L
    windows = {"long": None, "short": config.short_term_window}
    return [
        Part(f"{level}-term memory", matrices + gates + scalars, matrices + gates, d * L, windows[level])
        for level in config.levels
    ]


def parameters(config: NetworkConfig) -> int:
    """Learned numbers of the whole network."""
    return sum(part.parameters for part in parts(config))


def forward_flops_per_token(config: NetworkConfig, context: int) -> int:
    """Floating-point operations per token of a forward pass at a context of `context` tokens."""
    return sum(part.forward_flops(context) for part in parts(config))


def training_flops_per_token(config: NetworkConfig, context: int) -> int:
    """Forward and backward: three times the forward pass. Recomputed activations do no useful work: not counted."""
    return 3 * forward_flops_per_token(config, context)


def activation_bytes_per_token(
    config: NetworkConfig, compute_bytes: int, residual_bytes: int, checkpointing: bool = False
) -> int:
    """Bytes that a forward pass keeps for the backward pass, per token; the loss's logits not included.

    Counted tensor by tensor for the fused CUDA path. Small per-head tensors (gates, norms, log-sum-exps) are counted as
    48 bytes a head and level.

    Args:
        config: the network.
        compute_bytes: of a number that goes into a matrix product: 2 in bf16, 4 in float32.
        residual_bytes: of a number of the residual stream: 4, or 2 where parameters themselves are in bf16.
        checkpointing: whether blocks are recomputed: then each keeps its input, and one at a time the rest.
    """
    d, f = config.dim, config.persistent_dim
    if isinstance(config, MemoryMosaicConfig):
        # Raw and averaged keys, queries; raw and averaged values; the keys and values that can be read; the answer;
        # and once more the answer, beside those of the other levels.
        contextual = len(config.levels) * (9 * d * compute_bytes + 48 * config.heads)
    else:
        contextual = 4 * d * compute_bytes  # q, k, v, the answer
    block = contextual + 2 * d * compute_bytes + 4 * f * compute_bytes + 2 * d * residual_bytes
    ends = d * (2 * residual_bytes + 8)  # embedding, last norm, and the classifier's float32 input and its gradient
    if checkpointing:
        return config.layers * d * residual_bytes + block + ends
    return config.layers * block + ends

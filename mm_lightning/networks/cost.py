"""What a network costs, counted from its configuration alone: parameters, FLOPs and bytes.

FLOPs follow Casson's count, which the v2 paper uses: two for each weight outside the embedding and each token, and for
each contextual memory (or attention) of each block 2 n d, with n the pairs read.
"""

from __future__ import annotations

from dataclasses import dataclass

from mm_lightning.networks.base import Checkpointing
from mm_lightning.networks.config import Level, NetworkConfig
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
    d, L, V = config.dim, config.layers, config.vocab_size
    norms = 1 if isinstance(config, MemoryMosaicConfig) and config.persistent == "none" else 2
    return [
        Part("embedding", V * d, 0),
        *(_contextual(config, level) for level in config.levels),
        *_persistent(config),
        Part("norms", (norms * L + 1) * d * (2 if getattr(config, "bias", False) else 1), 0),
        Part("classifier", 0 if config.tied else V * d, V * d),
    ]


def _contextual(config: NetworkConfig, level: Level) -> Part:
    """One level, with its part of W_o."""
    d, H, L = config.dim, config.heads, config.layers
    if isinstance(config, TransformerConfig):
        shared = d // H * (config.kv_heads or H)
        matrices, scalars, kind = 2 * d * d + 2 * d * shared, 0, "attention"
    elif isinstance(config, MemoryMosaicConfig):
        gates = 2 * d * H if config.keys == "gated" else 0
        matrices, kind = 3 * d * d + gates, "memory"
        per_head = (config.keys == "leaky") + (3 if config.bandwidth == "adaptive" else 1) + 1 + config.look_ahead
        scalars = per_head * H + (3 * d if config.bias else 0)
    else:
        raise TypeError(f"no cost is known for {type(config).__name__}")
    window = config.short_term_window if level == "short" else None
    name = kind if level == "full" else f"{level}-term {kind}"
    return Part(name, (matrices + scalars) * L, matrices * L, d * L, window)


def _persistent(config: NetworkConfig) -> list[Part]:
    d, f, H, L = config.dim, config.persistent_dim, config.heads, config.layers
    name, kind = "persistent memory", getattr(config, "persistent", "swiglu")
    if isinstance(config, MemoryMosaicConfig) and kind == "key_value":
        slots = 2 * config.persistent_banks * config.persistent_slots * d
        biases = 2 * d if config.bias else 0
        return [Part(name, (2 * d * d + slots + 3 * H + biases) * L, (2 * d * d + slots) * L)]
    if isinstance(config, MemoryMosaicConfig) and kind == "experts":
        router = d * config.experts
        active = 3 * d * f * config.experts_per_token + router
        return [Part(name, (3 * d * f * config.experts + router) * L, active * L)]
    return [] if kind == "none" else [Part(name, 3 * d * f * L, 3 * d * f * L)]


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
    config: NetworkConfig, compute_bytes: int, residual_bytes: int, checkpointing: Checkpointing = False
) -> int:
    """Bytes that a forward pass keeps for the backward pass, per token; the loss's logits not included.

    Counted tensor by tensor for the fused CUDA path. Small per-head tensors (gates, norms, log-sum-exps) are counted as
    48 bytes a head and level.

    Args:
        config: the network.
        compute_bytes: of a number that goes into a matrix product: 2 in bf16, 4 in float32.
        residual_bytes: of a number of the residual stream: 4, or 2 where parameters themselves are in bf16.
        checkpointing: whether blocks are recomputed: then each keeps its input, and one at a time the rest; selective
            keeps what matrix products and reads gave as well.
    """
    d = config.dim
    if isinstance(config, MemoryMosaicConfig):
        # Raw and averaged keys, queries; raw and averaged values; the keys and values that can be read; the answer;
        # and once more the answer, beside those of the other levels.
        contextual = len(config.levels) * (9 * d * compute_bytes + 48 * config.heads)
    else:
        assert isinstance(config, TransformerConfig)
        shared = 2 * d * (config.kv_heads or config.heads) // config.heads  # k and v
        each = 2 * d + shared + (d if len(config.levels) > 1 else 0)  # q, k, v, the answer, and again beside others
        delayed = shared if "long" in config.levels else 0  # the keys and values that can be read
        contextual = (len(config.levels) * each + delayed) * compute_bytes
    block = contextual + (2 * d + _persistent_activations(config)) * compute_bytes + 2 * d * residual_bytes
    ends = d * (2 * residual_bytes + 8)  # embedding, last norm, and the classifier's float32 input and its gradient
    if not checkpointing:
        return config.layers * block + ends
    kept = _products(config) * compute_bytes if checkpointing == "selective" else 0
    return config.layers * (d * residual_bytes + kept) + max(block - kept, 0) + ends


def _products(config: NetworkConfig) -> int:
    """Numbers that the matrix products and the reads of a block give for each token, gates aside."""
    d, f, kind = config.dim, config.persistent_dim, getattr(config, "persistent", "swiglu")
    if isinstance(config, MemoryMosaicConfig):
        contextual = 3 * d * len(config.levels)  # raw keys, raw values, the answer
    else:
        assert isinstance(config, TransformerConfig)
        contextual = len(config.levels) * (2 * d + 2 * d * (config.kv_heads or config.heads) // config.heads)
    if kind == "key_value":
        return contextual + 4 * d  # W_o; raw keys, the answer of the slots, and its map
    if isinstance(config, MemoryMosaicConfig) and kind == "experts":
        return contextual + d + config.experts_per_token * (2 * f + d)
    return contextual + d + (0 if kind == "none" else 2 * f + d)


def _persistent_activations(config: NetworkConfig) -> int:
    """Numbers that the persistent memory keeps for each token, its input aside."""
    d, f, kind = config.dim, config.persistent_dim, getattr(config, "persistent", "swiglu")
    if kind == "key_value":
        return 6 * d  # raw and averaged keys, queries, the answer of the slots, its scaled form, that in rows
    if isinstance(config, MemoryMosaicConfig) and kind == "experts":
        return config.experts_per_token * (4 * f + 2 * d)  # and each choice's input and answer
    return 0 if kind == "none" else 4 * f

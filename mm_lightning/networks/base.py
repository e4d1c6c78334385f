"""What every network shares: the configuration, embedding, blocks, classifier and loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.layers import Embedding, Linear, RMSNorm

try:
    from torch.nn import LinearCrossEntropyOptions  # torch >= 2.15
except ImportError:
    LinearCrossEntropyOptions = None  # type: ignore[assignment, misc]

IGNORE = -100
"""The target that counts for nothing."""


@dataclass
class NetworkConfig:
    """The dimensions that all networks have.

    Args:
        vocab_size: tokens of the vocabulary, V.
        layers: blocks, L.
        dim: hidden size, d.
        heads: heads of each memory (or attention), H; must divide dim.
        persistent_dim: hidden size of the persistent memory (the SwiGLU network), f.
        norm_eps: added to the mean square in RMSNorm. Embeddings begin with a mean square of 1/(2d), so keep it small.
    """

    vocab_size: int = 128256
    layers: int = 24
    dim: int = 2048
    heads: int = 16
    persistent_dim: int = 6144
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "dim", "heads", "persistent_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise UserError(
                f"heads must divide dim: {self.heads} heads do not divide dim {self.dim}; "
                f"the nearest number of heads that does is {self._nearest_heads()}"
            )

    def _nearest_heads(self) -> int:
        divisors = (h for h in range(1, self.dim + 1) if self.dim % h == 0)
        return min(divisors, key=lambda h: abs(h - self.heads))

    @property
    def head_dim(self) -> int:
        """D = d / H"""
        return self.dim // self.heads

    def build(self) -> Network:
        """The network with these dimensions, initialised (unless the default device is meta)."""
        raise TypeError("NetworkConfig has no network of its own: use MemoryMosaicConfig or TransformerConfig")


def depth_std(fan_in: int, block: int) -> float:
    """sigma = 1 / sqrt(2 fan_in (l + 1)) of Table 6 for a matrix in block l, counted from 0."""
    return 1 / math.sqrt(2 * fan_in * (block + 1))


class Classifier(Linear):
    """The linear map onto the vocabulary, and the loss: where torch can, without having all logits at once."""

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(B, T, V) logits; or the mean cross-entropy in nats over (B, T) targets other than -100, a float32 scalar."""
        if targets is None:
            return super().forward(x)
        x, targets = x.flatten(0, -2), targets.flatten()
        tokens, dim = x.shape
        if LinearCrossEntropyOptions is None or tokens < dim or self.out_features <= dim:
            return F.cross_entropy(super().forward(x).float(), targets, ignore_index=IGNORE)
        # In a shorter type it would return the loss itself rounded to that type.
        with torch.autocast(x.device.type, enabled=False):
            return F.linear_cross_entropy(
                x.float(), self.weight.float(), targets, ignore_index=IGNORE, options=LinearCrossEntropyOptions()
            )


class Network(nn.Module):
    """A language model: embedding, blocks, norm, classifier. Embedding and classifier are not tied.

    Subclasses give the blocks and say what these read in a step.

    Attributes:
        config: what it was built from.
        activation_checkpointing: whether to recompute each block in the backward pass instead of keeping its
            activations.
    """

    def __init__(self, config: NetworkConfig, blocks: list[nn.Module]):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        std = 1 / math.sqrt(2 * config.dim)
        self.embedding = Embedding(config.vocab_size, config.dim, std)
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.classifier = Classifier(config.dim, config.vocab_size, std)

    def forward(
        self, tokens: Tensor, documents: Documents | None = None, targets: Tensor | None = None, **step: Any
    ) -> Tensor:
        """Logits or loss.

        Args:
            tokens: (B, T) int64.
            documents: their boundaries; by default every row is one document.
            targets: (B, T) int64, the next tokens; -100 where there is none to predict.
            step: what :meth:`draw_step` drew for a training step; nothing at evaluation.

        Returns:
            (B, T, V) logits, or with targets the mean loss in nats per token, a float32 scalar.
        """
        documents = documents or Documents.whole(tokens.shape[0], tokens.shape[1], tokens.device)
        context = self.context(documents, **step)
        x = self.embedding(tokens)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, documents, context, use_reentrant=False)
            else:
                x = block(x, documents, context)
        return self.classifier(self.norm(x), targets)

    def context(self, documents: Documents, **step: Any) -> Any:
        """What all blocks share in a forward pass, handed to each of them."""
        raise TypeError(f"{type(self).__name__} does not say what its blocks read")

    def draw_step(self, seed: int, step: int) -> dict[str, Any]:
        """What is random about training step `step`: the same on every rank and in every rerun of the seed."""
        return {}

    def reset_parameters(self) -> None:
        """Initialises every layer anew, wherever its parameters are."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def memory_scalars(self) -> dict[str, Tensor]:
        """The learned scalars by memory level and name, e.g. `long/alpha`, each (L * H,)."""
        return {}

    def decay_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters with weight decay (matrices) and without (scalars and norms)."""
        # DeepSpeed's stage 3 leaves an empty shard in a parameter's place and its shape in ds_shape.
        matrices = [p for p in self.parameters() if len(getattr(p, "ds_shape", p.shape)) >= 2]
        chosen = {id(p) for p in matrices}
        return matrices, [p for p in self.parameters() if id(p) not in chosen]

"""The Llama of `transformers`, as an opponent of networks with the same dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.networks import NetworkConfig


def build_llama(config: NetworkConfig) -> Any:
    """A LlamaForCausalLM of these dimensions with random weights.

    Raises:
        UserError: `transformers` is not installed.
    """
    try:
        from mm_lightning.checkpoint import set_deepspeed_accelerator

        set_deepspeed_accelerator()  # which transformers imports
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise UserError(
            "transformers is not installed: pip install transformers, or leave hf_llama out of --against"
        ) from error
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.persistent_dim,
            vocab_size=config.vocab_size,
            tie_word_embeddings=config.tied,
            max_position_embeddings=1 << 20,
        )
    )


class LlamaInTraining(nn.Module):
    """That Llama, called as our networks are: with its own loss."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.llama = build_llama(config)

    def step_randomness(self, seed: int, step: int) -> dict[str, Any]:
        """Nothing is random about a step."""
        return {}

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss in nats per token."""
        return self.llama(tokens, labels=targets, shift_labels=targets, use_cache=False).loss


@dataclass
class LlamaOf:
    """Stands for the Llama with the dimensions of one of our networks.

    Attributes:
        like: our transformer of these dimensions.
    """

    like: NetworkConfig

    def build(self) -> LlamaInTraining:
        """The network."""
        return LlamaInTraining(self.like)

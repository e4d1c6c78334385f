"""The workload of a benchmark: dimensions, batch and precision, and the networks of the same dimensions to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.networks import V1, MemoryMosaicConfig, NetworkConfig, TransformerConfig

Precision = Literal["bf16", "fp32"]
Opponent = Literal["transformer", "v1", "hf_llama"]

DIMENSIONS = ("dim", "layers", "heads", "persistent_dim", "vocab_size")
BATCH = ("context_length", "batch_size", "precision")
_SHARED = [field.name for field in fields(NetworkConfig) if field.name not in ("levels", "norm", "dropout")]


@dataclass(frozen=True)
class Workload:
    """The network, context, batch and precision of a benchmark.

    Attributes:
        network: the memory mosaic.
        context_length: tokens of a sequence, T.
        batch_size: sequences of a forward pass, B.
        precision: bf16 or fp32.
    """

    network: MemoryMosaicConfig
    context_length: int
    batch_size: int
    precision: Precision

    @classmethod
    def create(cls, config: Sequence[str] | None, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Workload:
        """Combine defaults, a training config with overlays, and options (those that are not None).

        Raises:
            UserError: the config cannot be read, or a dimension is not possible.
        """
        values: dict[str, Any] = {"dim": 8, "layers": 1, "heads": 1, "vocab_size": 2, "precision": "fp32"}
        values |= {"context_length": 1, "batch_size": 1, **defaults}
        network: NetworkConfig | None = None
        if config is not None:
            from mm_lightning.training.parse_fit import parse_fit

            fit = parse_fit([word for path in config for word in ("--config", path)])
            network = fit.model.network
            values |= {name: getattr(network, name) for name in DIMENSIONS}
            values |= {"context_length": fit.data.context_length, "batch_size": fit.data.micro_batch_size}
            values["precision"] = "bf16" if str(fit.trainer.precision).startswith("bf16") else "fp32"
        values |= {name: value for name, value in given.items() if value is not None}
        if network is None or given.get("dim") is not None:
            values["persistent_dim"] = given.get("persistent_dim") or 3 * values["dim"]
        dimensions = {name: values.pop(name) for name in DIMENSIONS}
        if isinstance(network, MemoryMosaicConfig):
            return cls(replace(network, **dimensions), **values)
        shared = {} if network is None else {name: getattr(network, name) for name in _SHARED}
        return cls(MemoryMosaicConfig(**shared | dimensions), **values)

    @property
    def dtype(self) -> torch.dtype:
        """The type of inputs of matrix products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers by the names of their options."""
        dimensions = {name: getattr(self.network, name) for name in DIMENSIONS}
        return dimensions | {name: getattr(self, name) for name in BATCH}


def transformer_like(mosaic: MemoryMosaicConfig) -> TransformerConfig:
    """Return our transformer of the same dimensions, which attends to all positions before."""
    return TransformerConfig(**{name: getattr(mosaic, name) for name in _SHARED}, dropout=mosaic.dropout)


def v1_like(mosaic: MemoryMosaicConfig) -> MemoryMosaicConfig:
    """Return v1 with as many slots as give it the number of parameters of the transformer of these dimensions."""
    # 3 d^2 + 2 d^2 + 2 S d numbers a block, where the transformer has 4 d^2 + 3 f d
    slots = max(1, (3 * mosaic.persistent_dim - mosaic.dim) // 2)
    shared = {name: getattr(mosaic, name) for name in _SHARED if name != "tied"}
    return MemoryMosaicConfig(**shared, **{**V1, "tied": mosaic.tied}, persistent_slots=slots)


class Llama(nn.Module):
    """The Llama of `transformers` with random weights, called as our networks are."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        from mm_lightning.checkpoint import set_deepspeed_accelerator

        set_deepspeed_accelerator()  # which transformers imports
        from transformers import LlamaConfig, LlamaForCausalLM

        self.llama: Any = LlamaForCausalLM(
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

    def step_randomness(self, seed: int, step: int) -> dict[str, Any]:
        return {}

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats per token."""
        return self.llama(tokens, labels=targets, shift_labels=targets, use_cache=False).loss


@dataclass(frozen=True)
class LlamaOf:
    """The configuration of a Llama with the dimensions of our transformer `like`."""

    like: NetworkConfig

    def build(self) -> Llama:
        return Llama(self.like)


NetworkLike = NetworkConfig | LlamaOf


def opponents(network: str, against: Sequence[Opponent], mosaic: MemoryMosaicConfig) -> dict[str, NetworkLike]:
    """Return configurations by name, first the one that is compared with the others.

    Raises:
        UserError: a network is named twice, or `transformers` is needed and not installed.
    """
    if len({network, *against}) != len(against) + 1:
        raise UserError(f"each network is timed once: {network} against {', '.join(against)} names one twice")
    if "hf_llama" in against and not find_spec("transformers"):
        raise UserError("transformers is not installed: pip install transformers, or leave hf_llama out of --against")
    mosaic = replace(mosaic, tied=True) if network == "v1" else mosaic
    transformer = transformer_like(mosaic)
    known: dict[str, NetworkLike] = {"v2": mosaic, "v1": v1_like(mosaic), "transformer": transformer}
    known["hf_llama"] = LlamaOf(transformer)
    return {name: known[name] for name in (network, *against)}

"""What is timed: dimensions, batch and precision, from a training config or from single options."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from mm_lightning.errors import UserError
from mm_lightning.networks import V1, MemoryMosaicConfig, NetworkConfig, TransformerConfig

Precision = Literal["bf16", "fp32"]
Opponent = Literal["transformer", "v1", "hf_llama"]

_SHARED = [field.name for field in fields(NetworkConfig) if field.name not in ("levels", "norm", "dropout")]


@dataclass(frozen=True)
class Setup:
    """Of a benchmark.

    Attributes:
        network: of what is timed.
        context_length: tokens of a sequence, T.
        batch_size: sequences of a step, B.
        precision: bf16 under autocast, or fp32.
        fit: the whole training config; None without one.
    """

    network: NetworkConfig
    context_length: int
    batch_size: int
    precision: Precision
    fit: Any = None

    @property
    def settings(self) -> dict[str, Any]:
        """As results hold them."""
        network = self.network
        names = ("dim", "layers", "heads", "persistent_dim", "vocab_size")
        return {
            **{name: getattr(network, name) for name in names},
            "context_length": self.context_length,
            "batch_size": self.batch_size,
            "precision": self.precision,
        }


def setup(config: str | list[str] | None, otherwise: dict[str, Any], **given: Any) -> Setup:
    """What options and a training config say together.

    Args:
        config: the config and its overlays.
        otherwise: what holds where neither says anything.
        given: the options; one that is None is not given, others win over the config.

    Raises:
        UserError: the config cannot be read, or a number is no dimension.
    """
    values, network, fit = dict(otherwise), None, None
    if config is not None:
        from mm_lightning.training.parse_fit import parse_fit

        paths = [config] if isinstance(config, str) else config
        fit = parse_fit([word for path in paths for word in ("--config", path)])
        network = fit.model.network
        values |= {
            **{name: getattr(network, name) for name in ("dim", "layers", "heads", "persistent_dim", "vocab_size")},
            "context_length": fit.data.context_length,
            "batch_size": fit.data.micro_batch_size,
            "precision": "bf16" if str(fit.trainer.precision).startswith("bf16") else "fp32",
        }
    values |= {name: value for name, value in given.items() if value is not None}
    if network is None or given.get("dim") is not None:
        values["persistent_dim"] = given.get("persistent_dim") or values.get("persistent_dim") or 3 * values["dim"]
    of_setup = {name: values.pop(name) for name in ("context_length", "batch_size", "precision")}
    return Setup(_mosaic(network, values), **of_setup, fit=fit)


def filled(what: Setup, sizes: list[int], tokens: int | None) -> dict[int, Setup]:
    """For each length of a sequence, as many sequences as make up so many tokens; by default those of the setup.

    Raises:
        UserError: a length is no part of the tokens.
    """
    for length in sizes:
        if tokens is not None and (tokens < length or tokens % length):
            raise UserError(f"tokens must be a multiple of every length, got {tokens} tokens and a length of {length}")
    return {n: what if tokens is None else replace(what, batch_size=tokens // n) for n in sizes}


def _mosaic(network: NetworkConfig | None, dimensions: dict[str, int]) -> MemoryMosaicConfig:
    """The mosaic of a config with other dimensions, or the one like a config's transformer."""
    if network is None:
        return MemoryMosaicConfig(**dimensions)
    if isinstance(network, MemoryMosaicConfig):
        return replace(network, **dimensions)
    return MemoryMosaicConfig(**{name: getattr(network, name) for name in _SHARED} | dimensions)


def transformer_like(mosaic: MemoryMosaicConfig) -> TransformerConfig:
    """Our transformer of the same dimensions and spans, which reads all that came before."""
    return TransformerConfig(**{name: getattr(mosaic, name) for name in _SHARED}, dropout=mosaic.dropout)


def v1_like(mosaic: MemoryMosaicConfig) -> MemoryMosaicConfig:
    """v1 with as many slots as give it the number of parameters of the transformer of these dimensions."""
    # 3 d^2 + 2 d^2 + 2 S d numbers a block, where the transformer has 4 d^2 + 3 f d
    slots = max(1, (3 * mosaic.persistent_dim - mosaic.dim) // 2)
    shared = {name: getattr(mosaic, name) for name in _SHARED if name != "tied"}
    return MemoryMosaicConfig(**shared, **{**V1, "tied": mosaic.tied}, persistent_slots=slots)

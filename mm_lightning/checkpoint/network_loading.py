"""Networks and tokenizers from checkpoints, and what a checkpoint says of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm_lightning.checkpoint.discovery import find_checkpoint
from mm_lightning.checkpoint.weights import open_weights, read_metadata
from mm_lightning.errors import UserError

if TYPE_CHECKING:
    from mm_lightning.data import Tokenizer
    from mm_lightning.networks import Network, NetworkConfig


def network_metadata(config: NetworkConfig, tokenizer: dict[str, Any] | None, context_length: int | None) -> dict:
    """What a checkpoint says of its network, in plain types, under the key `mm_lightning`."""
    from mm_lightning import __version__

    network = config.to_dict()
    return {"version": __version__, "network": network, "tokenizer": tokenizer, "context_length": context_length}


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, str]:
    """What a checkpoint says of the tokenizer: enough to make it again."""
    return {"name": tokenizer.name, "sha256": tokenizer.sha256, "json": tokenizer.to_json()}


def network_config(about: dict[str, Any], path: Path | None = None) -> NetworkConfig:
    """The configuration of the network that a checkpoint holds.

    Args:
        about: what it says of itself.
        path: of the checkpoint, for errors.

    Raises:
        UserError: it names a network, or a setting of it, that this version does not know.
    """
    from mm_lightning import __version__
    from mm_lightning.networks.config_dict import UnknownNetwork, config_from_dict

    try:
        return config_from_dict(about["network"])
    except UnknownNetwork as unknown:
        raise UserError(
            f"{path or 'a checkpoint'}, written by mm-lightning {about.get('version', 'of another version')}, holds "
            f"{unknown}, which mm-lightning {__version__} does not know: install the version it was written by, or a "
            f"newer one"
        ) from None
    except UserError as error:
        raise UserError(f"{path or 'a checkpoint'} cannot be read: {error}") from error


CHANGEABLE_FIELDS = frozenset(
    {
        "norm_eps",
        "dropout",
        "short_term_window",
        "long_term_delay",
        "inference_delay",
        "spans",
        "rope_base",
        "balance_weight",
    }
)
"""Settings that change what a network computes but not which parameters it has: fine-tuning may change them."""


def check_architecture(path: Path, config: NetworkConfig, fewer_levels: bool = False) -> None:
    """Holds a checkpoint's network against the configured one.

    Args:
        path: the checkpoint.
        config: the configured network.
        fewer_levels: whether the configured one may lack memory levels that the checkpoint has.

    Raises:
        UserError: they differ; it names how.
    """
    about, wanted = read_metadata(path), config.to_dict()
    saved = about["network"]
    if saved["class"] != wanted["class"]:
        raise UserError(
            f"checkpoint {path} holds a {saved['class'].removesuffix('Config')} but the config asks for a "
            f"{wanted['class'].removesuffix('Config')}: use the config of its run folder, or another checkpoint"
        )
    # A field younger than the checkpoint had what is now its default.
    before = network_config(about, path).to_dict()["fields"]
    now = wanted["fields"]
    different = [
        f"{k} {before.get(k)} instead of {v}"
        for k, v in now.items()
        if k not in CHANGEABLE_FIELDS and before.get(k) != v
    ]
    removed = set(before.get("levels", [])) > set(now["levels"])
    if fewer_levels and removed:
        different = [line for line in different if not line.startswith("levels ")]
    if different:
        raise UserError(
            f"checkpoint {path} holds a network of another architecture: {', '.join(different)}. "
            f"Use the config of its run folder, or another checkpoint"
        )


def load_weights(network: Network, path: Path, rank: int = 0) -> None:
    """Fills a network with a checkpoint's weights, also one that ZeRO-3 has partitioned (all ranks call it).

    Raises:
        UserError: the checkpoint's network has other parameters.
    """
    check_architecture(path, network.config, fewer_levels=True)
    partitioned = any(hasattr(p, "ds_id") for p in network.parameters())
    weights = open_weights(path) if rank == 0 or not partitioned else None
    levels = read_metadata(path)["network"]["fields"].get("levels", [])
    for name, parameter in network.named_parameters():
        with _gathered(parameter) if partitioned else contextlib.nullcontext(), torch.no_grad():
            if weights is not None:
                if name not in weights:
                    raise UserError(f"checkpoint {path} lacks the parameter {name}: it is of another network")
                parameter.copy_(select_levels(name, weights[name], levels, network.config))


def select_levels(name: str, weight: Tensor, levels: list[str], config: NetworkConfig) -> Tensor:
    """A weight without the memory levels that `config` lacks: W_o loses their columns, others are as they were.

    Args:
        name: of the parameter.
        weight: its value in the checkpoint.
        levels: of the network that it is from.
        config: of the network that it goes into.
    """
    if list(config.levels) == list(levels) or not name.endswith(".W_o.weight"):
        return weight
    columns = weight.chunk(len(levels), 1)
    return torch.cat([columns[levels.index(level)] for level in config.levels], 1)


def _gathered(parameter: torch.nn.Parameter) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)


def load_network(
    run_or_file: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Network, Tokenizer]:
    """The trained network and its tokenizer, from a checkpoint alone.

    Args:
        run_or_file: as for :func:`find_checkpoint`.
        device: where the network goes.
        dtype: the type of its parameters; None keeps float32.

    Returns:
        The network in evaluation mode, and the tokenizer that its data was made with.
    """
    path = find_checkpoint(run_or_file)
    about = read_metadata(path)
    network = network_config(about, path).build()
    load_weights(network, path)
    return network.to(device=device, dtype=dtype).eval(), restore_tokenizer(about, path)


def restore_tokenizer(about: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that a checkpoint carries."""
    from mm_lightning.data.tokenizer import tokenizer_from_json

    if not about["tokenizer"]:
        if "imported" in about:
            raise UserError(
                f"checkpoint {path} carries no tokenizer: what it was imported from ({about['imported']}) came without "
                f"one. Import it again with --tokenizer"
            )
        raise UserError(f"checkpoint {path} carries no tokenizer: it was trained without prepared data")
    return tokenizer_from_json(about["tokenizer"]["json"], about["tokenizer"]["name"])

"""Networks and tokenizers from checkpoints, and the metadata that describe them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm_lightning import __version__
from mm_lightning.checkpoint.discovery import find_checkpoint
from mm_lightning.checkpoint.weights import open_weights, read_metadata
from mm_lightning.errors import UserError
from mm_lightning.networks.config_dict import UnknownNetwork, config_from_dict

if TYPE_CHECKING:
    from mm_lightning.data import Tokenizer
    from mm_lightning.networks import Network, NetworkConfig


def network_metadata(config: NetworkConfig, tokenizer: dict[str, Any] | None, context_length: int | None) -> dict:
    """Return the metadata of a checkpoint: its entry `mm_lightning`, in plain types."""
    network = config.to_dict()
    return {"version": __version__, "network": network, "tokenizer": tokenizer, "context_length": context_length}


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the metadata of a tokenizer, from which it is restored."""
    return {"name": tokenizer.name, "sha256": tokenizer.sha256, "json": tokenizer.to_json()}


def network_config(metadata: dict[str, Any], path: Path | None = None) -> NetworkConfig:
    """Return the configuration of the network in a checkpoint.

    Args:
        metadata: metadata of the checkpoint.
        path: the checkpoint, for error messages.

    Raises:
        UserError: the network, or one of its settings, is unknown to this version.
    """
    try:
        return config_from_dict(metadata["network"])
    except UnknownNetwork as unknown:
        raise UserError(
            f"{path or 'a checkpoint'}, written by mm-lightning {metadata.get('version', 'of another version')}, holds "
            f"{unknown}, which mm-lightning {__version__} does not know: install the version it was written by, or a "
            f"newer one"
        ) from None
    except UserError as error:
        raise UserError(f"{path or 'a checkpoint'} cannot be read: {error}") from error


CHANGEABLE_FIELDS = {
    *("norm_eps", "dropout", "balance_weight"),
    *("short_term_window", "long_term_delay", "inference_delay", "spans"),
    *("rope_base", "yarn_factor", "yarn_context"),
}
"""Settings that leave the parameters of a network as they are: fine-tuning may change them."""


def check_architecture(path: Path, config: NetworkConfig, fewer_levels: bool = False) -> None:
    """Check that a checkpoint holds a network of the configured architecture.

    Args:
        path: the checkpoint.
        config: the configured network.
        fewer_levels: allow the configured network to lack memory levels of the checkpoint.

    Raises:
        UserError: the architectures differ; the message names the settings.
    """
    metadata, configured = read_metadata(path), config.to_dict()
    saved = metadata["network"]
    if saved["class"] != configured["class"]:
        raise UserError(
            f"checkpoint {path} holds a {saved['class'].removesuffix('Config')} but the config asks for a "
            f"{configured['class'].removesuffix('Config')}: use the config of its run folder, or another checkpoint"
        )
    # a field that was added after the checkpoint was written has its default there
    before = network_config(metadata, path).to_dict()["fields"]
    fields = configured["fields"]
    different = list_changes({name: fields[name] for name in fields.keys() - CHANGEABLE_FIELDS}, before)
    removed = set(before.get("levels", [])) > set(fields["levels"])
    if fewer_levels and removed:
        different = [line for line in different if not line.startswith("levels ")]
    if different:
        raise UserError(
            f"checkpoint {path} holds a network of another architecture: {', '.join(different)}. "
            f"Use the config of its run folder, or another checkpoint"
        )


def list_changes(before: Mapping[str, Any], present: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "NAME NEW instead of OLD" of each setting in both that differs, with a prefix before the name."""
    return [f"{prefix}{n} {x} instead of {before[n]}" for n, x in present.items() if n in before and before[n] != x]


def load_weights(network: Network, path: Path, rank: int = 0) -> None:
    """Load parameters and buffers of a checkpoint into a network, also one partitioned by ZeRO-3 (called on all ranks).

    Raises:
        UserError: the checkpoint's network has other parameters.
    """
    check_architecture(path, network.config, fewer_levels=True)
    weights = open_weights(path)
    levels = read_metadata(path)["network"]["fields"].get("levels", [])
    for name, tensor in named_tensors(network).items():
        if name not in weights:
            raise UserError(f"checkpoint {path} lacks {name}: it is of another network")
        partitioned = hasattr(tensor, "ds_id")
        with _gathered(tensor) if partitioned else contextlib.nullcontext(), torch.no_grad():
            if rank == 0 or not partitioned:
                tensor.copy_(select_levels(name, weights[name], levels, network.config))


def named_tensors(network: Network) -> dict[str, Tensor]:
    """Return what a checkpoint holds of a network by name: parameters, tied ones once, and persistent buffers."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def select_levels(name: str, weight: Tensor, levels: list[str], config: NetworkConfig) -> Tensor:
    """Return a weight without the memory levels that `config` lacks: W_o loses their columns, others are unchanged.

    Args:
        name: name of the parameter.
        weight: its value in the checkpoint.
        levels: memory levels of the network in the checkpoint.
        config: configuration of the network that is loaded.
    """
    if list(config.levels) == list(levels) or not name.endswith(".W_o.weight"):
        return weight
    columns = weight.chunk(len(levels), 1)
    return torch.cat([columns[levels.index(level)] for level in config.levels], 1)


def _gathered(parameter: Tensor) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameter, modifier_rank=0)


def load_network(
    run_or_file: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> tuple[Network, Tokenizer]:
    """Load a trained network and its tokenizer from a checkpoint.

    Args:
        run_or_file: as for :func:`find_checkpoint`.
        device: device of the network.
        dtype: type of its parameters; None keeps float32.

    Returns:
        The network in evaluation mode, and the tokenizer of its training data.
    """
    path = find_checkpoint(run_or_file)
    metadata = read_metadata(path)
    network = network_config(metadata, path).build()
    load_weights(network, path)
    return network.to(device=device, dtype=dtype).eval(), restore_tokenizer(metadata, path)


def restore_tokenizer(metadata: dict[str, Any], path: Path) -> Tokenizer:
    """Return the tokenizer of a checkpoint.

    Raises:
        UserError: it has none.
    """
    from mm_lightning.data.tokenizer import tokenizer_from_json

    if not metadata["tokenizer"]:
        if "imported" in metadata:
            raise UserError(
                f"checkpoint {path} has no tokenizer, nor had the model it was imported from ({metadata['imported']}): "
                f"import it again with --tokenizer"
            )
        raise UserError(f"checkpoint {path} has no tokenizer: it was trained without prepared data")
    return tokenizer_from_json(metadata["tokenizer"]["json"], metadata["tokenizer"]["name"])


def check_vocabulary(tokenizer: Tokenizer, config: NetworkConfig) -> None:
    """Check that a network has an embedding for every token.

    Raises:
        UserError: the tokenizer has more tokens.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens but model.network.vocab_size is "
            f"{config.vocab_size}: set it to {tokenizer.vocab_size} or more"
        )

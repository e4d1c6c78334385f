"""`mm import`: convert weights of v1, Llama or an export to a checkpoint of this package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.inference.export import ABOUT, require
from mm_lightning.outputs import FolderKind, Output, check_folder, staged
from mm_lightning.ranges import Name, Place, Positive
from mm_lightning.yaml_text import write_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from mm_lightning.networks import NetworkConfig


@dataclass
class Imported:
    """An imported network.

    Attributes:
        config: of the network.
        weights: by this package's parameter names.
        source: a description of the source, for messages.
        tokenizer: its entry in a checkpoint; None if there is none.
        context_length: tokens of a training sequence, if known.
    """

    config: NetworkConfig
    weights: dict[str, Tensor]
    source: str
    tokenizer: dict[str, Any] | None = None
    context_length: int | None = None


def read(
    source: str | os.PathLike,
    largest_key_exponent: float | None = None,
    read_tokenizer: Callable[[Path], dict[str, Any] | None] | None = None,
) -> Imported:
    """Read any of the formats that :func:`import_command` lists.

    Args:
        source: a file, or a folder with a config.json.
        largest_key_exponent: of v1 checkpoints, the limit of a key's exponent.
        read_tokenizer: returns the checkpoint's tokenizer entry for a folder of transformers.

    Raises:
        UserError: the format is unknown, or the network has a part that does not exist here.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read_v1(path, largest_key_exponent)
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}")
    if largest_key_exponent is not None:
        raise UserError("largest_key_exponent is for checkpoints of v1's published code alone: leave it out")
    require("safetensors")
    from mm_lightning.inference.import_llama import read_config

    config = read_config(path)
    kind = config.get("model_type")
    if kind == "mm_lightning":
        return _read_exported(path, config)
    if kind == "llama":
        return _read_llama(path, config, read_tokenizer or _tokenizer)
    raise UserError(f"{path} holds a model of type {kind}: only llama, and what `mm export` wrote, can be imported")


def _read_v1(path: Path, limit: float | None) -> Imported:
    from mm_lightning.inference.import_v1 import convert_v1, limit_keys, read_v1

    settings, v1_weights = read_v1(path)
    config, weights = convert_v1(settings, v1_weights)
    if limit is not None:
        limit_keys(weights, limit)
    source = f"{path.name}, a checkpoint of v1's published code"
    length = settings.get("block_size")
    return Imported(config, weights, source, context_length=length)


def _read_llama(
    path: Path, config: dict[str, Any], read_tokenizer: Callable[[Path], dict[str, Any] | None]
) -> Imported:
    from mm_lightning.inference.import_llama import convert_llama, llama_config, read_safetensors

    try:
        network_config = llama_config(config)
    except KeyError as error:
        raise UserError(f"{path / 'config.json'} lacks {error}") from error
    weights = convert_llama(read_safetensors(path))
    source = f"{path.resolve().name}, a Llama of transformers"
    return Imported(network_config, weights, source, read_tokenizer(path), config.get("max_position_embeddings"))


def _read_exported(path: Path, config: dict[str, Any]) -> Imported:
    from mm_lightning.checkpoint import network_config
    from mm_lightning.inference.import_llama import read_json, read_safetensors

    weights = {name.removeprefix("network."): x for name, x in read_safetensors(path).items()}
    about = read_json(path / ABOUT) if (path / ABOUT).is_file() else {}
    tokenizer = about.get("tokenizer") if about else _tokenizer(path)
    source = about.get("imported") or f"{path.resolve().name}, an export of mm-lightning"
    return Imported(network_config(config, path), weights, source, tokenizer, config.get("context_length"))


def _tokenizer(path: Path, bos: str | None = None, eos: str | None = None) -> dict[str, Any] | None:
    """Return a checkpoint's entry of a tokenizer.json, or of a folder that may hold one."""
    from mm_lightning.checkpoint import tokenizer_metadata
    from mm_lightning.data.tokenizer import load_tokenizer

    if path.is_dir() and not (path / "tokenizer.json").is_file():
        return None
    return tokenizer_metadata(load_tokenizer(path, bos, eos))


def check(imported: Imported) -> None:
    """Check names and shapes of the weights against the network.

    Raises:
        UserError: a weight is missing, unknown, or has another shape.
    """
    import torch

    from mm_lightning.checkpoint.network_loading import named_tensors

    with torch.device("meta"):
        network = imported.config.build()
    expected = {name: tuple(x.shape) for name, x in named_tensors(network).items()}
    if imported.config.tied:
        imported.weights.pop("classifier.weight", None)
    shapes = {name: tuple(x.shape) for name, x in imported.weights.items()}
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    problems += [f"{name} is not known" for name in shapes if name not in expected]
    both = [name for name in expected if name in shapes]
    problems += [f"{n} has the shape {shapes[n]} instead of {expected[n]}" for n in both if shapes[n] != expected[n]]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"the weights do not fit the network: {problems[0]}{more}")


IMPORT = FolderKind("the run folder of an import", "checkpoints/step=0.ckpt", ("config.yaml",))
"""The folders that `mm import` writes, before anything is trained in them."""


def write(imported: Imported, target: Output) -> Path:
    """Write a run folder that holds a checkpoint and a config.

    Returns:
        The path of the checkpoint.
    """
    from mm_lightning.checkpoint import METADATA_KEY, checkpoint_path, network_metadata
    from mm_lightning.checkpoint.writing import write as write_checkpoint

    about = network_metadata(imported.config, imported.tokenizer, imported.context_length)
    about["imported"] = imported.source
    weights = {f"network.{name}": x.contiguous() for name, x in imported.weights.items()}
    network = {"class_path": about["network"]["class"], "init_args": about["network"]["fields"]}
    data = {"context_length": imported.context_length} if imported.context_length else {}
    config = {"run": str(target), "model": {"network": network}, **({"data": data} if data else {})}
    with staged(target) as folder:
        write_checkpoint({"state_dict": weights, METADATA_KEY: about}, checkpoint_path(folder, 0))
        write_yaml(folder / "config.yaml", config)
    return checkpoint_path(target.name, 0)


def import_command(
    source: Place,
    output: Place,
    tokenizer: Place | None = None,
    largest_key_exponent: Positive | None = None,
    bos: Name | None = None,
    eos: Name | None = None,
    overwrite: bool = False,
) -> None:
    """Turn weights from elsewhere into a checkpoint.

    Reads a checkpoint file of v1's published code (nanoMosaics), a Llama folder of transformers with its weights in
    safetensors, and what `mm export` wrote. The output is a run folder: `mm generate --checkpoint OUTPUT`, or
    `mm validate --config OUTPUT/config.yaml --data.path PREPARED`.

    Args:
        source: a file, or a folder with a config.json.
        output: the run folder to write.
        tokenizer: `bytes`, or a tokenizer.json, or a folder that holds one; by default the source's own, if it has one.
        largest_key_exponent: of v1 checkpoints, where a key's exponent is cut, if they come from a changed copy of that
            code; leave it out for nanoMosaics itself, which cuts at log(65535) as networks here do.
        bos: the name of the tokenizer's token that begins a document, where it is none of the usual ones.
        eos: likewise of the token that ends a document. One of the two alone is both.
        overwrite: replace an existing import.
    """
    target = check_folder(output, IMPORT, overwrite, [source, tokenizer])
    from mm_lightning.inference.flatten import holds_other_code

    # the source's own tokenizer is not read where another is given: it may be unreadable
    read_tokenizer = partial(_tokenizer, bos=bos, eos=eos) if tokenizer is None else lambda _: None
    imported = read(source, largest_key_exponent, read_tokenizer)
    if tokenizer is not None:
        from mm_lightning.checkpoint import tokenizer_metadata
        from mm_lightning.data.tokenizer import load_tokenizer

        given = load_tokenizer(tokenizer, bos, eos)
        if given.vocab_size > imported.config.vocab_size:
            raise UserError(
                f"the tokenizer {given.name} has {given.vocab_size} tokens, the network {imported.config.vocab_size}: "
                f"it was trained with another one"
            )
        imported.tokenizer = tokenizer_metadata(given)
    check(imported)
    path = write(imported, target)
    parameters = sum(x.numel() for x in imported.weights.values())
    say(f"{path}: {imported.source}, {parameters:,} parameters")
    folder = Path(source).expanduser()
    if holds_other_code(folder):
        say(
            f"{source} comes with modeling code of another version, which newer transformers may not run: write it "
            f"anew with mm export --checkpoint {quote(output)} --output {quote(f'{folder}_new')} --self_contained"
        )
    if imported.tokenizer is None:
        say("it came without a tokenizer, which generating needs: --tokenizer names one")

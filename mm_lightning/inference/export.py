"""`mm export`: write a trained network as a folder that transformers loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mm_lightning.console import say
from mm_lightning.errors import UserError
from mm_lightning.hub import check_publishing, publish
from mm_lightning.outputs import FolderKind, check_folder, share, staged, write_text
from mm_lightning.ranges import Name, Place, PlainPlace

if TYPE_CHECKING:
    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.networks import Network, NetworkConfig

ABOUT = "mm_lightning.json"
"""The file of the checkpoint's metadata without the network, which `mm import` reads back."""


def require(*packages: str) -> None:
    """Check that the packages are installed.

    Raises:
        UserError: one is missing.
    """
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"this needs the package {package}: pip install 'mm-lightning[export]'")


# fmt: off
EXPORT = FolderKind("an export", ABOUT, (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "README.md",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "inference_*.py", "memory_*.py", "networks*.py",
    "errors.py", "options.py", "ranges.py", "synonyms.py", "user_classes.py",
))
# fmt: on
"""The folders that `mm export` writes."""


def export(
    network: Network,
    tokenizer: Tokenizer | None,
    folder: Path,
    context_length: int | None = None,
    self_contained: bool = False,
    max_shard_size: str = "5GB",
) -> None:
    """Write weights, configuration, tokenizer and, with `self_contained`, the modeling code.

    Args:
        network: the network; its parameters are written in their dtype.
        tokenizer: the tokenizer it was trained with; None writes none.
        folder: an empty folder.
        context_length: tokens of a training sequence.
        self_contained: add the modeling code.
        max_shard_size: largest size of one weight file, as in 5GB.
    """
    import torch
    from transformers import GenerationConfig

    from mm_lightning.inference import flatten
    from mm_lightning.inference.configuration import MMLightningConfig
    from mm_lightning.inference.export_tokenizer import transformers_tokenizer
    from mm_lightning.inference.modeling import MMLightningForCausalLM
    from mm_lightning.inference.tokenization import MMLightningTokenizer

    if self_contained and (foreign := foreign_classes(network.config)):
        raise UserError(
            f"--self_contained cannot take {', '.join(foreign)} along, which other modules define: export without it, "
            f"and publish them as a package"
        )
    ends = {} if tokenizer is None else {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    config = MMLightningConfig(network.config.to_dict(), context_length, **ends)
    if self_contained:
        code = {"AutoConfig": MMLightningConfig, "AutoModelForCausalLM": MMLightningForCausalLM}
        config.auto_map = {name: f"{flatten.flat_name(c.__module__)}.{c.__name__}" for name, c in code.items()}
        for name, text in flatten.flatten(*flatten.MODULES).items():
            (folder / name).write_text(text, encoding="utf-8")
    with torch.device("meta"):
        model = MMLightningForCausalLM(config)
    model.network = network
    model.generation_config = GenerationConfig(**ends, pad_token_id=ends.get("eos_token_id"))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    for file in folder.glob("*.safetensors"):
        share(file)
    if tokenizer is not None:
        transformers_tokenizer(tokenizer).save_pretrained(folder)
    if tokenizer is not None and self_contained:
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        name = f"{flatten.flat_name(MMLightningTokenizer.__module__)}.{MMLightningTokenizer.__name__}"
        # the class is for users who do not trust the folder's code
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"AutoTokenizer": [None, name]}}
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def foreign_classes(config: NetworkConfig) -> list[str]:
    """Return the names of the classes outside this package that a network is built of."""
    described = config.to_dict()
    values = [value for value in described["fields"].values() if isinstance(value, dict)]
    parts = [value["class_path"] for value in values if "class_path" in value]
    return sorted({name for name in (described["class"], *parts) if "." in name})


def export_command(
    checkpoint: Place,
    output: PlainPlace,
    dtype: Literal["float32", "bfloat16"] = "float32",
    self_contained: bool = False,
    max_shard_size: Name = "5GB",
    push: Name | None = None,
    public: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a trained network as a folder that transformers loads.

    It holds model.safetensors, config.json, generation_config.json, the tokenizer and a model card (README.md). Where
    this package is installed, AutoModelForCausalLM.from_pretrained(FOLDER) loads it after
    `import mm_lightning.transformers`; a self-contained folder is loaded anywhere by
    from_pretrained(FOLDER, trust_remote_code=True).

    Args:
        checkpoint: a run folder (its newest valid checkpoint is taken) or a checkpoint.
        output: the folder to write.
        dtype: of the weights.
        self_contained: add the modeling code, so that it can be loaded without this package.
        max_shard_size: weights above it are written as several files.
        push: also upload the folder, once it is whole, to this repository of the Hugging Face Hub, ORG/NAME.
        public: make the repository public if it is new; it is private otherwise.
        overwrite: replace an existing export.
    """
    require("transformers", "safetensors")
    if not re.fullmatch(r"\s*\d+(\.\d+)?\s*[KMGT]B\s*", max_shard_size, re.IGNORECASE):
        raise UserError(f"max_shard_size must be a number of KB, MB, GB or TB, such as 5GB, got {max_shard_size!r}")
    if push:
        check_publishing(push)
    elif public:
        raise UserError("--public is about the repository that --push ORG/NAME makes: give that too")
    target = check_folder(output, EXPORT, overwrite, [checkpoint])
    import torch

    from mm_lightning.checkpoint import (
        find_checkpoint,
        load_weights,
        network_config,
        read_metadata,
        restore_tokenizer,
        set_deepspeed_accelerator,
    )
    from mm_lightning.inference.model_card import model_card

    set_deepspeed_accelerator()  # transformers imports DeepSpeed
    from transformers.utils import logging

    path = find_checkpoint(checkpoint)
    about = read_metadata(path)
    tokenizer = restore_tokenizer(about, path) if about["tokenizer"] else None
    logging.disable_progress_bar()
    with staged(target) as folder:
        folder.mkdir()
        network = network_config(about, path).build()
        load_weights(network, path)
        network = network.to(getattr(torch, dtype))
        export(network, tokenizer, folder, about.get("context_length"), self_contained, max_shard_size)
        other = {name: value for name, value in about.items() if name != "network"}
        (folder / ABOUT).write_text(json.dumps(other) + "\n", encoding="utf-8")
        write_text(folder / "README.md", model_card(path, about, network, self_contained))
    _print_summary(target.name, network, dtype, tokenizer, self_contained)
    if push:
        say(f"uploaded to {publish(target.place, push, not public)}")


def _print_summary(output: Path, network: Network, dtype: str, tokenizer: Any, self_contained: bool) -> None:
    size = sum(file.stat().st_size for file in output.iterdir())
    parameters = sum(p.numel() for p in network.parameters())
    say(f"{output}: {type(network).__name__}, {parameters:,} parameters in {dtype}, {size:,} bytes")
    if tokenizer is None:
        say("the checkpoint carries no tokenizer: none was written")
    first, option = ("", ", trust_remote_code=True") if self_contained else ("mm_lightning.transformers, ", "")
    load = f"transformers.AutoModelForCausalLM.from_pretrained({str(output)!r}{option})"
    say(f"load it: import {first}transformers; model = {load}")
    say("its README.md names no license: choose one before you publish it")

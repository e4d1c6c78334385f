"""Save and load the memory of a document: the state of a network that has read it.

A memory file is a safetensors file. Its tensors are those of the inference state, by name, and beside them

    document    (T,) int64, the tokens of the whole document: the file contains the text
    logits      (V,) float32 for the token after it

Its metadata: `format` and `version` of the file, `tokens` T, `network` (class and fields, JSON), `weights` (their
fingerprint) and `tokenizer` (its sha256), which must match; and `crc32`, the checksum of the whole file with eight
zeros in the checksum's place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mm_lightning.errors import UserError
from mm_lightning.outputs import MEMORY, Output, check_output, share, staged

if TYPE_CHECKING:
    import torch

    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.inference.reader import Reader
    from mm_lightning.memory.sublinear.key_clusters import SublinearRead
    from mm_lightning.networks import Network

VERSION = 1
SAMPLED = 256
"""Elements of each parameter that enter the fingerprint."""


def save_memory(path: str | Path | Output, reader: Reader, tokenizer: Tokenizer) -> None:
    """Write the memory of a reader of one document.

    Args:
        path: the file; a memory file of this name is replaced, unless an Output forbids it.
        reader: a reader that has read at least one token.
        tokenizer: of the document.

    Raises:
        UserError: another kind of file has this name, or it cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from mm_lightning.checkpoint.safetensors_file import CHECKSUM_PLACEHOLDER, MEMORY_FORMAT, write_checksum

    if len(reader.documents) != 1 or reader.logits is None:
        raise ValueError("a memory file holds one document, of which at least one token was read")
    target = path if isinstance(path, Output) else check_output(path, True, kind=MEMORY)
    tensors = {f"state.{name}": x.contiguous() for name, x in reader.state.tensors().items()}
    tensors["document"] = torch.tensor(reader.documents[0])
    tensors["logits"] = reader.logits[0].float()
    about = {
        "format": MEMORY_FORMAT,
        "version": str(VERSION),
        "tokens": str(len(reader.documents[0])),
        "crc32": CHECKSUM_PLACEHOLDER,
    }
    try:
        with staged(target) as part:
            save_file(tensors, part, about | _describe(reader.network, tokenizer))
            share(part)
            write_checksum(part)
    except SafetensorError as error:
        raise UserError(f"cannot write the memory file {target}: {error}") from error


def load_memory(
    path: str | Path,
    network: Network,
    tokenizer: Tokenizer,
    capacity: int = 0,
    together: int | None = None,
    sublinear: SublinearRead | None = None,
) -> Reader:
    """Return a reader with the memory of a memory file.

    Args:
        path: the file.
        network: the one that wrote it, in evaluation mode.
        tokenizer: that of the document.
        capacity: tokens beyond the document to preallocate.
        together, sublinear: as for :class:`Reader`.

    Raises:
        UserError: it cannot be read, or is of another network or tokenizer.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from mm_lightning.checkpoint.safetensors_file import find_safetensors_damage
    from mm_lightning.inference.reader import READ_TOKENS, Reader

    path = Path(path).expanduser()
    about = _metadata(path)
    if wrong := find_safetensors_damage(path):
        raise UserError(f"{path} is a damaged memory file (it {wrong}): read the text again with `mm remember`")
    _check(path, about, _describe(network, tokenizer))
    device = next(network.parameters()).device
    try:
        with safe_open(path, "pt", str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        reader = Reader(network, 1, int(about["tokens"]) + capacity, together or READ_TOKENS, sublinear)
        reader.documents = [tensors.pop("document").tolist()]
        reader.logits = tensors.pop("logits")[None]
        dtype = _compute_dtype(network, device)
        with torch.inference_mode():
            state = {name.removeprefix("state."): x for name, x in tensors.items()}
            reader.state.load({n: x.to(dtype) if n.endswith(PAIRS) else x for n, x in state.items()})
        if len(reader.state.tensors()) != len(state) or not all(part.tensors() for part in reader.state.parts.values()):
            raise ValueError("tensors are missing")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is a damaged memory file ({error}): read the text again with `mm remember`") from error
    return reader


PAIRS = (".keys", ".values", ".raw")
"""Endings of the names of state tensors that have the dtype of the computation."""


def _compute_dtype(network: Network, device: torch.device) -> torch.dtype:
    import torch

    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return next(network.parameters()).dtype


def _describe(network: Network, tokenizer: Tokenizer) -> dict[str, str]:
    described = json.dumps(network.config.to_dict())
    return {"network": described, "weights": fingerprint(network), "tokenizer": tokenizer.sha256}


def fingerprint(network: Network) -> str:
    """Hash evenly spaced elements of every parameter, rounded to bf16: equal on any device and in any dtype."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        flat = parameter.detach().flatten()
        chosen = flat[:: max(1, len(flat) // SAMPLED)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(chosen.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    from mm_lightning.checkpoint.safetensors_file import MEMORY_FORMAT

    if not path.is_file():
        raise UserError(f"there is no memory file {path}: `mm remember` and `/save` in `mm chat` write one")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a memory file, or a damaged one: {error}") from error
    if about.get("format") != MEMORY_FORMAT:
        raise UserError(f"{path} is not a memory file: `mm remember` and `/save` in `mm chat` write one")
    if about.get("version") != str(VERSION):
        raise UserError(
            f"{path} is of version {about.get('version')} of the memory file, this program reads {VERSION}: "
            f"use the program that wrote it, or read the text again with `mm remember`"
        )
    return about


REMEDY = "use the checkpoint it was made with, or read the text again with `mm remember`"


def _check(path: Path, saved: dict[str, str], given: dict[str, str]) -> None:
    from mm_lightning.networks.config_dict import UnknownNetwork, config_from_dict

    old, new = json.loads(saved["network"]), json.loads(given["network"])
    with contextlib.suppress(UnknownNetwork):  # settings newer than the file get their defaults
        old = json.loads(json.dumps(config_from_dict(old).to_dict()))
    if old != new:
        fields = old["fields"].keys() | new["fields"].keys()
        different = [
            f"{key} {old['fields'].get(key)} instead of {new['fields'].get(key)}"
            for key in sorted(fields)
            if old["fields"].get(key) != new["fields"].get(key)
        ]
        if old["class"] != new["class"]:
            different = [f"{old['class']} instead of {new['class']}"]
        raise UserError(f"{path} is the memory of another network, {', '.join(different)}: {REMEDY}")
    if saved["tokenizer"] != given["tokenizer"]:
        raise UserError(f"{path} is the memory of a network with another tokenizer: {REMEDY}")
    if saved["weights"] != given["weights"]:
        raise UserError(
            f"{path} is the memory of a network with other weights, such as another checkpoint of the same run: "
            f"{REMEDY}"
        )

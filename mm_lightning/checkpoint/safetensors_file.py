"""Weights as one safetensors file, written and read tensor by tensor.

The metadata in the header hold the entry `mm_lightning` of a checkpoint, the names of tied weights (`tied`), and the
CRC-32 of the file, computed with zeros in its place.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mm_lightning.checkpoint.checksums import METADATA_KEY, crc32, sync
from mm_lightning.checkpoint.lazy_weights import Weights

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
MEMORY_FORMAT = "mm-lightning memory"
"""The value of `format` in the metadata of a memory file."""
CHECKSUM_PLACEHOLDER = "00000000"
"""The value of `crc32` in the metadata while a file is written."""
_PIECE = 1 << 24  # elements converted and written at once


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file.

    Raises:
        OSError: there is no such file.
        ValueError: the file has another format, or is truncated.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def is_memory_file(path: Path) -> bool:
    """Return whether a file is a memory file, by its header."""
    try:
        return read_safetensors_metadata(path).get("format") == MEMORY_FORMAT
    except (OSError, ValueError):
        return False


def find_safetensors_damage(path: Path, checksums: bool = True) -> str | None:
    """Return what is wrong with a file, as :func:`mm_lightning.checkpoint.find_damage` does."""
    try:
        metadata = read_safetensors_metadata(path)
    except OSError as error:
        return f"cannot be read ({error})"
    except ValueError as error:
        return f"is truncated or damaged ({error})"
    if "crc32" not in metadata:
        # files of other programs have no checksum
        return "is damaged (it lacks its checksum)" if METADATA_KEY in metadata else None
    if not checksums:
        return None
    place = _place(path, metadata["crc32"])
    before = zlib.crc32(CHECKSUM_PLACEHOLDER.encode(), crc32(path, end=place))
    if f"{crc32(path, place + len(CHECKSUM_PLACEHOLDER), value=before):08x}" != metadata["crc32"]:
        return "is damaged (its checksum is not the one it was written with)"
    return None


def _place(path: Path, value: str) -> int:
    """Return the offset of the checksum in a file, which has this value."""
    with open(path, "rb") as file:
        length = file.read(8)
        begin = length + file.read(int.from_bytes(length, "little"))
    return begin.index(b'"crc32":"' + value.encode()) + len(b'"crc32":"')


def write_safetensors(
    weights: Weights, target: Path, metadata: dict[str, Any], tied: dict[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write weights, one at a time in memory.

    Args:
        weights: the weights by name.
        target: the file, which :func:`mm_lightning.outputs.staged` puts in its place.
        metadata: the entry `mm_lightning` of a checkpoint.
        tied: names that are not stored, with the names under which their tensors are.
        dtype: type of the stored floating-point tensors; None keeps that of each.
    """
    names = [name for name in weights if name not in tied]
    fields = {
        "format": "pt",
        METADATA_KEY: json.dumps(metadata),
        "tied": json.dumps(tied),
        "crc32": CHECKSUM_PLACEHOLDER,
    }
    header: dict[str, Any] = {"__metadata__": fields}
    offset = 0
    types = {name: weights.stored[name].dtype for name in names}
    dtypes = {name: dtype if dtype and own.is_floating_point else own for name, own in types.items()}
    for name in names:
        shape = weights.stored[name].shape
        end = offset + math.prod(shape) * dtypes[name].itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtypes[name]], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data are aligned to 8 bytes
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            for piece in weights[name].reshape(-1).split(_PIECE):
                values = piece.to(dtypes[name]).contiguous()
                file.write(memoryview(values.view(torch.uint8).numpy()))
    write_checksum(target)


def write_checksum(path: Path) -> None:
    """Write the checksum of a file into its header, in place of `CHECKSUM_PLACEHOLDER`."""
    place = _place(path, CHECKSUM_PLACEHOLDER)
    value = crc32(path)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(f"{value:08x}".encode())
        sync(file)

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

from mm_lightning.checkpoint.checksums import METADATA_KEY, crc32, sync
from mm_lightning.checkpoint.lazy_weights import Weights

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
}
MEMORY_FORMAT = "mm-lightning memory"
"""The value of `format` in the metadata of a memory file."""
CHECKSUM_PLACEHOLDER = "00000000"
"""The value of `crc32` in the metadata while a file is written."""
_LARGEST_HEADER = 100_000_000  # bytes; the same limit as safetensors'
_PIECE = 1 << 24  # elements converted and written at once


def read_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file.

    Raises:
        ValueError: the file has another format.
    """
    return json.loads(_header_bytes(path))


def _header_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= _LARGEST_HEADER:
            raise ValueError("it is not a safetensors file")
        return file.read(length)


def is_memory_file(path: Path) -> bool:
    """Return whether a file is a memory file, by its header."""
    try:
        return read_header(path)["__metadata__"]["format"] == MEMORY_FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def find_safetensors_damage(path: Path, checksums: bool = True) -> str | None:
    """Return what is wrong with a file, as :func:`mm_lightning.checkpoint.find_damage` does."""
    try:
        raw = _header_bytes(path)
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        end = 8 + len(raw) + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"cannot be read ({error})"
    if path.stat().st_size != end:
        return f"is truncated or damaged ({path.stat().st_size} bytes instead of {end})"
    if "crc32" not in metadata:
        # files of other programs have no checksum
        return "is damaged (it lacks its checksum)" if METADATA_KEY in metadata else None
    if not checksums:
        return None
    place = 8 + _place(raw, metadata["crc32"])
    before = zlib.crc32(CHECKSUM_PLACEHOLDER.encode(), crc32(path, end=place))
    if f"{crc32(path, place + len(CHECKSUM_PLACEHOLDER), value=before):08x}" != metadata["crc32"]:
        return "is damaged (its checksum is not the one it was written with)"
    return None


def _place(header: bytes, value: str) -> int:
    """Return the offset of the checksum in a header."""
    return header.index(b'"crc32":"' + value.encode()) + len(b'"crc32":"')


def write_safetensors(
    weights: Weights, target: Path, metadata: dict[str, Any], tied: dict[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write weights, one at a time in memory.

    Args:
        weights: the weights by name.
        target: the file, which :func:`mm_lightning.outputs.staged` puts in its place.
        metadata: the entry `mm_lightning` of a checkpoint.
        tied: names that are not stored, with the names under which their tensors are.
        dtype: type of the stored tensors; None keeps that of each.
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
    dtypes = {name: dtype or weights.stored[name].dtype for name in names}
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
    place = 8 + _place(_header_bytes(path), CHECKSUM_PLACEHOLDER)
    value = crc32(path)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(f"{value:08x}".encode())
        sync(file)

"""Weights as one safetensors file, written and read tensor by tensor.

The header's metadata says what a checkpoint says under `mm_lightning`, which names mean the same tensor (`tied`), and
the CRC-32 of the file as it would be with zeros in that place.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_lightning.checkpoint.checksums import METADATA_KEY, PARTIAL_SUFFIX, crc32, sync, sync_folder
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
    """The header of a safetensors file.

    Raises:
        ValueError: it is none.
    """
    return json.loads(_header_bytes(path))


def _header_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= _LARGEST_HEADER:
            raise ValueError("it is no safetensors file")
        return file.read(length)


def is_memory_file(path: Path) -> bool:
    """Return whether a file says that it is a memory file."""
    try:
        return read_header(path)["__metadata__"]["format"] == MEMORY_FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def find_safetensors_damage(path: Path, checksums: bool = True) -> str | None:
    """What is wrong with a file, as of :func:`mm_lightning.checkpoint.find_damage`."""
    try:
        raw = _header_bytes(path)
        header = json.loads(raw)
        about = header.pop("__metadata__", {})
        end = 8 + len(raw) + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"cannot be read ({error})"
    if path.stat().st_size != end:
        return f"is truncated or damaged ({path.stat().st_size} bytes instead of {end})"
    if "crc32" not in about:
        return (
            "is damaged (it lacks its checksum)" if METADATA_KEY in about else None
        )  # of another program: it has none
    if not checksums:
        return None
    place = 8 + _place(raw, about["crc32"])
    before = zlib.crc32(CHECKSUM_PLACEHOLDER.encode(), crc32(path, place))
    with open(path, "rb") as file:
        file.seek(place + len(CHECKSUM_PLACEHOLDER))
        while block := file.read(1 << 22):
            before = zlib.crc32(block, before)
    return None if f"{before:08x}" == about["crc32"] else "is damaged (its checksum is not the one it was written with)"


def _place(header: bytes, value: str) -> int:
    """Where the checksum stands in a header."""
    return header.index(b'"crc32":"' + value.encode()) + len(b'"crc32":"')


def write_safetensors(
    weights: Weights, target: Path, about: dict[str, Any], tied: dict[str, str], dtype: torch.dtype | None = None
) -> None:
    """Writes weights one after the other: memory holds one of them at a time.

    Args:
        weights: by name.
        target: the file; it appears when it is complete.
        about: what a checkpoint says under `mm_lightning`.
        tied: names that are not stored, with the names that hold their tensors.
        dtype: of what is stored; None leaves each as it is.
    """
    names = [name for name in weights if name not in tied]
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps(about),
        "tied": json.dumps(tied),
        "crc32": CHECKSUM_PLACEHOLDER,
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in names:
        stored = dtype or weights.dtypes[name]
        size = torch.Size(weights.shapes[name]).numel() * stored.itemsize
        shape = list(weights.shapes[name])
        header[name] = {"dtype": DTYPE_NAMES[stored], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        with open(partial, "w+b") as file:
            value = _put(file, 0, struct.pack("<Q", len(text)) + text)
            for name in names:
                for piece in _pieces(weights[name], dtype or weights.dtypes[name]):
                    value = _put(file, value, piece)
            file.seek(8 + _place(text, CHECKSUM_PLACEHOLDER))
            file.write(f"{value:08x}".encode())
            sync(file)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(target.absolute().parent)


def write_checksum(path: Path) -> None:
    """Put the checksum of a file into its header, in the place of the `UNSEALED` that it was written with."""
    place = 8 + _place(_header_bytes(path), CHECKSUM_PLACEHOLDER)
    value = crc32(path)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(f"{value:08x}".encode())
        sync(file)


def _put(file: Any, value: int, data: Any) -> int:
    file.write(data)
    return zlib.crc32(data, value)


def _pieces(tensor: Tensor, dtype: torch.dtype) -> Any:
    """A tensor's bytes, a piece at a time."""
    for piece in tensor.reshape(-1).split(_PIECE):
        yield memoryview(piece.to(dtype).contiguous().view(torch.uint8).numpy())

"""Atomic writing and loading of plain checkpoints, and its errors."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_lightning.checkpoint.checksums import PARTIAL_SUFFIX, ChecksumFile, sync, sync_folder
from mm_lightning.checkpoint.integrity import find_damage
from mm_lightning.checkpoint.plain_values import MAPPINGS, SEQUENCES, Mapped, check_loadable, is_dense
from mm_lightning.errors import UserError

UNTOUCHED, RESUME = "Earlier checkpoints are untouched", "and continue with --resume"


def broadcast_path(path: str | Path) -> Path:
    """Return the path of rank 0 on every rank: only rank 0 has verified checksums."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Path(path)
    chosen = [str(path)]
    torch.distributed.broadcast_object_list(chosen)
    return Path(chosen[0])


def load(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Load a plain checkpoint to the CPU.

    Raises:
        UserError: it cannot be read, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:
        problem = find_damage(path) or describe_load_error(error)
        raise UserError(f"cannot read the checkpoint {path}: it {problem}") from error


def describe_load_error(error: Exception) -> str:
    """Return in one line why loading failed, as in "is no checkpoint"."""
    text = str(error)
    if "Weights only load failed" in text or "weights_only" in text:
        name = re.search(r"GLOBAL (\S+) w", text)  # which torch does not allow
        where = f" ({name[1]})" if name else ""
        return f"holds more than tensors and plain values, which could run code: it is refused{where}"
    return f"is no checkpoint ({text.splitlines()[0] if text else type(error).__name__})"


def snapshot(checkpoint: Any) -> Any:
    """Return a copy in CPU memory, independent of later training steps; shared storages stay shared."""
    storages: dict[Any, Any] = {}

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value if type(value) in (*MAPPINGS, *SEQUENCES) else copy.deepcopy(value)
        if not is_dense(value):
            clone = value.detach().clone()
            return clone if clone.is_meta else clone.cpu()
        storage = value.untyped_storage()
        key = (storage.device, storage.data_ptr(), storage.nbytes())
        if key not in storages:
            storages[key] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
        place = value.storage_offset(), value.size(), value.stride()
        return torch.empty(0, dtype=value.dtype).set_(storages[key], *place)

    return Mapped(copied)(checkpoint)


def write(checkpoint: dict[str, Any], target: Path) -> None:
    """Write a plain checkpoint with its checksum atomically, after checking that it loads.

    Raises:
        UserError: it cannot be written.
    """
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target, _tensor_bytes(checkpoint))
        _save(checkpoint, partial, ChecksumFile.append_checksum)
        os.replace(partial, target)
        sync_folder(target.parent)
    except Exception as error:
        raise write_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # the cause of a failed write may prevent this too
            partial.unlink(missing_ok=True)


def save_synced(content: Any, path: Path) -> int:
    """Write a file by torch.save, sync it to disk, check that it loads, and return its CRC-32.

    Raises:
        UnloadableState: it could not be loaded.
    """
    check_loadable(content)
    return _save(content, path, lambda summed: sync(summed.file))


def _save(content: Any, path: Path, close: Callable[[ChecksumFile], None]) -> int:
    """Write a file by torch.save and `close`, which syncs it to disk, check that it loads, and return its CRC-32.

    Raises:
        OSError: it cannot be loaded with its tensors memory-mapped.
    """
    with open(path, "wb") as file:
        summed = ChecksumFile(file)
        torch.save(content, summed)  # type: ignore[arg-type]
        close(summed)
    try:
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise OSError(errno.EIO, f"what was written cannot be loaded again: it {describe_load_error(error)}") from error
    return summed.crc32


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes if value.layout == torch.strided else 0
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_tensor_bytes(child) for child in children)


def check_space(target: Path, needed: int) -> None:
    """Raise a UserError if the file system has less than `needed` bytes free."""
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise disk_full_error(target, f": it needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")


def disk_full_error(target: Path, sizes: str = "") -> UserError:
    """Return the error for a full disk."""
    return UserError(f"no space left to write the checkpoint {target}{sizes}. {UNTOUCHED}: free some space {RESUME}")


def write_error(target: Path, error: BaseException) -> UserError:
    """Return the error for a checkpoint that could not be written."""
    if isinstance(error, UserError):
        return error
    if is_disk_full(error, target):
        return disk_full_error(target)
    kind = "" if isinstance(error, (OSError, RuntimeError)) and str(error) else f"{type(error).__name__}: "
    why = getattr(error, "strerror", None) or (kind + str(error).split("\n", 1)[0]).removesuffix(": ")
    return UserError(f"cannot write the checkpoint {target}: {why}. {UNTOUCHED}: fix this {RESUME}")


def is_disk_full(error: BaseException, target: Path) -> bool:
    """Return whether writing failed because the disk is full."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or "unexpected pos" in str(error):  # as a RuntimeError of torch.save says
        return True
    try:
        return shutil.disk_usage(target.parent).free < 1 << 20
    except OSError:  # the folder is gone
        return False

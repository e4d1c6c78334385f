"""Writing and reading plain checkpoints, and what is said when it fails."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.training.checkpoint.whole import PARTIAL, SummedFile, damage, sync, sync_folder


def agreed(path: str | Path) -> Path:
    """The first process's path, on every process: it alone has compared checksums."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Path(path)
    chosen = [str(path)]
    torch.distributed.broadcast_object_list(chosen)
    return Path(chosen[0])


def load(path: Path, mmap: bool = False) -> dict[str, Any]:
    """A plain checkpoint, on the CPU.

    Raises:
        UserError: it cannot be read, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:
        raise UserError(f"cannot read the checkpoint {path}: it {damage(path) or refusal(error)}") from error


def refusal(error: Exception) -> str:
    """Why reading failed, in one line, to be read after "it"."""
    text = str(error)
    if "Weights only load failed" in text or "weights_only" in text:
        return "holds more than tensors and plain values, which could run code: it is refused"
    return f"is no checkpoint ({text.splitlines()[0] if text else type(error).__name__})"


def snapshot(value: Any, storages: dict[Any, Any] | None = None) -> Any:
    """A copy in the CPU's memory that later steps of training leave as it is; what was shared in it stays shared."""
    storages = {} if storages is None else storages
    if isinstance(value, dict):
        return type(value)((name, snapshot(child, storages)) for name, child in value.items())
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(snapshot(child, storages) for child in value)
    if type(value) not in (Tensor, torch.nn.Parameter):
        return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
    storage = value.untyped_storage()
    key = (storage.device, storage.data_ptr(), storage.nbytes())
    if key not in storages:
        storages[key] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
    return torch.empty(0, dtype=value.dtype).set_(storages[key], value.storage_offset(), value.size(), value.stride())


def write(checkpoint: dict[str, Any], target: Path) -> None:
    """Writes a plain checkpoint with its checksum, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    partial = target.with_name(target.name + PARTIAL)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target, _tensor_bytes(checkpoint))
        with open(partial, "wb") as file:
            summed = SummedFile(file)
            torch.save(checkpoint, summed)  # type: ignore[arg-type]
            summed.seal()
        os.replace(partial, target)
        sync_folder(target.parent)
    except (OSError, RuntimeError) as error:
        remove_quietly(partial)
        raise cannot_write(target, error) from error


def write_synced(content: Any, path: Path) -> int:
    """Writes a file of torch and waits until it is on the disk; returns its CRC-32."""
    with open(path, "wb") as file:
        summed = SummedFile(file)
        torch.save(content, summed)  # type: ignore[arg-type]
        sync(file)
    return summed.crc32


def remove_quietly(partial: Path) -> None:
    """Removes a partial file where that is still possible: what made writing fail may forbid it as well."""
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        return


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_tensor_bytes(child) for child in children)


def check_space(target: Path, needed: int) -> None:
    """Raises a UserError where a file system has less than `needed` bytes free."""
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise no_space(target, f": it needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")


def no_space(target: Path, why: str = "") -> UserError:
    """The error for a full disk."""
    return UserError(
        f"no space left to write the checkpoint {target}{why}. Earlier checkpoints are untouched: "
        f"free some space and continue with --resume"
    )


def cannot_write(target: Path, error: Exception) -> UserError:
    """The error for whatever has kept a checkpoint from being written."""
    if isinstance(error, UserError):
        return error
    if is_full(error, target):
        return no_space(target)
    why = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return UserError(
        f"cannot write the checkpoint {target}: {why}. Earlier checkpoints are untouched: mend this and continue "
        f"with --resume"
    )


def is_full(error: Exception, target: Path) -> bool:
    """Whether writing failed because the disk is full."""
    # torch.save reports a full disk as a RuntimeError about an unexpected position
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    if "unexpected pos" in str(error):
        return True
    try:
        return shutil.disk_usage(target.parent).free < 1 << 20
    except OSError:  # it is gone
        return False

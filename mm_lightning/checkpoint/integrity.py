"""Verification of checkpoints: all files are there, and every byte is as it was written.

Checksums are CRC-32: as fast as reading from disk, and certain to detect a flipped bit. A plain checkpoint is a zip
file, as torch.save writes it, with its checksum in the zip comment, which other readers ignore. The checksums of
DeepSpeed's files are in commit.json, which has a checksum of its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mm_lightning.checkpoint.checksums import (
    CHECKSUM_MARK,
    METADATA_KEY,
    PARTIAL_SUFFIX,
    blocks,
    crc32,
    sync,
    sync_folder,
)
from mm_lightning.checkpoint.safetensors_file import find_safetensors_damage

COMMIT_FILE = "commit.json"
DEEPSPEED_TAG = "checkpoint"  # the folder inside a DeepSpeed checkpoint in which Lightning puts the shards
SAFETENSORS_SUFFIX = ".safetensors"

_END = b"PK\x05\x06"  # begins the 22 bytes at the end of a zip file; the last two are the length of its comment
_END_LENGTH = 22
_COMMENT_LENGTH = len(CHECKSUM_MARK) + 8
_SMALL_FILE = 1 << 26  # bytes; smaller files are hashed completely
_SAMPLE = 1 << 16  # bytes of each sample of a larger file


def _stored_checksum(path: Path) -> int | None:
    """Return the checksum in the zip comment of a plain checkpoint; None if there is none."""
    with open(path, "rb") as file:
        file.seek(-min(_END_LENGTH + _COMMENT_LENGTH, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    seal = re.fullmatch(CHECKSUM_MARK + rb"([0-9a-f]{8})", tail[_END_LENGTH:])
    return int(seal[1], 16) if seal and tail[:4] == _END and tail[20:22] == struct.pack("<H", _COMMENT_LENGTH) else None


def _file_damage(path: Path, checksums: bool) -> str | None:
    try:
        seal = _stored_checksum(path)
        if seal is not None:
            end = path.stat().st_size - _COMMENT_LENGTH - 2
            other = checksums and zlib.crc32(b"\0\0", crc32(path, end=end)) != seal
            return "is damaged (its checksum is not the one it was written with)" if other else None
        # written by an earlier version or another program: torch.save stores a checksum for each tensor
        with zipfile.ZipFile(path) as file:
            if file.comment:
                return "is truncated or damaged (at its end)"
            bad = file.testzip() if checksums else None
        return f"is damaged (in its record {bad})" if bad else None
    except zipfile.BadZipFile:
        return "is truncated or damaged (at its end)"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"


def _commit_sum(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "crc32"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def commit_folder(
    partial: Path, target: Path, world_size: int, metadata: dict[str, Any], sums: dict[str, int] | None = None
) -> None:
    """Write commit.json of a DeepSpeed checkpoint and rename the folder to its final name (on one rank only).

    Args:
        partial: the folder, complete on all ranks.
        target: its final name; an existing folder of that name is replaced.
        world_size: number of processes that wrote it.
        metadata: the entry `mm_lightning` of a plain checkpoint.
        sums: known CRC-32 values by path in the folder; the others are computed.
    """
    files, sums = [path for path in _files_of(partial) if path.name != COMMIT_FILE], sums or {}
    listed = {}
    for path in files:
        name = str(path.relative_to(partial))
        value = sums[name] if name in sums else crc32(path)
        listed[name] = {"bytes": path.stat().st_size, "crc32": f"{value:08x}"}
    content = {"world_size": world_size, "files": listed, METADATA_KEY: metadata}
    with open(partial / COMMIT_FILE, "w", encoding="utf-8") as file:
        json.dump({**content, "crc32": _commit_sum(content)}, file, indent=1)
        sync(file)
    for folder in {path.parent for path in files} | {partial}:
        sync_folder(folder)
    old = target.with_name(target.name + ".old" + PARTIAL_SUFFIX)
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_commit(folder: Path) -> dict[str, Any]:
    """Return the content of commit.json.

    Raises:
        ValueError: it is damaged.
        OSError: it is not there.
    """
    content = json.loads((folder / COMMIT_FILE).read_text(encoding="utf-8"))
    files = content["files"].values()
    # earlier versions wrote sizes alone
    if content.get("crc32") != _commit_sum(content) and not all(isinstance(size, int) for size in files):
        raise ValueError("its checksum is not the one it was written with")
    return content


def _folder_damage(folder: Path, checksums: bool) -> str | None:
    try:
        files = read_commit(folder)["files"]
    except FileNotFoundError:
        return f"has no {COMMIT_FILE}: saving it was cut off"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"is damaged ({COMMIT_FILE}: {error})"

    def file_damage(name: str) -> str | None:
        size, value = (files[name], None) if isinstance(files[name], int) else files[name].values()
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"is damaged ({name} is outside of it)"
        if not path.is_file():
            return f"is damaged ({name} is missing)"
        if path.stat().st_size != size:
            return f"is damaged ({name} has {path.stat().st_size} bytes instead of {size})"
        if checksums and value is not None and f"{crc32(path):08x}" != value:
            return f"is damaged (the checksum of {name} is not the one it was written with)"
        return None

    with ThreadPoolExecutor(8) as pool:
        return next(filter(None, pool.map(file_damage, files)), None)


@functools.lru_cache(maxsize=64)
def _damage(path: Path, checksums: bool, state: Any) -> str | None:
    if path.is_dir():
        return _folder_damage(path, checksums)
    return (find_safetensors_damage if path.suffix == SAFETENSORS_SUFFIX else _file_damage)(path, checksums)


def find_damage(path: Path, checksums: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, as in "is truncated"; None if it is valid.

    Args:
        path: a file, or DeepSpeed's folder.
        checksums: verify all checksums, which reads everything; otherwise only check that everything is there.
    """
    if path.name.endswith(PARTIAL_SUFFIX):
        return "is partial: saving it was cut off"
    if not path.exists():
        return "is not there"
    # an unchanged checkpoint is verified once
    state = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in _files_of(path))
    return _damage(path.absolute(), checksums, state)


def _files_of(path: Path) -> list[Path]:
    """Return all files of a folder, sorted; of a file, itself."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def is_complete(path: Path) -> bool:
    """Return whether a checkpoint has all its files in full length; checksums are not verified."""
    return find_damage(path, checksums=False) is None


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; an interrupted deletion leaves a name that ends in .partial."""
    old = path.with_name(path.name + ".old" + PARTIAL_SUFFIX)
    os.replace(path, old)
    remove_partial(old)


def remove_partial(partial: Path) -> None:
    """Delete a file or folder, ignoring errors within a folder."""
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """Return a hash of a checkpoint's content.

    Large files that carry a checksum of their content (at the end of plain checkpoints, in the header of safetensors
    files, in commit.json) are sampled, the checksum included; all others are read completely.
    """
    digest = hashlib.sha256()
    try:
        summed = {name for name, entry in read_commit(path)["files"].items() if isinstance(entry, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not a folder of DeepSpeed
        summed = set()
    for file in _files_of(path):
        size, name = file.stat().st_size, str(file.relative_to(path))
        digest.update(f"{name} {size}".encode())
        if size > _SMALL_FILE and (name in summed or _carries_checksum(file)):
            with open(file, "rb") as stream:
                for part in range(256):
                    stream.seek(part * (size - _SAMPLE) // 255)
                    digest.update(stream.read(_SAMPLE))
        else:
            for block in blocks(file):
                digest.update(block)
    return digest.hexdigest()[:16]


def _carries_checksum(file: Path) -> bool:
    """Return whether a file holds its checksum in its first or last sampled part."""
    with open(file, "rb") as stream:
        head = stream.read(_SAMPLE) if file.suffix == SAFETENSORS_SUFFIX else b""
    sealed = METADATA_KEY.encode() in head and re.search(rb'"crc32":"[0-9a-f]{8}"', head)
    return bool(sealed) or _stored_checksum(file) is not None

"""What makes a checkpoint whole: all of it there, and every byte as it was written.

Checksums are CRC-32: as fast as disks are read, and certain to find a flipped bit. A plain checkpoint is a zip file
(torch writes it so), and its checksum is the zip's comment: copied with the file, and ignored by whatever else reads
it. DeepSpeed's checksums are in commit.json, which has one of its own.
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
from typing import Any, BinaryIO

from mm_lightning.checkpoint.checksums import METADATA_KEY, PARTIAL_SUFFIX, blocks, crc32, sync, sync_folder
from mm_lightning.checkpoint.safetensors_file import find_safetensors_damage

COMMIT_FILE = "commit.json"
DEEPSPEED_TAG = "checkpoint"  # the folder inside a DeepSpeed checkpoint in which Lightning puts the shards
SAFETENSORS_SUFFIX = ".safetensors"

_MARK = b"mm crc32 "
_END = b"PK\x05\x06"  # begins the 22 bytes at the end of a zip file; the last two are the length of its comment
_END_LENGTH = 22
_COMMENT_LENGTH = len(_MARK) + 8
_SMALL = 1 << 26  # bytes that are hashed whole
_PART = 1 << 16  # bytes that are read at once of larger files


class ChecksumFile:
    """A file that is being written by torch.save, and the CRC-32 of what was written so far."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.crc32 = 0

    def write(self, data: bytes) -> int:
        """Writes and adds to the sum."""
        self.crc32 = zlib.crc32(data, self.crc32)
        return self.file.write(data)

    def flush(self) -> None:
        """As the file's."""
        self.file.flush()

    def append_checksum(self) -> None:
        """Adds the sum as the zip's comment, and waits until all is on the disk."""
        comment = _MARK + b"%08x" % self.crc32
        self.file.write(comment)
        self.file.seek(-len(comment) - 2, os.SEEK_END)
        self.file.write(struct.pack("<H", len(comment)))
        sync(self.file)


def _stored_checksum(path: Path) -> int | None:
    """The checksum that a plain checkpoint carries; None where it carries none in the right place."""
    with open(path, "rb") as file:
        file.seek(-min(_END_LENGTH + _COMMENT_LENGTH, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    comment = tail[_END_LENGTH:]
    if tail[:4] == _END and tail[20:22] == struct.pack("<H", _COMMENT_LENGTH) and comment[: len(_MARK)] == _MARK:
        try:
            return int(comment[len(_MARK) :], 16)
        except ValueError:
            return None
    return None


def _file_damage(path: Path, checksums: bool) -> str | None:
    try:
        seal = _stored_checksum(path)
        if seal is not None:
            end = path.stat().st_size - _COMMENT_LENGTH - 2
            other = checksums and zlib.crc32(b"\0\0", crc32(path, end)) != seal
            return "is damaged (its checksum is not the one it was written with)" if other else None
        # Of an earlier version, or from elsewhere: torch has put a checksum beside each tensor.
        with zipfile.ZipFile(path) as file:
            if file.comment:
                return "is truncated or damaged (at its end)"
            bad = file.testzip() if checksums else None
        return f"is damaged (in its record {bad})" if bad else None
    except zipfile.BadZipFile:
        return "is truncated or damaged (at its end)"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"


def describe_file(path: Path, value: int | None = None) -> dict[str, Any]:
    """What commit.json says of a file; `value` is its CRC-32 where that is known already."""
    return {"bytes": path.stat().st_size, "crc32": f"{crc32(path) if value is None else value:08x}"}


def _commit_sum(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "crc32"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def commit_folder(
    partial: Path, target: Path, world_size: int, about: dict[str, Any], sums: dict[str, int] | None = None
) -> None:
    """Marks a DeepSpeed checkpoint as complete and gives it its name (called on one process).

    Args:
        partial: the folder that all processes have finished writing.
        target: its final name; an older folder of that name is replaced.
        world_size: processes that wrote it.
        about: what is under the key `mm_lightning` of a plain checkpoint.
        sums: the CRC-32 of files, by path in the folder; those of others are computed.
    """
    files = {
        str(p.relative_to(partial)): p for p in sorted(partial.rglob("*")) if p.is_file() and p.name != COMMIT_FILE
    }
    listed = {name: describe_file(path, (sums or {}).get(name)) for name, path in files.items()}
    content = {"world_size": world_size, "files": listed, METADATA_KEY: about}
    with open(partial / COMMIT_FILE, "w", encoding="utf-8") as file:
        json.dump({**content, "crc32": _commit_sum(content)}, file, indent=1)
        sync(file)
    for folder in {path.parent for path in files.values()} | {partial}:
        sync_folder(folder)
    old = target.with_name(target.name + ".old" + PARTIAL_SUFFIX)
    if target.exists():
        os.replace(target, old)
    os.replace(partial, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_commit(folder: Path) -> dict[str, Any]:
    """The content of commit.json.

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
    """What is wrong with a checkpoint, to be read after its name: "is truncated"; None if nothing is.

    Args:
        path: a file, or a folder of DeepSpeed.
        checksums: read all of it and compare checksums; otherwise only look whether all of it is there.
    """
    if path.name.endswith(PARTIAL_SUFFIX):
        return "is partial: saving it was cut off"
    if not path.exists():
        return "is not there"
    # what was verified once is not read again while it stays as it is
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    state = tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return _damage(path.absolute(), checksums, state)


def is_complete(path: Path) -> bool:
    """Whether all of a checkpoint is there, its checksums not looked at."""
    return find_damage(path, checksums=False) is None


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint; a deletion that is cut off leaves something that is called partial."""
    old = path.with_name(path.name + ".old" + PARTIAL_SUFFIX)
    os.replace(path, old)
    remove_partial(old)


def remove_partial(partial: Path) -> None:
    """Deletes a file or folder, as far as it can be."""
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """Return a hash that names a checkpoint by its content.

    Of large files that carry the checksum of their whole content (at the end of plain checkpoints, in the headers of
    safetensors files, in commit.json), parts are read, that checksum among them; all others are read whole.
    """
    digest = hashlib.sha256()
    summed = _checksummed_files(path)
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        size, name = file.stat().st_size, str(file.relative_to(path))
        digest.update(f"{name} {size}".encode())
        if size > _SMALL and (name in summed or _carries_checksum(file)):
            with open(file, "rb") as stream:
                for part in range(256):
                    stream.seek(part * (size - _PART) // 255)
                    digest.update(stream.read(_PART))
        else:
            for block in blocks(file):
                digest.update(block)
    return digest.hexdigest()[:16]


def _checksummed_files(folder: Path) -> set[str]:
    """The files of a DeepSpeed checkpoint whose checksums are in its commit.json."""
    try:
        return {name for name, about in read_commit(folder)["files"].items() if isinstance(about, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _carries_checksum(file: Path) -> bool:
    """Whether the checksum of a whole file is in its first or its last part."""
    with open(file, "rb") as stream:
        head = stream.read(_PART)
    return _stored_checksum(file) is not None or (
        file.suffix == SAFETENSORS_SUFFIX
        and METADATA_KEY.encode() in head
        and bool(re.search(rb'"crc32":"[0-9a-f]{8}"', head))
    )

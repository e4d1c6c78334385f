"""Write the token files of units as chunk files of litdata, one stream a split, and read one of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mm_lightning.data.manifest import Shard, crc32
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json

HEADER = 3 * 4
"""Bytes before the tokens of a litdata chunk: the number of items, and begin and end of the one, four bytes each."""


def write_shards(
    parts: list[tuple[Path, int]], folder: Path, dtype: str, shard_tokens: int, workers: int, row: int = 1
) -> list[Shard]:
    """Join token files, in order, and cut the stream into shards of about `shard_tokens` tokens.

    A shard that is already there is kept, and a token file is deleted once the shards that need it are there: this
    can be interrupted, and needs little disk space.

    Args:
        parts: token files and the number of tokens in each.
        folder: for the shards and their index.json.
        dtype: of the tokens.
        shard_tokens: about the size of a shard.
        workers: number of threads.
        row: shards hold a multiple of so many tokens; it divides the number of all tokens.

    Returns:
        The shards, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ends = list(accumulate(tokens for _, tokens in parts))
    rows = ends[-1] // row
    count = max(1, min(rows, round(ends[-1] / shard_tokens)))
    bounds = list(pairwise(rows * n // count * row for n in range(count + 1)))
    shards: list[Shard] = []
    config: dict[str, Any] = {}
    freed = 0
    with ThreadPoolExecutor(workers) as pool, _cancelled(pool):
        written = pool.map(lambda n: _write_shard(parts, ends, bounds[n], n, folder, dtype), range(count))
        for (shard, config), (_, stop) in zip(written, bounds, strict=True):  # noqa: B007
            shards.append(shard)
            while freed < len(parts) and ends[freed] <= stop:
                parts[freed][0].unlink(missing_ok=True)
                freed += 1
    chunks = [{"filename": s.file, "chunk_bytes": s.bytes, "chunk_size": 1, "dim": s.tokens} for s in shards]
    write_json(folder / "index.json", {"chunks": chunks, "config": config})
    return shards


@contextmanager
def _cancelled(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Context manager that cancels the waiting work of a pool on an error or a signal."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _write_shard(
    parts: list[tuple[Path, int]], ends: list[int], bounds: tuple[int, int], number: int, folder: Path, dtype: str
) -> tuple[Shard, dict[str, Any]]:
    """Write tokens start <= i < stop of the stream as one litdata chunk with one item; also return litdata's config."""
    import torch
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    start, stop = bounds
    path = folder / f"chunk-0-{number}.bin"
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        writer = BinaryWriter(beside, chunk_size=1, chunk_index=number, item_loader=TokensLoader())
        if not path.exists():
            tokens = _stream(parts, ends, start, stop, dtype)
            writer.add_item(0, torch.from_numpy(tokens))
            writer.done()
            (made,) = Path(beside).glob("*.bin")
            os.replace(made, path)
        else:  # only for its config
            writer.add_item(0, torch.empty(1, dtype=getattr(torch, dtype)))
        config = writer.get_config()
    return Shard(path.name, path.stat().st_size, stop - start, crc32(path)), config


def _stream(parts: list[tuple[Path, int]], ends: list[int], start: int, stop: int, dtype: str) -> np.ndarray:
    pieces = [np.empty(0, dtype)]
    for (path, tokens), end in zip(parts, ends, strict=True):
        begin = end - tokens
        if begin < stop and end > start:
            first, last = max(start, begin) - begin, min(stop, end) - begin
            pieces.append(np.fromfile(path, dtype, last - first, offset=first * np.dtype(dtype).itemsize))
    return np.concatenate(pieces)


def read_shard(path: Path, dtype: str, tokens: int) -> np.ndarray:
    """Return the (tokens,) tokens of a shard, mapped from the file.

    Raises:
        UserError: the file is missing or too short.
    """
    try:
        return np.memmap(path, dtype, "r", HEADER, (tokens,))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read shard {path} ({error}): run mm data verify") from error


def unmarked(tokens: np.ndarray) -> np.ndarray:
    """Return tokens without the mark of those that are read but never predicted, which are stored as ~token."""
    return np.maximum(tokens, ~tokens) if tokens.dtype.kind == "i" else tokens


def free_bytes(folder: Path) -> int:
    """Return the free disk space where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free

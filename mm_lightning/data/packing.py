"""Pack whole documents into rows of one length, and write them as a split of a prepared folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mm_lightning.data.manifest import Split, entropy
from mm_lightning.data.shards import write_shards

_SHARD_TOKENS = 1 << 22
_OPEN_ROWS = 64  # rows that a document may still be put into


def pack(lengths: list[int], room: int) -> list[list[int]]:
    """Return the numbers of the documents in each row of `room` tokens, first fit among the open rows."""
    rows: list[list[int]] = []
    free: dict[int, int] = {}  # of the open rows, the oldest first
    for number, length in enumerate(lengths):
        row = next((row for row, left in free.items() if left >= length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free[row] = room
            if len(free) > _OPEN_ROWS:
                del free[next(iter(free))]
        rows[row].append(number)
        free[row] -= length
    return rows


def lay_out(rows: list[list[int]], parts: list[np.ndarray], room: int, fill: int) -> np.ndarray:
    """Return the (rows, room) tokens: the parts of each row one after the other, then `fill`."""
    out = np.full((len(rows), room), fill, parts[0].dtype)
    for row, numbers in zip(out, rows, strict=True):
        joined = np.concatenate([parts[number] for number in numbers])
        row[: len(joined)] = joined
    return out


def write_split(
    folder: Path,
    work: Path,
    name: str,
    parts: list[np.ndarray],
    row: int,
    bos: int,
    text_bytes: int | None = None,
) -> Split:
    """Write the shards of a split of documents, none of them cut.

    Args:
        folder: the prepared folder.
        work: for its unfinished work.
        name: the name of the split.
        parts: the tokens of each document, from `bos` to `eos`, none longer than `row`; ~token for one that is read but
            never predicted, of a signed type.
        row: tokens of a row.
        bos: fills the rest of a row.
        text_bytes: bytes of all documents; one for each token between `bos` and `eos` if not given.
    """
    lengths = [len(part) for part in parts]
    stream = lay_out(pack(lengths, row), parts, row, bos)
    path = work / f"{name}.bin"
    stream.tofile(path)
    tokens = np.concatenate(parts)
    counts = np.bincount(tokens[tokens >= 0])  # of those that are predicted
    counts[bos] -= len(parts)
    return Split(
        documents=len(parts),
        tokens=sum(lengths),
        bytes=sum(lengths) - 2 * len(parts) if text_bytes is None else text_bytes,
        unigram_entropy=entropy(counts),
        longest_document=max(lengths),
        length_histogram=np.bincount([length.bit_length() - 1 for length in lengths]).tolist(),
        shards=write_shards([(path, stream.size)], folder / name, str(stream.dtype), _SHARD_TOKENS, 1, row),
    )

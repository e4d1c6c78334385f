"""Check a prepared folder against its manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from shlex import quote

from mm_lightning.data.counts import contradictions, wrong_counts
from mm_lightning.data.manifest import FILE, LITDATA_FORMATS, Manifest, Shard, Split, crc32
from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mm_lightning.errors import UserError


def verify(path: str | os.PathLike, checksums: bool = True) -> list[str]:
    """Return the problems of a prepared folder, one line each.

    Args:
        path: the folder.
        checksums: also read every shard, compare its checksum, and count documents, tokens and bytes again.

    Raises:
        UserError: the folder has no readable manifest.
    """
    folder = Path(path).expanduser()
    manifest = Manifest.load(folder)
    problems = [f"{folder / FILE} is damaged ({line})" for line in contradictions(manifest)]
    problems += _tokenizer_problems(folder, manifest)
    for name, split in manifest.splits.items():
        problems += _index_problems(folder / name, split, manifest.dtype)
        for shard in split.shards:
            problems += shard_problems(folder / name / shard.file, shard, checksums)
        known = {shard.file for shard in split.shards}
        for file in sorted((folder / name).glob("*.bin")) if (folder / name).is_dir() else []:
            if file.name not in known:
                problems.append(f"shard {file} is not of this data set: move it away")
    for path, checksum in ((folder / file, checksum) for file, checksum in manifest.files.items()):
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif checksums and crc32(path) != checksum:
            problems.append(f"{path} is damaged (its checksum is not the one it was written with)")
    if checksums and not problems:
        wrong = wrong_counts(folder, manifest, load_tokenizer(folder))
        problems = [f"{folder / FILE} is damaged ({line})" for line in wrong]
    return problems


def check(
    path: str | os.PathLike,
    tokenizer: Tokenizer | None = None,
    context_length: int | None = None,
) -> Manifest:
    """Return the manifest of a prepared folder after the quick checks that precede training from it.

    Args:
        path: the folder.
        tokenizer: the tokenizer that the shards must have been made with.
        context_length: every split must hold a sequence of one token more.

    Raises:
        UserError: something does not fit.
    """
    manifest = Manifest.load(path)
    problems = verify(path, checksums=False)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}: run mm data verify {quote(str(path))}")
    made_with = manifest.tokenizer
    if tokenizer is not None and tokenizer.sha256 != made_with["sha256"]:
        raise UserError(
            f"the shards in {path} were made with the tokenizer {made_with['name']} "
            f"({made_with['sha256'][:12]}), not with {tokenizer.name} ({tokenizer.sha256[:12]})"
        )
    if context_length is None:
        return manifest
    if manifest.context_length not in (None, context_length):
        raise UserError(
            f"the documents in {path} lie in rows for context_length {manifest.context_length}, not {context_length}: "
            f"set data.context_length to {manifest.context_length}, or prepare another folder"
        )
    for name, split in manifest.splits.items():
        largest = max((shard.tokens for shard in split.shards), default=0)
        if not split.sequences(context_length + 1):
            raise UserError(
                f"context_length {context_length} does not fit the {name} split in {path}: its longest shard has "
                f"{largest} tokens, {context_length + 1} are needed"
            )
    return manifest


def _tokenizer_problems(folder: Path, manifest: Manifest) -> list[str]:
    try:
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        return [str(error)]
    if tokenizer.sha256 != manifest.tokenizer["sha256"]:
        return [f"{folder / 'tokenizer.json'} is not the tokenizer that the shards were made with"]
    return [
        f"{folder / FILE} is damaged ({key} of the tokenizer is {manifest.tokenizer.get(key)!r}, not {value})"
        for key in ("vocab_size", "bos", "eos")
        if manifest.tokenizer.get(key) != (value := getattr(tokenizer, key))
    ]


def _index_problems(folder: Path, split: Split, dtype: str) -> list[str]:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        chunks = [(c["filename"], c["chunk_bytes"], c["dim"]) for c in index["chunks"]]
        data_format = index["config"]["data_format"]
    except FileNotFoundError:
        return [f"{path} is missing"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{path} is damaged ({error})"]
    if chunks != [(s.file, s.bytes, s.tokens) for s in split.shards]:
        return [f"{path} does not list the shards of the manifest"]
    if len(data_format) != 1 or data_format[0] not in LITDATA_FORMATS[dtype]:
        return [f"{path} says the tokens are {data_format}, the manifest says {dtype}"]
    return []


def shard_problems(path: Path, shard: Shard, checksums: bool) -> list[str]:
    """Return the problems of a shard's file: missing, of another size or, with `checksums`, of another checksum."""
    if not path.is_file():
        return [f"shard {path} is missing"]
    size = path.stat().st_size
    if size != shard.bytes:
        state = "truncated" if size < shard.bytes else "too long"
        return [f"shard {path} is {state} ({size} bytes, {shard.bytes} expected)"]
    if checksums and crc32(path) != shard.crc32:
        return [f"shard {path} is damaged (its checksum is not the one it was written with)"]
    return []

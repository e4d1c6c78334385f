"""Folders of generated documents, prepared like those of any text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm_lightning.console import say
from mm_lightning.data.folder import begin, claimed, finish, remove_shards, reuse
from mm_lightning.data.manifest import FILE, FORMAT_VERSION, Manifest, Split, crc32
from mm_lightning.data.tokenizer import Tokenizer


def generate_folder(
    source: str,
    config: Any,
    output: str | os.PathLike,
    context_length: int,
    needed: int,
    fill: Callable[[Path, Path, int], tuple[Tokenizer, dict[str, Split]]],
    identity: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
) -> Manifest:
    """Generate documents in `output`; returns its manifest at once if it is there already.

    Args:
        source: what is generated.
        config: how much; a dataclass.
        output: the folder to make.
        context_length: tokens of a row without the last one, which is only predicted.
        needed: about how many bytes it takes.
        fill: writes shards and tokenizer.json, given the folder, its unfinished work, and the tokens of a row.
        identity: what else the documents follow from.
        files: that `fill` writes beside the shards.
    """
    folder = Path(output).expanduser()
    settings = {"sources": [source], **asdict(config), "context_length": context_length}
    content = json.dumps([FORMAT_VERSION, settings, *identity], sort_keys=True)
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    with claimed(folder):
        if (folder / FILE).exists():
            return reuse(folder, settings, fingerprint)
        work = begin(folder, fingerprint, needed)
        remove_shards(folder)  # all is generated again, by this version of the generator
        tokenizer, splits = fill(folder, work, context_length + 1)
        made = finish(
            folder,
            tokenizer,
            splits=splits,
            sources=[{"source": source, "files": 0, "bytes": sum(split.bytes for split in splits.values())}],
            settings=settings,
            fingerprint=fingerprint,
            context_length=context_length,
            files={name: crc32(folder / name) for name in files},
        )
    for name, split in made.splits.items():
        rows = split.sequences(context_length + 1)
        say(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens in {rows:,} rows of {context_length:,}",
            stderr=True,
        )
    say(f"prepared {folder}", stderr=True)
    return made

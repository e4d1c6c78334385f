"""The output folder of a preparation: locked by one process at a time, never overwriting files of the user."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mm_lightning.console import say
from mm_lightning.data.contents import Contents
from mm_lightning.data.manifest import SPLITS, Manifest, used_versions
from mm_lightning.data.shards import free_bytes
from mm_lightning.data.tokenizer import Tokenizer
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json
from mm_lightning.redaction import redact_values
from mm_lightning.side_files import parse_line

UNFINISHED = ".unfinished"
"""The folder of unfinished work, which is there until the manifest is written."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Context manager that makes the folder and locks it; waits while another process is preparing it.

    Raises:
        UserError: it cannot be written to, or is full.
        KeyboardInterrupt: after a line with the number of finished units.
    """
    try:
        made, locked_before = not folder.exists(), (folder / ".lock").exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _locked(folder):
                yield
        except UserError:
            if not locked_before and not (folder / UNFINISHED).is_dir():  # there is nothing to resume
                (folder / ".lock").unlink(missing_ok=True)
                if made:
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            raise
    except KeyboardInterrupt:
        if (folder / UNFINISHED).is_dir():
            done = len(list((folder / UNFINISHED).glob("unit-*.json")))
            units = f"{done:,} finished units of work are kept in {folder}" if done else "no unit of work was finished"
            say(f"preparing was interrupted: {units}; the same command goes on", stderr=True)
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"no space left for {folder}: free some and run the same again to go on") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            raise UserError(f"cannot write to {folder}: {error.strerror}") from error
        raise


def begin(
    folder: Path,
    identity: str,
    needed: int,
    contents: Contents | None = None,
) -> Path:
    """Begin to prepare an empty folder, or resume; begin anew where the sources changed.

    Args:
        folder: the folder, claimed and without a manifest.
        identity: fingerprint of what is prepared.
        needed: about how many bytes that takes.
        contents: of the sources, as they are now.

    Returns:
        The folder for unfinished work.

    Raises:
        UserError: the folder holds something else, or there is no space.
    """
    plan = folder / UNFINISHED / "plan.json"
    begun = parse_line(plan.read_bytes()) or {} if plan.exists() else {}
    if plan.exists() and "fingerprint" not in begun:
        say(f"{plan} is damaged: this preparation begins anew", stderr=True)
        discard(folder)
    elif begun:
        if begun.get("fingerprint") != identity:
            raise UserError(
                f"{folder} holds an unfinished preparation of something else: give another folder, or delete "
                f"{plan.parent} if it is of no use"
            )
        before = begun.get("contents")  # earlier versions kept none
        changed = before and contents and contents.changed_since(before)
        if not changed:
            if contents and not before:
                write_json(plan, {"fingerprint": identity, "contents": contents.hashes})
            return plan.parent
        say(
            f"{changed} changed since this preparation began: it begins anew, nothing of the old text is kept",
            stderr=True,
        )
        discard(folder)
    strangers = [path.name for path in folder.iterdir() if path.name not in (UNFINISHED, ".lock")]
    if strangers:
        raise UserError(f"{folder} is not empty and not prepared data (it has {strangers[0]}): give another folder")
    free = free_bytes(folder)
    if free < needed:
        raise UserError(f"preparing {folder} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    plan.parent.mkdir(exist_ok=True)
    write_json(plan, {"fingerprint": identity, **({"contents": contents.hashes} if contents else {})})
    return plan.parent


def discard(folder: Path) -> None:
    """Remove an unfinished preparation and the shards that it has written."""
    remove_shards(folder)
    shutil.rmtree(folder / UNFINISHED)


def remove_shards(folder: Path) -> None:
    """Remove the shards that an unfinished preparation has written."""
    for split in SPLITS:
        for file in [*(folder / split).glob("chunk-0-*.bin"), folder / split / "index.json"]:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or something of the user's is in it
            (folder / split).rmdir()


def finish(folder: Path, tokenizer: Tokenizer, **contents: Any) -> Manifest:
    """Write the manifest of a folder whose shards are written, which completes it.

    Args:
        folder: with tokenizer.json among its unfinished work.
        tokenizer: of the shards.
        contents: other fields of the manifest, and its dtype where the vocabulary does not decide it.
    """
    made = Manifest(
        tokenizer={key: getattr(tokenizer, key) for key in ("name", "sha256", "vocab_size", "bos", "eos")},
        versions=used_versions(),
        **{"dtype": token_type(tokenizer), **contents},
    )
    os.replace(folder / UNFINISHED / "tokenizer.json", folder / "tokenizer.json")
    made.save(folder)
    shutil.rmtree(folder / UNFINISHED)
    return made


def token_type(tokenizer: Tokenizer) -> str:
    """Return the dtype of the tokens in the shards: uint16 if the vocabulary fits, else int32."""
    return "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"


def reuse(folder: Path, settings: dict[str, Any], identity: str | None = None, contents: str | None = None) -> Manifest:
    """Return the manifest of a prepared folder, after a check that it was prepared with these settings.

    Args:
        folder: a folder with a manifest.
        settings: the settings to compare with.
        identity: fingerprint to compare as well, which may cover more than the settings.
        contents: hash of what the sources hold now, to compare with that of then.

    Raises:
        UserError: it was prepared from something else.
    """
    manifest = Manifest.load(folder)
    before, now = redact_values(manifest.settings), redact_values(settings)  # a password may change
    differ = [f"{key} {before.get(key)!r}, not {value!r}" for key, value in now.items() if before.get(key) != value]
    if identity not in (None, manifest.fingerprint) and not differ:
        differ = ["other source files or another tokenizer"]
    if not differ and manifest.source_contents and contents not in (None, manifest.source_contents):
        differ = ["the source files hold something else now"]
    if differ:
        reason = "; ".join(differ)
        raise UserError(f"{folder} was prepared from something else ({reason}): give another folder")
    say(f"reusing the data prepared in {folder}", stderr=True)
    return manifest


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl

    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is preparing {folder}", stderr=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield

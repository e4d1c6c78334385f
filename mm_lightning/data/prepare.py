"""Turn text into a prepared folder: litdata shards of tokens, a tokenizer and a manifest.

A document becomes `[bos] tokens [eos]`; documents follow each other in the order of the sources. During preparation the
folder holds `.unfinished/`, in which each finished unit of work is recorded: an interrupted preparation resumes there,
and ends in the same bytes. The manifest is written last: a folder that has one is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mm_lightning.console import say
from mm_lightning.data.contents import Contents
from mm_lightning.data.corpora import Piece, plan_units
from mm_lightning.data.folder import UNFINISHED, begin, claimed, finish, reuse, token_type
from mm_lightning.data.manifest import FILE, FORMAT_VERSION, SPLITS, Manifest, Split, entropy
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.progress import PrepareProgress
from mm_lightning.data.shards import write_shards
from mm_lightning.data.source_files import PACKAGES, SourceFile, list_files, package_versions
from mm_lightning.data.splitting import DocumentSplit, fraction_of, plan_split
from mm_lightning.data.tokenize_units import Job, UnitFiles, UnitRecord, documents_of, is_done, run_units
from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mm_lightning.data.tokenizer_training import CHARACTERS, MADE, character_tokenizer, train_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.hub import commit_of
from mm_lightning.ranges import MOST
from mm_lightning.redaction import HIDDEN, redact_values

_UNIT_BYTES = 1 << 20  # least text of a unit of work
_STRETCH = 1 << 20  # characters: a tokenizer is trained on all of a stretch of a document, or on none of it
_COMPRESSION = 4  # how much larger text is than its compressed file, for estimates


def prepare(config: PrepareConfig, output: str | os.PathLike, progress: bool = True) -> Manifest:
    """Prepare `output`, or resume its preparation; return its manifest at once if it is prepared already.

    Args:
        config: the settings.
        output: the folder to make.
        progress: show a progress bar.

    Raises:
        UserError: bad input, no space, or the folder holds something else.
    """
    folder = Path(output).expanduser()
    if hidden := next((source for source in config.sources if HIDDEN in source), None):
        raise UserError(f"the source {hidden} keeps no secrets: give data.prepare.sources again, with them")
    reading = config.reading()
    left_out: list[str] = []
    files = list_files(config.sources, reading, left_out)
    identity = _fingerprint(config, files)
    with claimed(folder):
        contents = Contents(files)
        if (folder / FILE).exists():
            return reuse(folder, config.reuse_settings(), identity, contents.combined_hash())
        # `bytes`: a token a byte, 2 bytes each; others: seldom less than 2 bytes of text a token, 4 bytes each at most
        needed = int(2.2 * _text_bytes(files))
        work = begin(folder, identity, needed, contents)
        for line in left_out:
            say(line, stderr=True)
        return _make(folder, work, config, files, identity, contents, progress)


def _make(
    folder: Path,
    work: Path,
    config: PrepareConfig,
    files: list[SourceFile],
    identity: str,
    contents: Contents,
    progress: bool,
) -> Manifest:
    total = sum(file.size for file in files)
    sources = _sources(config, files)
    for source in sources:
        say("{source}: {files:,} files, {bytes:,} bytes".format(**source), stderr=True)
    units = plan_units(files, config.reading(), max(_UNIT_BYTES, total >> 12))
    split = _document_split(config, files, work)
    tokenizer = _tokenizer(config, files, work, split, progress)
    dtype = token_type(tokenizer)
    job = Job(files, units, config.reading(), work / "tokenizer.json", dtype, split, work)
    names = [UnitFiles(work, number) for number in range(len(units))]
    missing = [number for number, unit in enumerate(names) if not is_done(unit)]
    if len(missing) < len(units):
        say(f"going on: {len(units) - len(missing)} of {len(units)} units of work are done", stderr=True)
    workers = config.workers or os.cpu_count() or 1
    with PrepareProgress(total, progress) as bar:
        run_units(job, missing, workers, bar.report)
    contents.check_unchanged()
    records = [UnitRecord.load(unit.record) for unit in names]
    splits = _splits(config, folder, names, records, tokenizer, dtype, workers)
    made = finish(
        folder,
        tokenizer,
        splits=splits,
        sources=sources,
        settings=config.identity(),
        fingerprint=identity,
        source_contents=contents.combined_hash(),
        skipped=[line for record in records for line in record.skipped],
        empty_documents=sum(record.empty for record in records),
    )
    for line in _summary(folder, made):
        say(line, stderr=True)
    return made


def _document_split(config: PrepareConfig, files: list[SourceFile], work: Path) -> DocumentSplit:
    path = work / "split.json"
    if path.exists():
        try:
            return DocumentSplit.load(path)
        except (ValueError, KeyError, TypeError, RecursionError):  # finished units depend on it
            say(f"{path} is damaged: this preparation begins anew", stderr=True)
            for file in [*work.glob("unit-*"), work / "tokenizer.json", path]:
                file.unlink(missing_ok=True)
    plain = DocumentSplit(config.validation_fraction)
    # finished work without this file is of an earlier version, which had only this rule
    if not config.validation_fraction or (work / "tokenizer.json").exists():
        return plain
    texts = documents_of(files, _whole(files), config.reading(), None)
    try:
        split, described = plan_split(texts, config.validation_fraction)
    except BaseException:
        shutil.rmtree(work)  # no unit is finished yet: with other settings preparing begins anew
        raise
    say(described, stderr=True)
    split.save(path)
    return split


def _whole(files: list[SourceFile]) -> list[Piece]:
    return [Piece(number) for number in range(len(files))]


def _splits(
    config: PrepareConfig,
    folder: Path,
    units: list[UnitFiles],
    records: list[UnitRecord],
    tokenizer: Tokenizer,
    dtype: str,
    workers: int,
) -> dict[str, Split]:
    frequencies = np.zeros((len(SPLITS), tokenizer.vocab_size), np.int64)
    for unit in units:
        frequencies += np.fromfile(unit.frequencies, np.int64).reshape(frequencies.shape)
    names = SPLITS if config.validation_fraction else SPLITS[:1]
    documents = {split: sum(record.splits[split].documents for record in records) for split in SPLITS}
    if not sum(documents.values()):
        shutil.rmtree(folder / UNFINISHED)  # as below: with these settings it cannot be completed
        raise UserError(f"there is no text in {', '.join(config.sources)}")
    for split in names:
        if not documents[split]:
            shutil.rmtree(folder / UNFINISHED)
            raise UserError(
                f"none of the {sum(documents.values())} documents is in the {split} split at a "
                f"validation_fraction of {config.validation_fraction}: change it (0 makes no validation split), or "
                "give more text"
            )
    splits = {}
    for split, counted in zip(names, frequencies, strict=False):
        counts = [record.splits[split] for record in records]
        parts = [(unit.tokens(split), c.tokens) for unit, c in zip(units, counts, strict=True)]
        counted[tokenizer.bos] -= documents[split]
        lengths = np.sum([c.lengths for c in counts], axis=0)
        splits[split] = Split(
            documents=documents[split],
            tokens=sum(c.tokens for c in counts),
            bytes=sum(c.bytes for c in counts),
            unigram_entropy=entropy(counted),
            longest_document=max(c.longest for c in counts),
            length_histogram=np.trim_zeros(lengths, "b").tolist(),
            shards=write_shards(parts, folder / split, dtype, config.shard_tokens, workers),
        )
    return splits


def _tokenizer(
    config: PrepareConfig, files: list[SourceFile], work: Path, split: DocumentSplit, progress: bool
) -> Tokenizer:
    path = work / "tokenizer.json"
    if config.tokenizer not in MADE:
        tokenizer = load_tokenizer(config.tokenizer, config.bos, config.eos)
        tokenizer.save(path)
        return tokenizer
    if not path.exists() and config.tokenizer == CHARACTERS:
        whole = dataclasses.replace(config, tokenizer_bytes=MOST)
        character_tokenizer(training_texts(whole, files), path)
    elif not path.exists():
        say(f"training a tokenizer of {config.vocab_size} entries", stderr=True)
        texts = training_texts(config, files, split)
        tokenizer = train_tokenizer(texts, config.vocab_size, path, progress)
        if tokenizer.vocab_size < config.vocab_size:
            say(f"the text gives a tokenizer of only {tokenizer.vocab_size} entries", stderr=True)
    tokenizer = load_tokenizer(path)
    kind = "characters of" if config.tokenizer == CHARACTERS else "BPE trained on"
    tokenizer.name = f"{kind} {', '.join(config.sources)}"
    return tokenizer


def check_tokenizer(config: PrepareConfig, made: Manifest, folder: Path) -> None:
    """Check that the tokenizer's file, where it still exists, is the one that a folder was prepared with.

    Raises:
        UserError: it has changed since.
    """
    path = Path(config.tokenizer).expanduser()
    if config.tokenizer in (*MADE, "bytes") or not path.exists():
        return
    now = load_tokenizer(path, config.bos, config.eos)
    if now.sha256 != made.tokenizer["sha256"]:
        raise UserError(
            f"{folder} was prepared with {config.tokenizer} as it was ({made.tokenizer['sha256'][:12]}), which is "
            f"another tokenizer now ({now.sha256[:12]}): give another folder, or leave data.prepare out"
        )


def training_texts(
    config: PrepareConfig,
    files: list[SourceFile] | None = None,
    split: DocumentSplit | None = None,
    skipped: list[str] | None = None,
) -> Iterator[str]:
    """Yield a random sample of the training text, about `tokenizer_bytes` in all, for a tokenizer to be trained on.

    It consists of whole documents, and of stretches of long ones.

    Args:
        config: the settings.
        files: the files of its sources, if they are listed already.
        split: the rule that says which text is for training; all of it if not given.
        skipped: receives a line for each file or row that was skipped.
    """
    if files is None:
        files = list_files(config.sources, config.reading())
    keep = config.tokenizer_bytes / max(_text_bytes(files), 1)
    for text in documents_of(files, _whole(files), config.reading(), skipped):
        for which, part in split.parts(text) if split else [(0, text)]:
            stretches = (part[start : start + _STRETCH] for start in range(0, len(part), _STRETCH))
            yield from (s for s in stretches if which == 0 and fraction_of(s, "tokenizer") < keep)


def _text_bytes(files: list[SourceFile]) -> int:
    """Return about how many bytes of text the files hold."""
    return sum(file.size * (_COMPRESSION if file.codec else 1) for file in files)


def _fingerprint(config: PrepareConfig, files: list[SourceFile]) -> str:
    tokenizer = config.tokenizer
    if tokenizer not in MADE:
        tokenizer = load_tokenizer(config.tokenizer, config.bos, config.eos).sha256
    # without on_error, which changes no finished unit: a preparation that was refused can be resumed with `skip`
    settings = {**config.identity(), "tokenizer": tokenizer, "on_error": None}
    content = [FORMAT_VERSION, redact_values(settings), [(file.name, file.size) for file in files]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sources(config: PrepareConfig, files: list[SourceFile]) -> list[dict[str, Any]]:
    """Return what the manifest says of each source: its files, its bytes, and what tells its version."""
    described: list[dict[str, Any]] = []
    for source in config.sources:
        of_source = [file for file in files if file.source == source]
        described.append({"source": source, "files": len(of_source), "bytes": sum(file.size for file in of_source)})
        if source == PACKAGES:
            described[-1]["packages"] = package_versions()
        if commit := commit_of(of_source[0].url):
            described[-1]["commit"] = commit
    return described


def skipped_line(skipped: list[str]) -> str:
    """Return a line with the number of skipped files or rows, and the first of them."""
    return f"skipped {len(skipped):,} files or rows; the first: {skipped[0]}"


def _summary(folder: Path, made: Manifest) -> Iterator[str]:
    for name, split in made.splits.items():
        yield (
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes / split.tokens:.2f} bytes "
            f"a token, unigram entropy {split.unigram_entropy:.3f} nats a token"
        )
    if made.skipped:
        yield f"{skipped_line(made.skipped)}; all are listed in {folder / FILE}"
    yield f"prepared {folder}"

"""Tokenize a preparation's units of work, each the documents of a few files, in parallel worker processes."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mm_lightning import streams
from mm_lightning.console import say
from mm_lightning.data.corpora import Piece, read_piece
from mm_lightning.data.manifest import SPLITS
from mm_lightning.data.source_files import ReadSettings, SourceFile
from mm_lightning.data.splitting import DocumentSplit
from mm_lightning.data.tokenizer import Tokenizer, load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.outputs import write_json
from mm_lightning.signals import end_with_parent, starting_deaf

_BATCH_CHARACTERS = 1 << 20
_LATE = 2.0  # seconds

# Called with documents, tokens and characters done since the last call.
Report = Callable[[int, int, int], None]


@dataclass
class SplitCounts:
    """The numbers of one unit's part of one split."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    longest: int = 0
    lengths: list[int] = field(default_factory=lambda: [0] * 48)  # documents of 2**k to 2**(k+1) - 1 tokens


@dataclass
class UnitRecord:
    """The JSON record of a finished unit; its tokens and token counts are beside it."""

    splits: dict[str, SplitCounts]
    skipped: list[str]
    empty: int

    @classmethod
    def load(cls, path: Path) -> UnitRecord:
        """Read the record of a unit.

        Raises:
            ValueError: it is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            splits = {name: SplitCounts(**content["splits"][name]) for name in SPLITS}
            return cls(splits, content["skipped"], content["empty"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged") from error


@dataclass(frozen=True)
class UnitFiles:
    """The paths of a unit's results."""

    folder: Path
    number: int

    @property
    def record(self) -> Path:
        return self.folder / f"unit-{self.number:06d}.json"

    def tokens(self, split: str) -> Path:
        return self.folder / f"unit-{self.number:06d}.{split}.bin"

    @property
    def frequencies(self) -> Path:
        return self.folder / f"unit-{self.number:06d}.counts"


@dataclass(frozen=True)
class Job:
    """The inputs of a worker, besides the number of the unit."""

    files: list[SourceFile]
    units: list[list[Piece]]
    settings: ReadSettings
    tokenizer: Path
    dtype: str
    split: DocumentSplit
    folder: Path


def documents_of(
    files: list[SourceFile], unit: list[Piece], settings: ReadSettings, skipped: list[str] | None
) -> Iterator[str]:
    """Yield the documents of a unit, in order, empty ones included."""
    for piece in unit:
        yield from read_piece(files[piece.file], piece, settings, skipped)


def is_done(files: UnitFiles) -> bool:
    """Return whether a unit has a valid record; print a line where it is damaged."""
    if not files.record.exists():
        return False
    try:
        UnitRecord.load(files.record)
    except ValueError:
        say(f"{files.record} is damaged: its unit of work is done again", stderr=True)
        return False
    return True


def run_units(job: Job, numbers: list[int], workers: int, report: Report) -> None:
    """Tokenize the units `numbers`, in this process if `workers` is 1.

    Raises:
        UserError: bad input, or a worker died.
    """
    if workers == 1 or len(numbers) < 2:
        tokenizer = load_tokenizer(job.tokenizer)
        for number in numbers:
            tokenize_unit(job, number, tokenizer, report)
        return
    context = get_context("spawn")
    with starting_deaf():
        queue, ended = context.Queue(), context.Event()
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context, _start_worker, (job, queue, ended))
    try:
        with starting_deaf():
            waiting = {pool.submit(_work, number) for number in numbers}
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not queue.empty():
                report(*queue.get())
            _raise_first(done)
    except KeyboardInterrupt:
        ended.set()
        raise
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for lack of memory: run the same again to go on, with fewer workers "
            "(in a script of your own, call this under `if __name__ == '__main__':`)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    while not queue.empty():
        report(*queue.get())


def _raise_first(done: set[Future]) -> None:
    for future in done:
        future.result()


_worker: dict[str, Any] = {}


def _start_worker(job: Job, queue: Any, ended: Any) -> None:
    streams.guard()
    # Signals are for the main process, which then ends this worker, started with them blocked. Only the pool's own
    # SIGTERM, after the death of another worker, is obeyed, late enough for the main process to notice that first.
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(_LATE, os._exit, (1,)).start())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Thread(target=_exit_after, args=(ended.wait,), daemon=True).start()
    # the processes of the pool are the parallelism: no threads of the tokenizers library within each
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_with_parent()
    _worker.update(job=job, tokenizer=load_tokenizer(job.tokenizer), report=lambda *done: queue.put(done))


def _exit_after(wait_for_end: Callable[[], Any]) -> None:
    """Wait until the preparation is interrupted, then end this process, also in the middle of a unit."""
    wait_for_end()
    os._exit(1)


def _work(number: int) -> None:
    tokenize_unit(_worker["job"], number, _worker["tokenizer"], _worker["report"])


def tokenize_unit(job: Job, number: int, tokenizer: Tokenizer, report: Report) -> None:
    """Tokenize a unit: write its tokens, a file for each split, its token frequencies, and last its record."""
    files = UnitFiles(job.folder, number)
    counts = {split: SplitCounts() for split in SPLITS}
    frequencies = np.zeros((len(SPLITS), tokenizer.vocab_size), np.int64)
    begin, end = np.array([tokenizer.bos], job.dtype), np.array([tokenizer.eos], job.dtype)
    skipped: list[str] = []
    empty = 0
    # under another name until complete: the worker of a killed run may still be writing
    paths = {split: files.tokens(split).with_suffix(f".{os.getpid()}") for split in SPLITS}
    outs = {split: path.open("wb") for split, path in paths.items()}
    try:
        for texts in _batches(documents_of(job.files, job.units[number], job.settings, skipped)):
            full = [text for text in texts if text]
            empty += len(texts) - len(full)
            parts = [part for text in full for part in job.split.parts(text)]
            streams: list[list[np.ndarray]] = [[] for _ in SPLITS]
            encoded = tokenizer.encode_arrays([text for _, text in parts], job.dtype)
            for (which, text), ids in zip(parts, encoded, strict=True):
                streams[which] += [begin, ids, end]
                _count(counts[SPLITS[which]], text, len(ids) + 2)
            for which, split in enumerate(SPLITS):
                stream = np.concatenate([np.empty(0, job.dtype), *streams[which]])
                outs[split].write(stream.tobytes())
                frequencies[which] += np.bincount(stream, minlength=tokenizer.vocab_size)
            report(len(full), sum(len(s) for group in streams for s in group), sum(map(len, full)))
    finally:
        for out in outs.values():
            out.close()
    for split, path in paths.items():
        os.replace(path, files.tokens(split))
    files.frequencies.write_bytes(frequencies.tobytes())
    write_json(files.record, asdict(UnitRecord(counts, skipped, empty)))


def _count(counts: SplitCounts, text: str, length: int) -> None:
    counts.documents += 1
    counts.tokens += length
    counts.bytes += len(text.encode())
    counts.longest = max(counts.longest, length)
    counts.lengths[length.bit_length() - 1] += 1


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

"""The commands `mm generate` and `mm remember`; what each needs is imported when it runs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mm_lightning.console import Progress, say
from mm_lightning.errors import UserError
from mm_lightning.inference.sampling import DEFAULTS, Sampling
from mm_lightning.inference.text import check_stop, encode_next, escape, unescape
from mm_lightning.outputs import MEMORY, Output, check_output, opened
from mm_lightning.ranges import Budget, Count, Name, Place, Text
from mm_lightning.terminal import display
from mm_lightning.text_files import JSON_LINES, json_texts, read_document, split_suffix, text_lines

if TYPE_CHECKING:
    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.inference.reader import Reader
    from mm_lightning.memory.sublinear.key_clusters import SublinearRead
    from mm_lightning.networks import Network


def generate_command(
    checkpoint: Place,
    prompt: Text | None = None,
    prompts: Place | None = None,
    output: Place | None = None,
    memory: Place | None = None,
    samples: Count = 1,
    batch_size: Count = 8,
    max_new_tokens: Count = 200,
    stop: Text | list[Text] | None = None,
    read_budget: Budget | None = None,
    overwrite: bool = False,
    device: Name = "auto",
    **sampling: Annotated[Any, Sampling],
) -> None:
    r"""Sample text from a trained network.

    One prompt: prints it and its continuation, as it is drawn. A file of prompts: writes a JSON object a line,
    {"prompt": ..., "text": ...}, or "texts" for several samples.

    Args:
        checkpoint: a run folder (its newest valid checkpoint is taken) or a checkpoint.
        prompt: the beginning of the document; empty if not given. \n is a line end, \t a tab and \\ a backslash.
        prompts: a file of prompts: one a line, or in a .jsonl file {"prompt": ...}; also .gz or .zst. Empty lines are
            left out.
        output: a .jsonl file for the texts; they are printed if not given.
        memory: a memory file of `mm remember` to go on from: prompts are then read at the end of its document.
        samples: texts for each prompt, which is read once.
        batch_size: prompts that are continued side by side; with a memory it is one.
        max_new_tokens: tokens to draw at most; the token that ends a document ends it earlier.
        stop: end before this string, or any of several: --stop END --stop STOP; \n is a line end.
        read_budget: how many pairs of a long memory are read one by one for each token that is drawn, and all others by
            summaries: faster from four times as many on (docs/performance.md). By default all are read one by one.
        overwrite: replace an existing output.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
    """
    chosen = Sampling(**sampling)
    if prompt is not None and prompts is not None:
        raise UserError("give --prompt or --prompts, not both")
    stops = [unescape(text) for text in ([stop] if isinstance(stop, str) else stop or [])]
    check_stop(stops)
    texts = [unescape(prompt or "")] if prompts is None else read_prompt_file(prompts)
    target = None if output is None else check_output(output, overwrite, [prompts, memory])
    from mm_lightning.checkpoint import load_network
    from mm_lightning.inference.generate import choose_device, inference_on, write
    from mm_lightning.inference.memory_file import load_memory

    place = choose_device(device)
    network, tokenizer = load_network(checkpoint, place)
    read = sublinear(read_budget)
    with inference_on(place):
        remembered = None if memory is None else load_memory(memory, network, tokenizer, sublinear=read)
        readers = _readers(network, tokenizer, texts, remembered, samples, max_new_tokens, batch_size, read)
        speed = Speed()
        written = (
            (part, speed.counted(write(reader, tokenizer, chosen, max_new_tokens, stops, first * samples)))
            for first, part, reader in readers
        )
        if prompts is None and target is None and samples == 1:
            _print_text(texts[0], written)
        elif prompts is None and target is None:
            _print_samples(texts[0], written, samples)
        else:
            _write_lines(written, samples, len(texts), target)
    speed.report()


def generate_line(checkpoint: str | Path, prompt: str, sampling: Sampling, max_new_tokens: int) -> str:
    """Return the `mm generate` command, quoted for a shell, that samples the same text as `generate`."""
    words = ["mm", "generate", "--checkpoint", str(checkpoint)]
    if prompt:
        words += [f"--prompt={escape(prompt)}"] if prompt.startswith("-") else ["--prompt", escape(prompt)]
    options = {**dataclasses.asdict(sampling), "max_new_tokens": max_new_tokens}
    default_length = inspect.signature(generate_command).parameters["max_new_tokens"].default
    defaults = {**dataclasses.asdict(DEFAULTS), "max_new_tokens": default_length}
    for name, value in options.items():
        words += [] if value == defaults[name] else [f"--{name}", str(value)]
    return shlex.join(words)


Written = Iterator[tuple[list[str], Iterator[tuple[int, str]]]]
"""The prompts of a batch, and the iterator of :func:`mm_lightning.inference.generate.write` for them."""


def _readers(
    network: Network,
    tokenizer: Tokenizer,
    prompts: list[str],
    memory: Reader | None,
    samples: int,
    max_new_tokens: int,
    batch_size: int,
    read: SublinearRead | None,
) -> Iterator[tuple[int, list[str], Reader]]:
    """Yield for each batch of prompts the number of the first one, the prompts, and a reader that has read them."""
    from mm_lightning.inference.generate import AHEAD, copies, read_prompts

    size = batch_size if memory is None else 1
    for first in range(0, len(prompts), size):
        part = prompts[first : first + size]
        if memory is None:
            yield first, part, read_prompts(network, tokenizer, part, samples, max_new_tokens, read)
        else:
            tokens = encode_next(tokenizer, part[0], memory.documents[0])
            room = memory.state.length + len(tokens) + min(max_new_tokens, AHEAD)
            reader = memory if len(prompts) == 1 else memory.fork([0], room)
            reader.read([tokens])
            yield first, part, copies(reader, samples, room)


def sublinear(budget: int | None) -> SublinearRead | None:
    """Return the sub-linear read of `--read_budget` pairs; None without a budget."""
    if budget is None:
        return None
    from mm_lightning.memory.sublinear.key_clusters import SublinearRead

    return SublinearRead(budget)


def _print_text(prompt: str, written: Written) -> None:
    try:
        display(prompt, end="", flush=True)
        for _, pieces in written:
            for _, piece in pieces:
                display(piece, end="", flush=True)
    finally:  # an error message begins on a line of its own
        display("")


def _print_samples(prompt: str, written: Written, samples: int) -> None:
    from mm_lightning.inference.generate import collect

    for _, pieces in written:
        for number, text in enumerate(collect(pieces, samples)):
            display(f"--- {number + 1} of {samples}\n{prompt}{text}")


def _write_lines(written: Written, samples: int, total: int, target: Output | None) -> None:
    from mm_lightning.inference.generate import collect

    with opened(target, keep=True) as file, Progress("prompts", total, shown=target is not None) as bar:
        for prompts, pieces in written:
            texts = collect(pieces, len(prompts) * samples)
            for n, prompt in enumerate(prompts):
                continued = texts[n * samples : (n + 1) * samples]
                line = {"prompt": prompt} | ({"text": continued[0]} if samples == 1 else {"texts": continued})
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            bar.advance(len(prompts))


def remember_command(
    checkpoint: Place, text: Place, output: Place, overwrite: bool = False, device: Name = "auto"
) -> None:
    """Read a document once and save the memory of it.

    `mm generate --memory FILE` and `mm chat --memory FILE` continue from there.

    Args:
        checkpoint: a run folder (its newest valid checkpoint is taken) or a checkpoint.
        text: the document, a text file.
        output: the memory file to write. It also holds the document's text, as tokens.
        overwrite: replace an existing output.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
    """
    document = read_document(text)
    from mm_lightning.checkpoint import load_network
    from mm_lightning.inference.generate import choose_device, inference_on
    from mm_lightning.inference.memory_file import save_memory
    from mm_lightning.inference.reader import Reader

    target = check_output(output, overwrite, [text], MEMORY)
    place = choose_device(device)
    network, tokenizer = load_network(checkpoint, place)
    tokens = [tokenizer.bos, *tokenizer.encode(document)]
    with inference_on(place):
        reader = Reader(network, 1, len(tokens))
        with Progress("reading", len(tokens)) as bar:
            reader.read([tokens], bar.advance)
        save_memory(target, reader, tokenizer)
    say(f"{output}: {len(tokens):,} tokens, {reader.state.bytes / 1e6:.1f} MB")


def read_prompt_file(path: str) -> list[str]:
    """Return the prompts of a text file, one a line, or of JSON lines (.jsonl, .ndjson, .json); each may be compressed.

    Raises:
        UserError: it cannot be read, or holds none; with the row of an invalid JSON line.
    """
    if split_suffix(path)[0] in JSON_LINES:
        prompts = list(json_texts(path, "prompt"))
    else:
        prompts = [line for _, line in text_lines(path)]
    if not prompts:
        raise UserError(f"{path} holds no prompts: all its lines are blank")
    return prompts


class Speed:
    """The number of generated tokens per second, printed to standard error where that is a terminal."""

    def __init__(self) -> None:
        self.begin, self.tokens = time.monotonic(), 0

    def counted(self, pieces: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        """Yield the pieces, one for each token, and count them."""
        for piece in pieces:
            self.tokens += 1
            yield piece

    def report(self) -> None:
        """Print the speed since the beginning."""
        if sys.stderr.isatty():
            seconds = time.monotonic() - self.begin
            say(f"{self.tokens:,} tokens, {self.tokens / seconds:,.1f} tokens/s", stderr=True)

"""Generate text: the network reads a prompt once, and continues it from its state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mm_lightning.errors import UserError
from mm_lightning.inference.sampling import DEFAULTS, Sampler, Sampling
from mm_lightning.inference.text import TextStream, check_stop

if TYPE_CHECKING:
    import torch

    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.inference.reader import Reader
    from mm_lightning.memory.sublinear.key_clusters import SublinearRead
    from mm_lightning.networks import Network


AHEAD = 4096
"""New tokens to preallocate at most: a cache doubles when it is full, and most texts end before a high limit."""


def generate(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str = "",
    sampling: Sampling = DEFAULTS,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
) -> str:
    """Generate text that continues a prompt.

    Args:
        network: a trained network, in evaluation mode.
        tokenizer: the one it was trained with.
        prompt: the beginning of the document.
        sampling: the sampling settings.
        max_new_tokens: tokens to draw at most; the token that ends a document ends it earlier.
        stop: end before any of these strings.

    Returns:
        The continuation, without the prompt.

    Raises:
        UserError: a setting is out of range.
    """
    return "".join(stream(network, tokenizer, prompt, sampling, max_new_tokens, stop))


def stream(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str = "",
    sampling: Sampling = DEFAULTS,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Generate as :func:`generate` does, piece by piece; no later token changes a piece."""
    reader = read_prompts(network, tokenizer, [prompt], max_new_tokens=max_new_tokens)
    return (piece for _, piece in write(reader, tokenizer, sampling, max_new_tokens, stop) if piece)


def generate_batch(
    network: Network,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    samples: int = 1,
    sampling: Sampling = DEFAULTS,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
) -> list[list[str]]:
    """Generate texts that continue each prompt, in one batch; other arguments as for :func:`generate`.

    Args:
        prompts: the beginnings of the documents, of any lengths. Each is read once.
        samples: texts for each prompt.

    Returns:
        `samples` continuations of each prompt.
    """
    if not prompts:
        return []
    reader = read_prompts(network, tokenizer, prompts, samples, max_new_tokens)
    texts = collect(write(reader, tokenizer, sampling, max_new_tokens, stop), len(reader.documents))
    return [texts[n : n + samples] for n in range(0, len(texts), samples)]


def collect(pieces: Iterable[tuple[int, str]], documents: int) -> list[str]:
    """Join the pieces that :func:`write` yields to the text of each document."""
    texts: list[list[str]] = [[] for _ in range(documents)]
    for number, piece in pieces:
        texts[number].append(piece)
    return ["".join(parts) for parts in texts]


def read_prompts(
    network: Network,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    samples: int = 1,
    max_new_tokens: int = 0,
    sublinear: SublinearRead | None = None,
) -> Reader:
    """Return a reader that has read documents that begin with these prompts.

    Args:
        network: in evaluation mode.
        tokenizer: of the prompts.
        prompts: texts of any lengths.
        samples: copies of each document in the batch.
        max_new_tokens: tokens to preallocate for each document.
        sublinear: as for :class:`Reader`.

    Raises:
        UserError: `samples` is below 1.
    """
    from mm_lightning.inference.reader import Reader

    documents = [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(prompts)]
    room = max(map(len, documents)) + min(max_new_tokens, AHEAD)
    reader = Reader(network, len(documents), room, sublinear=sublinear)
    reader.read(documents)
    return copies(reader, samples, room)


def copies(reader: Reader, samples: int, capacity: int = 0) -> Reader:
    """Return a reader with each document `samples` times; the reader itself for one sample."""
    if samples < 1:
        raise UserError(f"samples must be at least 1, got {samples}")
    if samples == 1:
        return reader
    return reader.fork([row for row in range(len(reader.documents)) for _ in range(samples)], capacity)


def write(
    reader: Reader,
    tokenizer: Tokenizer,
    sampling: Sampling = DEFAULTS,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
    first: int = 0,
) -> Iterator[tuple[int, str]]:
    """Continue the documents of a reader, which must not be used afterwards.

    A document ends with the token that ends it, before a stop string, or after `max_new_tokens`.

    Args:
        reader: a reader that has read at least one token.
        tokenizer: of the documents.
        sampling: the sampling settings.
        max_new_tokens: tokens of each document at most.
        stop: end a document before any of these strings.
        first: number of the first document for the random numbers, where documents are written in several batches.

    Returns:
        One item for each token drawn: the document's row in the reader, and a piece of text, which may be empty, that
        no later token changes.

    Raises:
        UserError: a setting is out of range.
    """
    check_stop(stop)
    check_length(max_new_tokens)
    return _write(reader, tokenizer, sampling, max_new_tokens, stop, first)


def _write(
    reader: Reader, tokenizer: Tokenizer, sampling: Sampling, max_new_tokens: int, stop: Sequence[str], first: int
) -> Iterator[tuple[int, str]]:
    texts = [TextStream(tokenizer, stop, document) for document in reader.documents]
    sampler = Sampler(sampling, reader.documents, range(first, first + len(texts)))
    rows = list(range(len(texts)))  # which document each row of the reader is
    going = set(rows)
    for left in reversed(range(max_new_tokens)):
        assert reader.logits is not None
        drawn = sampler.draw(reader.logits).tolist()
        for number, token in zip(rows, drawn, strict=True):
            if number not in going:
                continue
            text = texts[number]
            piece = "" if token == tokenizer.eos else text.add(token)
            if token == tokenizer.eos or text.stopped or not left:
                piece += text.finish()
                going.remove(number)
            yield number, piece
        if not going:
            return
        if 2 * len(going) <= len(rows):  # rows of ended documents cost time, dropping them costs a copy
            unfinished = [row for row, number in enumerate(rows) if number in going]
            reader = reader.fork(unfinished, reader.state.length + min(left, AHEAD))
            rows, drawn = ([values[row] for row in unfinished] for values in (rows, drawn))
            sampler.keep(unfinished)
        reader.read([[token] for token in drawn])


def check_length(max_new_tokens: int) -> None:
    """Raise a UserError if `max_new_tokens` is below 1."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def choose_device(name: str) -> torch.device:
    """Return the device of a name such as cpu, cuda or cuda:1; auto is a GPU if there is one.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device {name!r} here: use cpu, or cuda on a machine with a GPU") from error
    return device


@contextlib.contextmanager
def inference_on(device: torch.device) -> Iterator[None]:
    """Context manager of inference on a device: bf16 autocast on a GPU, float32 elsewhere.

    Raises:
        UserError: the GPU's memory is full.
    """
    import torch

    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the memory of {device} is full: fewer documents side by side (--batch_size, --samples), a shorter text, "
            f"or --device cpu"
        ) from error

"""Writing text: the network reads a prompt once and goes on from what it remembers."""

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
"""New tokens to make room for at once: a store doubles where more come, and most texts end before a high limit."""


def generate(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str = "",
    sampling: Sampling = DEFAULTS,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
) -> str:
    """Text that continues a prompt.

    Args:
        network: a trained model, in evaluation mode.
        tokenizer: the one it was trained with.
        prompt: the beginning of the document.
        sampling: how tokens are drawn.
        max_new_tokens: how many to draw at most; the end of the text ends it earlier.
        stop: end before any of these strings.

    Returns:
        the continuation, without the prompt.

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
    """:func:`generate` piece by piece, each as soon as it is certain."""
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
    """Texts that continue each prompt, all written side by side; arguments as for :func:`generate`.

    Args:
        prompts: the beginnings of the documents, of any lengths. Each is read once.
        samples: texts for each.

    Returns:
        `samples` continuations of each prompt.
    """
    if not prompts:
        return []
    reader = read_prompts(network, tokenizer, prompts, samples, max_new_tokens)
    texts = collect(write(reader, tokenizer, sampling, max_new_tokens, stop), len(reader.documents))
    return [texts[n : n + samples] for n in range(0, len(texts), samples)]


def collect(pieces: Iterable[tuple[int, str]], documents: int) -> list[str]:
    """The whole text of each document, of what :func:`write` yields."""
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
    """A reader that has read documents that begin with these prompts.

    Args:
        network: in evaluation mode.
        tokenizer: of the prompts.
        prompts: of any lengths.
        samples: copies of each document, side by side.
        max_new_tokens: that will be written.
        sublinear: as for :class:`Reader`.

    Raises:
        UserError: no sample is asked for.
    """
    from mm_lightning.inference.reader import Reader

    documents = [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(prompts)]
    room = max(map(len, documents)) + min(max_new_tokens, AHEAD)
    reader = Reader(network, len(documents), room, sublinear=sublinear)
    reader.read(documents)
    return copies(reader, samples, room)


def copies(reader: Reader, samples: int, capacity: int = 0) -> Reader:
    """Each document of a reader `samples` times, side by side; the reader itself where it is once."""
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
    """Goes on with the documents of a reader, which belongs to it from then on.

    A document ends by itself: by the token that ends a text, before a stop string, or after `max_new_tokens`.

    Args:
        reader: has read something.
        tokenizer: of the documents.
        sampling: how tokens are drawn.
        max_new_tokens: of each document.
        stop: end a document before any of these strings.
        first: number of the first document for the random numbers, where documents are written in several batches.

    Returns:
        One item for each token drawn: the document's place in the reader and the text that has become certain, which
        may be empty.

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
        if 2 * len(going) <= len(rows):  # rows of ended documents cost time; to leave them out costs a copy
            kept = [row for row, number in enumerate(rows) if number in going]
            reader = reader.fork(kept, reader.state.length + min(left, AHEAD))
            rows, drawn = ([of[row] for row in kept] for of in (rows, drawn))
            sampler.keep(kept)
        reader.read([[token] for token in drawn])


def check_length(max_new_tokens: int) -> None:
    """Raises a UserError where nothing would be written."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def choose_device(name: str) -> torch.device:
    """The device of a name such as cpu, cuda or cuda:1; auto is a GPU if there is one.

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
    """How commands compute on a device: in bf16 where it is a GPU, in float32 elsewhere.

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

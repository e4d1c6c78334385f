"""Sampling text, one token at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mm_lightning.errors import UserError

if TYPE_CHECKING:
    import torch

    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.networks import Network


def next_token_probabilities(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> torch.Tensor:
    """(V,) probabilities to draw from, given (V,) logits.

    Args:
        logits: of the next token.
        temperature: divides the logits; 0 puts all weight on the largest.
        top_k: keep the k most probable tokens only.
        top_p: keep the fewest most probable tokens whose probabilities reach p (of what top_k left).
    """
    import torch

    logits = logits.float()
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    ranked, order = (logits / temperature).sort(descending=True, stable=True)
    kept = ranked[:top_k].softmax(-1)
    if top_p is not None:
        before = kept.cumsum(-1) - kept  # a token stays if the ones before it have not reached p yet
        kept = kept.masked_fill(before >= top_p, 0)
        kept = kept / kept.sum()
    return torch.zeros_like(logits).scatter_(0, order[: len(kept)], kept)


def generate_tokens(
    network: Network,
    tokens: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    end: int | None = None,
) -> Iterator[int]:
    """Yields new tokens after `tokens` (the document so far, beginning of text included).

    Every token reads the whole document anew.

    Args:
        network: the model, left in the mode it is in.
        tokens: the document so far.
        max_new_tokens: how many to draw at most.
        temperature: see :func:`next_token_probabilities`, like top_k and top_p.
        top_k: see there.
        top_p: see there.
        seed: of the draws.
        end: stop when this token is drawn; it is not yielded.
    """
    import torch

    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = list(tokens)
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            logits = network(torch.tensor([tokens], device=device))[0, -1].cpu()
        probabilities = next_token_probabilities(logits, temperature, top_k, top_p)
        token = int(torch.multinomial(probabilities, 1, generator=generator))
        if token == end:
            return
        tokens.append(token)
        yield token


def generate(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> str:
    """Text that continues a prompt.

    Args:
        network: a trained model.
        tokenizer: the one it was trained with.
        prompt: the beginning of the document.
        max_new_tokens: how many tokens to draw at most; the end of the text ends it earlier.
        temperature: 0 always takes the most probable token; lower is safer, higher is more varied.
        top_k: draw from the k most probable tokens only.
        top_p: draw from the fewest tokens whose probabilities reach p.
        seed: of the draws.
        stop: end before any of these strings.

    Returns:
        the continuation, without the prompt.

    Raises:
        UserError: a setting is out of range.
    """
    pieces = stream(network, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed, stop)
    return "".join(pieces)


def stream(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """:func:`generate` piece by piece, each as soon as it is certain."""
    _check(max_new_tokens, temperature, top_k, top_p, stop)
    longest = max(map(len, stop), default=0)
    start = [tokenizer.bos, *tokenizer.encode(prompt)]
    tokens: list[int] = []
    shown = 0
    text = ""
    for token in generate_tokens(network, start, max_new_tokens, temperature, top_k, top_p, seed, tokenizer.eos):
        tokens.append(token)
        text = tokenizer.decode(tokens)
        found = min((place for s in stop if (place := text.find(s)) >= 0), default=None)
        if found is not None:
            yield text[shown:found]
            return
        # What may still change: the beginning of a stop string, or of a character of several bytes.
        certain = len(text.rstrip("\N{REPLACEMENT CHARACTER}")) - max(longest - 1, 0)
        if certain > shown:
            yield text[shown:certain]
            shown = certain
    yield text[shown:]


def _check(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, stop: Sequence[str]
) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if temperature < 0:
        raise UserError(f"temperature must be at least 0 (0: always the most probable token), got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")
    if "" in stop:
        raise UserError("a stop string must not be empty")


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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device {name!r} here: use cpu, or cuda on a machine with a GPU") from error
    return device


def generate_command(
    checkpoint: str,
    prompt: str = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: str | list[str] | None = None,
    device: str = "auto",
) -> None:
    """Sample text from a trained network.

    Prints the prompt and what the network makes of it, as it is drawn.

    Args:
        checkpoint: a run folder (its newest whole checkpoint is taken) or a checkpoint.
        prompt: how the document begins.
        max_new_tokens: how many tokens to draw at most; the end of the text ends it earlier.
        temperature: 0 always takes the most probable token; lower is safer, higher is more varied.
        top_k: draw from the k most probable tokens only.
        top_p: draw from the fewest tokens whose probabilities reach p.
        seed: of the draws.
        stop: end before this string, or any of these: --stop END or --stop '["END", "STOP"]'.
        device: cpu, cuda, ...; auto takes a GPU if there is one.
    """
    stops = [stop] if isinstance(stop, str) else stop or []
    _check(max_new_tokens, temperature, top_k, top_p, stops)
    from mm_lightning.training.checkpoint import load_network

    network, tokenizer = load_network(checkpoint, choose_device(device))
    print(prompt, end="", flush=True)
    for piece in stream(network.eval(), tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed, stops):
        print(piece, end="", flush=True)
    print()

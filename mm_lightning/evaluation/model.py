"""A trained network with its tokenizer, ready to be asked: the one way in which tasks meet networks.

Every method bounds its memory by itself: tokens go through the network in chunks, rows side by side in batches, and
logits exist for a few positions at a time. The likelihoods of continuations are those of
:func:`mm_lightning.evaluation.likelihoods.likelihoods`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mm_lightning.checkpoint import (
    find_checkpoint,
    load_weights,
    network_config,
    read_metadata,
    restore_tokenizer,
)
from mm_lightning.checkpoint.network_loading import CHANGEABLE_FIELDS
from mm_lightning.errors import UserError
from mm_lightning.inference.generate import choose_device, collect, write
from mm_lightning.inference.reader import READ_TOKENS, Reader
from mm_lightning.inference.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.networks import Network, NetworkConfig

Precision = Literal["auto", "32", "bf16"]
Tokens = Sequence[int]

GREEDY = Sampling(temperature=0)
HELD_TOKENS = 1 << 16
"""Tokens, over all rows of a batch, whose pairs are held in memory at once (a single longer document also is)."""
LOGITS = 1 << 24
"""Logits that exist at once."""


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a continuation.

    Attributes:
        log_prob: of all its tokens, in nats.
        greedy: True if each of its tokens is the most probable one: if greedy decoding would write it.
    """

    log_prob: float
    greedy: bool


class Model:
    """A network that answers questions given as tokens, those that begin a document included.

    Args:
        network: in evaluation mode, on its device.
        tokenizer: the one it was trained with.
        context_length: tokens of a training sequence; None if it is not known.
        bf16: compute in bf16 (autocast).
        batch_size: rows side by side at most.
        together: tokens, over all rows, that go through the network together.
        checkpoint: where the network is from, if from a file.

    Attributes:
        reading: context manager around the reading of so many tokens at once, which gives what to call with numbers of
            tokens as they are read: a progress bar can take its place.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        context_length: int | None = None,
        bf16: bool = False,
        batch_size: int = 16,
        together: int = READ_TOKENS,
        checkpoint: Path | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self.network, self.tokenizer, self.context_length = network, tokenizer, context_length
        self.bf16, self.batch_size, self.together = bf16, batch_size, together
        self.checkpoint = checkpoint
        self.reading: Callable[[int], contextlib.AbstractContextManager[Callable[[int], Any] | None]]
        self.reading = lambda tokens: contextlib.nullcontext(None)
        self.device = next(network.parameters()).device

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        device: str = "auto",
        long_term: bool = True,
        inference_delay: int | None = None,
        settings: Mapping[str, Any] | None = None,
        precision: Precision = "auto",
        batch_size: int = 16,
        weights: bool = True,
    ) -> Model:
        """Load the network of a checkpoint.

        Args:
            checkpoint: a run folder (its newest valid checkpoint is taken) or a checkpoint.
            device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
            long_term: False removes the long-term memory from the trained network.
            inference_delay: another m for the long-term memory than the network's own.
            settings: of the network, other than it was trained with, which leave its parameters as they are, or fewer
                levels.
            precision: 32, or bf16; auto is bf16 on a GPU and 32 elsewhere.
            batch_size: rows side by side at most.
            weights: False leaves them on the meta device: tokenizer and configuration are enough to prepare questions.

        Raises:
            UserError: it cannot be read, has no long-term memory to change, or cannot be given the settings.
        """
        place = choose_device(device)
        path = find_checkpoint(checkpoint)
        about = read_metadata(path)
        config = changed(network_config(about, path), path, long_term, inference_delay, settings)
        with contextlib.nullcontext() if weights else torch.device("meta"):
            network = config.build()
        if weights:
            load_weights(network, path)
            network.to(place)
        bf16 = precision == "bf16" or (precision == "auto" and place.type == "cuda")
        tokenizer = restore_tokenizer(about, path)
        context_length = about.get("context_length")
        return cls(network.eval(), tokenizer, context_length, bf16, batch_size, checkpoint=path)

    @property
    def bos(self) -> int:
        """The token that begins a document."""
        return self.tokenizer.bos

    @property
    def eos(self) -> int:
        """The token that ends a document."""
        return self.tokenizer.eos

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without those around a document."""
        return self.tokenizer.encode(text)

    def decode(self, tokens: Tokens) -> str:
        """Return the text of tokens."""
        return self.tokenizer.decode(tokens)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Context manager for inference in this model's precision; a full GPU is a user's error."""
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the memory of {self.device} is full: a smaller --batch_size, shorter contexts, or --device cpu"
            ) from error

    def prefill(self, tokens: Tokens) -> Reader:
        """Return a reader that has read the beginning of a document, `bos` included, for questions that share it."""
        reader = Reader(self.network, 1, len(tokens), self.together)
        with self.computing(), self.reading(len(tokens)) as report:
            reader.read([tokens], report)
        return reader

    def greedy(self, prompts: Sequence[Tokens], max_new_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Return the text that the network writes after each prompt, always taking the most probable token.

        Args:
            prompts: whole documents so far, of any lengths.
            max_new_tokens: of each answer at most; the end of the document ends it earlier.
            stop: so does any of these strings, which is not part of the answer.

        Returns:
            the answers alone.
        """
        answers = [""] * len(prompts)
        for batch in self.batches([len(prompt) for prompt in prompts], max_new_tokens):
            rows = [prompts[n] for n in batch]
            with self.computing():
                reader = Reader(self.network, len(rows), len(rows[0]) + max_new_tokens, self.together)
                reader.read(rows)
                texts = collect(write(reader, self.tokenizer, GREEDY, max_new_tokens, stop), len(rows))
            for n, text in zip(batch, texts, strict=True):
                answers[n] = text
        return answers

    def losses(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield the losses of the tokens of some documents from left to right, but of the first.

        Args:
            rows: (B, T) int64, documents of equal length, `bos` included.

        Returns:
            (B, T') float32 pieces in nats, which together are (B, T - 1): the loss of tokens 1, 2, ...
        """
        size = max(1, self.together // rows.shape[0])
        state = self.network.new_state(rows.shape[0], rows.shape[1])
        for at in range(0, rows.shape[1] - 1, size):
            targets = rows[:, at + 1 : at + 1 + size].to(self.device)
            with self.computing():  # not around the yield, where the caller's code runs
                [(_, x)] = self._hidden(state, rows[:, at : at + targets.shape[1]])
                log_probs, _ = self._predict(x.flatten(0, 1), targets.flatten())
            yield -log_probs.view(targets.shape)

    def rows_of(self, tokens: int) -> int:
        """Return the number of documents of so many tokens to take side by side."""
        return min(self.batch_size, max(1, HELD_TOKENS // max(1, tokens)))

    def batches(self, lengths: Sequence[int], more: int = 0, alike: bool = False) -> Iterator[list[int]]:
        """Yield the numbers of documents to take side by side, the longest first.

        Args:
            lengths: of the documents.
            more: tokens by which each will grow.
            alike: only documents of equal lengths may stand side by side.
        """
        order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
        at = 0
        while at < len(order):
            longest = lengths[order[at]]
            batch = order[at : at + self.rows_of(longest + more)]
            if alike:
                batch = [n for n in batch if lengths[n] == longest]
            yield batch
            at += len(batch)

    def _hidden(self, state: Any, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the classifier's input, (B, T', d), of each chunk of (B, T) tokens, and where the chunk begins."""
        size = max(1, self.together // rows.shape[0])
        for at in range(0, rows.shape[1], size):
            x, _ = self.network.hidden_states(rows[:, at : at + size].to(self.device), state=state)
            yield at, x

    def _predict(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N,) log probabilities of targets and which are the most probable tokens, from (N, d)."""
        size = max(1, LOGITS // self.network.config.vocab_size)
        parts = [
            _judged(self.network.classifier(part).float(), some)
            for part, some in zip(x.split(size), targets.split(size), strict=True)
        ]
        log_probs, best = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(best)

    def score(self, reader: Reader, continuations: Sequence[Tokens]) -> list[Likelihood]:
        """Return the likelihood of a continuation of each of a reader's documents."""
        assert reader.logits is not None
        sizes = torch.tensor([len(tokens) for tokens in continuations])
        time = int(sizes.max())
        # padded behind their ends, which nothing reads
        rows = torch.tensor([[*tokens, *[0] * (time - len(tokens))] for tokens in continuations], device=self.device)
        asked = (torch.arange(time) < sizes[:, None]).to(self.device)
        log_probs = torch.zeros(rows.shape, device=self.device)
        best = torch.ones_like(asked)
        log_probs[:, 0], best[:, 0] = _judged(reader.logits.float(), rows[:, 0])
        for at, x in self._hidden(reader.state, rows[:, :-1]):
            part = slice(at + 1, at + 1 + x.shape[1])
            chosen = asked[:, part]
            if chosen.any():
                results = self._predict(x[chosen], rows[:, part][chosen])
                log_probs[:, part][chosen], best[:, part][chosen] = results
        total, greedy = log_probs.double().sum(1).tolist(), best.all(1).tolist()
        return [Likelihood(*pair) for pair in zip(total, greedy, strict=True)]


def _judged(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) log probabilities of targets and which are the most probable tokens, from (N, V) logits."""
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0], logits.argmax(-1) == targets


def changed(
    config: NetworkConfig,
    path: Path,
    long_term: bool = True,
    inference_delay: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> NetworkConfig:
    """Return a network's configuration without its long-term memory, with another delay m, or with other settings.

    Raises:
        UserError: it has no long-term memory, or nothing else; or a setting would add parameters.
    """
    changes = dict(settings or {})
    changeable = sorted({*CHANGEABLE_FIELDS, "levels"} & {field.name for field in dataclasses.fields(config)})
    for name in changes:
        if name not in changeable:
            raise UserError(
                f"network: {name} of {path} cannot be changed after training, only {', '.join(changeable)} can"
            )
    if not long_term or inference_delay is not None:
        if "long" not in config.levels:
            what = "remove" if not long_term else "delay"
            raise UserError(f"{path}: its network has no long-term memory to {what} (levels {list(config.levels)})")
        if not long_term and inference_delay is not None:
            raise UserError("with the long-term memory removed there is no inference_delay: give one of the two")
    if not long_term:
        changes["levels"] = tuple(level for level in config.levels if level != "long")
        if not changes["levels"]:
            raise UserError(f"{path}: nothing is left of its network without the long-term memory")
    if inference_delay is not None:
        changes["inference_delay"] = inference_delay
    result = dataclasses.replace(config, **changes) if changes else config
    if added := sorted(set(result.levels) - set(config.levels)):
        raise UserError(f"network: levels of {path} can be left out, not added, got {added}: has {list(config.levels)}")
    return result

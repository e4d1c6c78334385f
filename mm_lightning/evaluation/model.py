"""A trained network with its tokenizer, ready to be asked: the one way in which tasks meet networks.

Every method bounds its memory by itself: tokens go through the network in chunks, rows side by side in batches, and
logits exist for a few positions at a time. What many questions share is read and held once, as a :class:`Prefix`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mm_lightning.errors import UserError
from mm_lightning.evaluation.prefix import Branches, Likelihood, Prefix, Tokens
from mm_lightning.inference.generate import choose_device, collect, write
from mm_lightning.inference.reader import READ_TOKENS, Reader
from mm_lightning.inference.sampling import Sampling
from mm_lightning.memory.state import State
from mm_lightning.training.checkpoint import (
    find_checkpoint,
    load_weights,
    network_config,
    read_about,
    restore_tokenizer,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.networks import Network, NetworkConfig

Precision = Literal["auto", "32", "bf16"]

GREEDY = Sampling(temperature=0)
HELD_TOKENS = 1 << 16
"""Tokens, over all rows of a batch, whose pairs are held in memory at once (a single longer document also is)."""
LOGITS = 1 << 24
"""Logits that exist at once."""


class Model:
    """A network that answers questions given as tokens, those that begin a document included.

    Args:
        network: in evaluation mode, on its device.
        tokenizer: the one it was trained with.
        context_length: tokens of a training sequence; None if it is not known.
        bf16: whether to compute in bf16 (autocast).
        batch_size: rows side by side at most.
        together: tokens, over all rows, that go through the network together.
        checkpoint: where the network is from, if from a file.
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
        self.device = next(network.parameters()).device

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        device: str = "auto",
        long_term: bool = True,
        inference_delay: int | None = None,
        precision: Precision = "auto",
        batch_size: int = 16,
    ) -> Model:
        """The network of a checkpoint.

        Args:
            checkpoint: a run folder (its newest whole checkpoint is taken) or a checkpoint.
            device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
            long_term: False removes the long-term memory from the trained network.
            inference_delay: another m for the long-term memory than the network's own.
            precision: 32, or bf16; auto is bf16 on a GPU and 32 elsewhere.
            batch_size: rows side by side at most.

        Raises:
            UserError: it cannot be read, or has no long-term memory to change.
        """
        place = choose_device(device)
        path = find_checkpoint(checkpoint)
        about = read_about(path)
        config = changed(network_config(about, path), path, long_term, inference_delay)
        network = config.build()
        load_weights(network, path)
        bf16 = precision == "bf16" or (precision == "auto" and place.type == "cuda")
        tokenizer = restore_tokenizer(about, path)
        context_length = about.get("context_length")
        return cls(network.to(place).eval(), tokenizer, context_length, bf16, batch_size, checkpoint=path)

    @property
    def bos(self) -> int:
        """The token that begins a document."""
        return self.tokenizer.bos

    @property
    def eos(self) -> int:
        """The token that ends a document."""
        return self.tokenizer.eos

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without those around a document."""
        return self.tokenizer.encode(text)

    def decode(self, tokens: Tokens) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(tokens)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """How everything is computed: without gradients, in this model's precision; a full GPU is a user's error."""
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the memory of {self.device} is full: a smaller --batch_size, shorter contexts, or --device cpu"
            ) from error

    def prefill(self, tokens: Tokens, room: int = 0, report: Callable[[int], Any] | None = None) -> Prefix:
        """Reads the beginning of a document, at least one token, in chunks.

        Args:
            tokens: of the document, `bos` included.
            room: further tokens to make room for at once.
            report: called with the number of tokens that have gone through the network, from time to time.
        """
        reader = Reader(self.network, 1, len(tokens) + room, self.together)
        with self.computing():
            reader.read([tokens], report)
        return Prefix(reader, self)

    def greedy(
        self,
        prompts: Sequence[Tokens],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        prefix: Prefix | None = None,
    ) -> list[str]:
        """What the network writes after each prompt, always taking the most probable token.

        Args:
            prompts: whole documents so far, of any lengths; with a prefix, what follows it, perhaps nothing. (Rows
                that go on from a prefix are of equal lengths in a batch: prompts are sorted for it.)
            max_new_tokens: of each answer at most; the end of the document ends it earlier.
            stop: so does any of these strings, which is not part of the answer.
            prefix: what all prompts begin with.

        Returns:
            the answers alone.
        """
        answers = [""] * len(prompts)
        for batch in self._batches([len(prompt) for prompt in prompts], max_new_tokens, prefix):
            rows = [prompts[n] for n in batch]
            with self.computing():
                reader = self._reader(len(rows), len(rows[0]) + max_new_tokens, prefix)
                if rows[0]:
                    reader.read(rows)
                texts = collect(write(reader, self.tokenizer, GREEDY, max_new_tokens, stop), len(rows))
            for n, text in zip(batch, texts, strict=True):
                answers[n] = text
        return answers

    def loglikelihood(
        self, questions: Sequence[tuple[Tokens, Tokens]], prefix: Prefix | None = None
    ) -> list[Likelihood]:
        """How probable continuations are.

        Args:
            questions: contexts and their continuations, at least one token each. A context is the whole document so
                far; with a prefix it is what follows it, perhaps nothing.
            prefix: what all contexts begin with.
        """
        for context, continuation in questions:
            if not continuation or not (context or prefix):
                raise ValueError("a continuation needs at least one token, and one before it")
        found: list[Likelihood | None] = [None] * len(questions)
        lengths = [len(context) + len(continuation) - 1 for context, continuation in questions]
        for batch in self._batches(lengths, 0, prefix, padded=True):
            with self.computing():
                reader = self._reader(len(batch), lengths[batch[0]], prefix)
                for n, likelihood in zip(batch, self.score(reader, [questions[n] for n in batch]), strict=True):
                    found[n] = likelihood
        return [likelihood for likelihood in found if likelihood is not None]

    def losses(self, rows: Tensor) -> Iterator[Tensor]:
        """The loss of every token but the first of some documents, from left to right.

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
        """How many documents of so many tokens to take side by side."""
        return min(self.batch_size, max(1, HELD_TOKENS // max(1, tokens)))

    def _batches(
        self, lengths: list[int], more: int, prefix: Prefix | None, padded: bool = False
    ) -> Iterator[list[int]]:
        """Numbers of rows to take side by side, the longest first; of equal lengths behind a prefix if not padded."""
        order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
        at = 0
        while at < len(order):
            longest = lengths[order[at]]
            size = self.rows_of(longest + more)
            batch = order[at : at + size]
            if prefix is not None and not padded:
                batch = [n for n in batch if lengths[n] == longest]
            yield batch
            at += len(batch)

    def _reader(self, rows: int, room: int, prefix: Prefix | None) -> Reader:
        """A reader of so many documents, which may grow by `room` tokens."""
        if prefix is None:
            return Reader(self.network, rows, room, self.together)
        if isinstance(prefix.reader.state, State):
            return Branches(prefix.reader, [0] * rows, room)
        return prefix.reader.fork([0] * rows, len(prefix.tokens) + room)  # a stand-in for a network

    def _hidden(self, state: Any, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What the classifier reads, (B, T', d), of each chunk of (B, T) tokens, and where the chunk begins."""
        size = max(1, self.together // rows.shape[0])
        for at in range(0, rows.shape[1], size):
            x, _ = self.network.hidden(rows[:, at : at + size].to(self.device), state=state)
            yield at, x

    def _predict(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) log probabilities of targets, and whether each is the most probable token, from (N, d)."""
        size = max(1, LOGITS // self.network.config.vocab_size)
        log_probs, best = [], []
        for part, wanted in zip(x.split(size), targets.split(size), strict=True):
            logits = self.network.classifier(part).float()
            log_probs.append(logits.log_softmax(-1).gather(-1, wanted[:, None])[:, 0])
            best.append(logits.argmax(-1) == wanted)
        return torch.cat(log_probs), torch.cat(best)

    def score(self, reader: Reader, questions: list[tuple[Tokens, Tokens]]) -> list[Likelihood]:
        """The likelihoods of questions that lie side by side, padded behind their ends, which nothing reads."""
        known = [[*context, *continuation[:-1]] for context, continuation in questions]
        time = max(map(len, known))
        rows = torch.tensor([row + [0] * (time - len(row)) for row in known], dtype=torch.int64)
        places, targets = [], []  # where in (B, 1 + T) predictions each wanted token is predicted
        for n, (context, continuation) in enumerate(questions):
            places += [n * (time + 1) + len(context) + i for i in range(len(continuation))]
            targets += continuation
        width = time + 1
        place, wanted = torch.tensor(places, device=self.device), torch.tensor(targets, device=self.device)
        log_probs = torch.zeros(len(wanted), device=self.device)
        best = torch.zeros(len(wanted), dtype=torch.bool, device=self.device)
        if reader.logits is not None:  # the first token after a prefix
            chosen = (place % width == 0).nonzero()[:, 0]
            logits = reader.logits[place[chosen] // width].float()
            log_probs[chosen] = logits.log_softmax(-1).gather(-1, wanted[chosen, None])[:, 0]
            best[chosen] = logits.argmax(-1) == wanted[chosen]
        for at, x in self._hidden(reader.state, rows):
            column = place % width - 1 - at
            chosen = ((column >= 0) & (column < x.shape[1])).nonzero()[:, 0]
            if len(chosen):
                log_probs[chosen], best[chosen] = self._predict(
                    x[place[chosen] // width, column[chosen]], wanted[chosen]
                )
        sizes = [len(continuation) for _, continuation in questions]
        parts = zip(log_probs.split(sizes), best.split(sizes), sizes, strict=True)
        return [Likelihood(float(p.double().sum()), bool(b.all()), size) for p, b, size in parts]


def changed(config: NetworkConfig, path: Path, long_term: bool = True, inference_delay: int | None = None) -> Any:
    """A network's configuration with its long-term memory removed, or with another delay m.

    Raises:
        UserError: it has no long-term memory, or nothing else.
    """
    wanted: dict[str, Any] = {}
    if not long_term or inference_delay is not None:
        if "long" not in config.levels:
            what = "remove" if not long_term else "delay"
            raise UserError(f"{path}: its network has no long-term memory to {what} (levels {list(config.levels)})")
        if not long_term and inference_delay is not None:
            raise UserError("with the long-term memory removed there is no inference_delay: give one of the two")
    if not long_term:
        wanted["levels"] = tuple(level for level in config.levels if level != "long")
        if not wanted["levels"]:
            raise UserError(f"{path}: nothing is left of its network without the long-term memory")
    if inference_delay is not None:
        wanted["inference_delay"] = inference_delay
    return dataclasses.replace(config, **wanted) if wanted else config

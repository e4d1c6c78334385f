"""Answers to questions that share their demonstrations, which are read once.

What was read lives in the memory state. A question is read on top of it, its labels on top of the question, and the
state goes back to a mark afterwards, which costs O(h) whatever the length: nothing is copied for a question or a label.
Questions of equal numbers of tokens stand side by side in a few copies of the state, made once for the demonstrations
and as many as there is memory for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mm_lightning.inference.reader import Reader
from mm_lightning.inference.sampling import Sampler, Sampling
from mm_lightning.inference.text import TextStream

if TYPE_CHECKING:
    from mm_lightning.data.tokenizer import Tokenizer
    from mm_lightning.evaluation.model import Model

CPU_ROOM = 2 * 1024**3
"""Bytes that copies of a state may take where there is no GPU to ask."""


@dataclass
class Tree:
    """Token sequences as a prefix tree without nodes of one child.

    Attributes:
        ends: which sequences end here.
        branches: tokens, and the tree behind them.
    """

    ends: list[int] = field(default_factory=list)
    branches: list[tuple[list[int], Tree]] = field(default_factory=list)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Tree:
        """The tree of sequences, none of them empty, called by their places."""
        return cls._below({number: list(tokens) for number, tokens in enumerate(sequences)})

    @classmethod
    def _below(cls, sequences: dict[int, list[int]]) -> Tree:
        tree = cls([number for number, tokens in sequences.items() if not tokens])
        by_first: dict[int, dict[int, list[int]]] = {}
        for number, tokens in sequences.items():
            if tokens:
                by_first.setdefault(tokens[0], {})[number] = tokens
        for group in by_first.values():
            shared = _shared(list(group.values()))
            rest = {number: tokens[len(shared) :] for number, tokens in group.items()}
            tree.branches.append((shared, cls._below(rest)))
        return tree


def _shared(sequences: list[list[int]]) -> list[int]:
    """The longest beginning of all."""
    low, high = min(sequences), max(sequences)
    length = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]


def log_likelihoods(reader: Reader, tree: Tree, count: int) -> Tensor:
    """log p of each sequence of a tree after each of a reader's documents; the reader is afterwards as before.

    Each node is read once, its last token not at all.

    Args:
        reader: of B documents.
        tree: of `count` sequences.
        count: N.

    Returns:
        (B, N) in nats, float32, or float64 where the network computes in it.
    """
    assert reader.logits is not None
    first = _log_softmax(reader.logits)
    found = first.new_zeros(len(first), count)
    mark = reader.state.mark()
    with torch.inference_mode():
        _walk(reader, tree, first, first.new_zeros(len(first)), found)
    reader.state.rewind(mark)
    return found


def _walk(reader: Reader, tree: Tree, following: Tensor, total: Tensor, found: Tensor) -> None:
    """Fills in `found` from a node; `following` (B, V) is log p of what comes next, `total` (B,) that of the node."""
    for number in tree.ends:
        found[:, number] = total
    for at, (tokens, below) in enumerate(tree.branches):
        branch = total + following[:, tokens[0]]
        read = tokens if below.branches else tokens[:-1]
        if not read:
            _walk(reader, below, following, branch, found)
            continue
        mark = reader.state.mark() if at + 1 < len(tree.branches) else None  # the caller rewinds after the last one
        rows = torch.tensor([read], device=following.device).expand(len(following), -1)
        after = _log_softmax(reader.network(rows, state=reader.state))  # (B, T, V)
        for place, token in enumerate(tokens[1:]):
            branch = branch + after[:, place, token]
        _walk(reader, below, after[:, -1], branch, found)
        if mark is not None:
            reader.state.rewind(mark)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def greedy(reader: Reader, tokenizer: Tokenizer, stop: str, max_new_tokens: int) -> list[str]:
    """The most probable text after each of a reader's documents, up to a stop string; the reader as before afterwards.

    Raises:
        UserError: the network's logits are not finite.
    """
    texts = [TextStream(tokenizer, [stop]) for _ in reader.documents]
    written = ["" for _ in texts]
    going = set(range(len(texts)))
    mark = reader.mark()
    sampler = Sampler(Sampling(temperature=0), reader.documents)
    for left in reversed(range(max_new_tokens)):
        assert reader.logits is not None
        drawn = sampler.draw(reader.logits).tolist()
        for row in sorted(going):
            ended = drawn[row] == tokenizer.eos
            written[row] += "" if ended else texts[row].add(drawn[row])
            if ended or texts[row].stopped or not left:
                written[row] += texts[row].finish()
                going.discard(row)
        if not going:
            break
        reader.read([[token] for token in drawn])
    reader.rewind(mark)
    return written


class Shared:
    """The beginning of many documents, read once.

    Args:
        model: who reads. Its batch_size is how many documents are continued at once, fewer where memory is short.
        room: tokens that documents have besides the beginning, at most.
    """

    def __init__(self, model: Model, room: int) -> None:
        self.model, self.room = model, room
        self._first = Reader(model.network, together=model.together)
        self._copies: dict[int, Reader] = {}

    def read(self, tokens: Sequence[int]) -> int:
        """Makes these tokens the beginning: what it has of them already is not read again.

        Returns:
            how many were read.
        """
        have = self._first.documents[0]
        self._copies = {}
        if not have or list(tokens[: len(have)]) != have:
            self._first, have = Reader(self.model.network, 1, len(tokens) + self.room, self.model.together), []
        new = list(tokens[len(have) :])
        if new:
            with self.model.computing():
                self._first.read([new])
        return len(new)

    def batches(self, documents: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Reader]]:
        """Readers that have read the beginning and then documents, and which documents these are.

        Their lengths must be equal in a reader; sizes of batches are powers of two, so that no row is idle and there
        are few copies. A reader is good until the next one is asked for.
        """
        by_length: dict[int, list[int]] = {}
        for number, document in enumerate(documents):
            by_length.setdefault(len(document), []).append(number)
        most = self._affordable()
        for _, numbers in sorted(by_length.items()):
            while numbers:
                size = min(most, 1 << (len(numbers).bit_length() - 1))
                batch, numbers = numbers[:size], numbers[size:]
                reader = self._copy(size)
                mark = reader.mark()
                with self.model.computing():
                    reader.read([documents[number] for number in batch])
                yield batch, reader
                reader.rewind(mark)

    def _affordable(self) -> int:
        """The largest power of two of documents whose copies, and those of all smaller batches, there is room for."""
        device = self.model.device
        free = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_ROOM
        length = max(self._first.state.length, 1)
        each = self._first.state.bytes * (length + self.room) // length
        most = max(1, min(self.model.batch_size, free // (2 * each)))
        return 1 << (most.bit_length() - 1)

    def _copy(self, size: int) -> Reader:
        if size == 1:
            return self._first
        if size not in self._copies:
            self._copies[size] = self._first.fork([0] * size, self._first.state.length + self.room)
        return self._copies[size]

"""What a memory must remember between one token and the next: the state of inference.

A stream of tokens is fed to a network in chunks of any length, a single token being the smallest. What lies between two
chunks is exactly what the equations need: the key average with its log scale (8), the raw value that waits for its
look-ahead (9), and the pairs that later queries may read (4): all of them for a memory without a window, the newest few
for one with. Rows of a batch go on side by side. Where a row's document begins is a number of the row, so that rows of
unequal lengths (padded on the left) and documents that end and begin anywhere need no mechanism of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.kernels import Kernels, resolve
from mm_lightning.memory.pairs import Chunk, Pairs
from mm_lightning.memory.recurrence import gated_average_from, gated_step, queries, unit
from mm_lightning.memory.retrieval import Span
from mm_lightning.memory.values import FrozenValues

if TYPE_CHECKING:
    from mm_lightning.memory.joint import JointMemories


class Average:
    """The key average (8) of a memory: kbar_t = exp(scale) total, with total (B, H, D) and scale (B, H) in float64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.scale: Tensor | None = None

    def extend(
        self, ktilde: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, chunk: Chunk, kernels: Kernels
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys of a chunk, (B, T, H, D) each; arguments as for :func:`gated_keys`."""
        if chunk.time > 1 and resolve(kernels, ktilde.device, ktilde.dtype) == "native":
            return self._extend_natively(ktilde, gate, decay, beta, chunk)
        k = self._extend(ktilde, gate, decay, chunk)
        return queries(k, beta), k

    def _extend_natively(
        self, ktilde: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, chunk: Chunk
    ) -> tuple[Tensor, Tensor]:
        from mm_lightning.memory.native import keys

        batch, _, heads, dim = ktilde.shape
        exact = torch.promote_types(ktilde.dtype, torch.float32)
        if self.total is None or self.scale is None:
            total, scale = ktilde.new_zeros(batch, heads, dim, dtype=exact), gate.new_full((batch, heads), -torch.inf)
        else:
            total, scale = self.total.to(exact, copy=True), self.scale
        self.total, self.scale = total, scale.to(torch.float64, copy=True)  # which the call changes
        starts = torch.zeros_like(chunk.first, dtype=torch.bool) if chunk.starts is None else chunk.starts
        gate, decay, beta = (x.to(exact).expand_as(gate).contiguous() for x in (gate, decay, beta))
        q, k, _ = keys(ktilde, gate, decay, beta, starts, self.total, self.scale)
        return q, k

    def _extend(self, ktilde: Tensor, gate: Tensor, decay: Tensor, chunk: Chunk) -> Tensor:
        if self.total is None or self.scale is None:
            keys, self.total, self.scale = gated_average_from(ktilde, gate, decay, chunk.documents)
            return keys
        if chunk.time == 1:
            if chunk.starts is not None:
                self.scale = self.scale.masked_fill(chunk.starts, -torch.inf)
            self.total, self.scale = gated_step(ktilde[:, 0], gate[:, 0], decay[:, 0], self.total, self.scale)
            return unit(self.total).to(ktilde.dtype)[:, None]
        raw = torch.cat([self.total[:, None], ktilde.to(self.total.dtype)], 1)
        gate = torch.cat([self.scale[:, None], gate.double()], 1)
        keys, self.total, self.scale = gated_average_from(raw, gate, F.pad(decay, (0, 0, 1, 0)), chunk.carried)
        return keys[:, 1:].to(ktilde.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, rows first."""
        return {} if self.total is None or self.scale is None else {"total": self.total, "scale": self.scale}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes what :meth:`tensors` gave."""
        self.total, self.scale = tensors.get("total"), tensors.get("scale")

    def mark(self) -> Any:
        """For :meth:`rewind`."""
        return [None if x is None else x.clone() for x in (self.total, self.scale)]  # changed in place

    def rewind(self, mark: Any) -> None:
        """See :meth:`State.rewind`."""
        self.total, self.scale = mark


class Memory:
    """The state of one memory unit: its key average, and its pairs if it stores any.

    Args:
        pairs: where it stores them.
        bandwidth: of numbers of pairs, with the parameters as they are.
        values: how values are made, likewise.
    """

    def __init__(
        self,
        pairs: Pairs | None = None,
        bandwidth: Callable[[Tensor], Tensor] | None = None,
        values: FrozenValues | None = None,
    ) -> None:
        self.average = Average()
        self.pairs, self.bandwidth, self.values = pairs, bandwidth, values

    def tensors(self) -> dict[str, Tensor]:
        """What it holds, rows first."""
        return {**self.average.tensors(), **({} if self.pairs is None else self.pairs.tensors())}

    def load(self, tensors: dict[str, Tensor], length: int) -> None:
        """Takes what :meth:`tensors` gave after `length` tokens."""
        self.average.load(tensors)
        if self.pairs is not None:
            self.pairs.load(tensors, length)

    def mark(self) -> Any:
        """For :meth:`rewind`."""
        return self.average.mark(), None if self.pairs is None else self.pairs.mark()

    def rewind(self, mark: Any) -> None:
        """See :meth:`State.rewind`."""
        average, pairs = mark
        self.average.rewind(average)
        if self.pairs is not None:
            self.pairs.rewind(pairs)

    def ask(self, q: Tensor, k: Tensor, raw: Tensor, span: Span, chunk: Chunk) -> Tensor:
        """Stores the pairs of a chunk that is not the first, and answers its queries.

        Args:
            q: (B, T, H, D) queries.
            k: (B, T, H, D) keys.
            raw: (B, T, H, D) raw values.
            span: what a query reads.
            chunk: where the tokens stand.

        Returns:
            (B, T, H, D)
        """
        pairs = self.pairs
        assert pairs is not None
        assert pairs.raw is not None
        assert self.values is not None
        # The last pair's value is not complete yet; that of a document's last token never is, and nothing reads it.
        before = torch.cat([pairs.raw[:, None], raw[:, :-1]], 1)
        pairs.write(k, self.values.of(before, raw), 1)
        pairs.raw = raw[:, -1]
        return pairs.read(q, span, chunk)


class State:
    """All that a network carries from one chunk of a stream to the next.

    Args:
        parts: the state of each memory (or attention), by the name of its module.
        batch: rows, B.
        device: of the tensors.

    Attributes:
        length: tokens of the stream so far, the same for every row.
        first: (B,) int64, where in the stream each row's document begins.
        joint: how the memories of a block take in single tokens, by the block's identity.
    """

    def __init__(self, parts: dict[str, Memory | Pairs], batch: int, device: torch.device) -> None:
        self.parts = parts
        self.joint: dict[int, JointMemories] = {}
        self.length = 0
        self.first = torch.zeros(batch, dtype=torch.int64, device=device)
        self._latest = 0

    def chunk(self, batch: int, time: int, starts: Tensor | None) -> Chunk:
        """The next tokens of the stream; `starts` (B, T) bool is true where documents begin."""
        if batch != len(self.first):
            raise ValueError(f"the state is of {len(self.first)} rows, the tokens are of {batch}")
        if starts is None:
            return Chunk(self.length, self.first[:, None].expand(batch, time), self._latest, None)
        if starts.shape != (batch, time) or starts.dtype != torch.bool:
            raise ValueError(
                f"starts must be a ({batch}, {time}) bool tensor, got {tuple(starts.shape)} {starts.dtype}"
            )
        index = torch.arange(self.length, self.length + time, device=starts.device)
        first = torch.where(starts, index, -1).cummax(1).values.maximum(self.first[:, None])
        return Chunk(self.length, first, int(first.max()), starts)

    def advance(self, chunk: Chunk) -> None:
        """Counts a chunk that every part has taken in."""
        self.length += chunk.time
        self.first, self._latest = chunk.first[:, -1], chunk.latest

    def tensors(self) -> dict[str, Tensor]:
        """Everything in it by name, rows first: what a file of it holds. The next token changes them in place."""
        found = {f"{name}.{key}": x for name, part in self.parts.items() for key, x in part.tensors().items()}
        return {**found, "first": self.first, "length": torch.full_like(self.first, self.length)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes what :meth:`tensors` gave; this state must be a new one of the same network.

        Raises:
            ValueError: the tensors are of another network.
        """
        known = {name.rpartition(".")[0] for name in tensors} - {""}
        if known - set(self.parts):
            raise ValueError(f"the state is of another network: it has {sorted(known - set(self.parts))[0]}")
        self.length, self.first = int(tensors["length"][0]), tensors["first"]
        self._latest = int(self.first.max())
        for name, part in self.parts.items():
            begin = name + "."
            part.load({key.removeprefix(begin): x for key, x in tensors.items() if key.startswith(begin)}, self.length)

    def rows(self, index: Tensor, empty: State) -> State:
        """The chosen rows, any of them as often as wanted, as a state that goes on by itself.

        Args:
            index: (B',) int64.
            empty: a new state of the same network with B' rows, which is filled and returned.
        """
        empty.load({name: x.index_select(0, index) for name, x in self.tensors().items()})
        return empty

    def mark(self) -> Any:
        """The present, to which :meth:`rewind` goes back. Costs O(h), whatever the length."""
        return self.length, self.first, self._latest, {name: part.mark() for name, part in self.parts.items()}

    def rewind(self, mark: Any) -> None:
        """Forgets all that was read since a mark, which can be used once."""
        self.length, self.first, self._latest, parts = mark
        for name, part in self.parts.items():
            part.rewind(parts[name])

    @property
    def bytes(self) -> int:
        """Of everything that it must hold (buffers may be larger)."""
        return sum(x.nbytes for x in self.tensors().values())

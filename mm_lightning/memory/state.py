"""What a network must remember between one token and the next: the state of inference.

A stream of tokens is fed to a network in chunks of any length, a single token being the smallest. What lies between two
chunks is exactly what the equations need: the key average with its log scale (8), the raw value that waits for its
look-ahead (9), and the pairs that later queries may read (4): all of them for a memory without a window, the newest few
for one with. Rows of a batch go on side by side. Where a row's document begins is a number of the row, so that rows of
unequal lengths (padded on the left) and documents that end and begin anywhere need no mechanism of their own.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.keys import Carried
from mm_lightning.memory.pair_cache import PairCache

_OLD_NAME = re.compile(r"(?<!\.keys)(?<!\.values)\.(total|scale|raw)$")


def current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state by their present names, also those that earlier versions wrote."""

    def current(found: re.Match[str]) -> str:
        return f".{'values' if found[1] == 'raw' else 'keys'}.{found[1]}"

    return {_OLD_NAME.sub(current, name): x for name, x in tensors.items()}


class MemoryState:
    """What one memory (or attention) remembers.

    Args:
        pairs: that later queries may read; None for a memory whose pairs are learned.
    """

    def __init__(self, pairs: PairCache | None = None) -> None:
        self.pairs = pairs
        self._carried: dict[str, Carried] = {}

    def carried(self, part: str) -> Carried:
        """Return what a part of the memory, such as its keys, has left for the next chunk; to be updated by it."""
        return self._carried.setdefault(part, {})

    def tensors(self, pairs: bool = True) -> dict[str, Tensor]:
        """Return everything by name, rows first; without the stored pairs if not `pairs`."""
        carried = {f"{part}.{name}": x for part, named in self._carried.items() for name, x in named.items()}
        return carried | (self.pairs.tensors() if pairs and self.pairs is not None else {})

    def load(self, tensors: dict[str, Tensor], length: int) -> None:
        """Take what :meth:`tensors` gave after `length` tokens."""
        self._carried = {}
        for name, x in tensors.items():
            part, dot, inner = name.partition(".")
            if dot:
                self.carried(part)[inner] = x
        if self.pairs is not None:
            self.pairs.load({name: x for name, x in tensors.items() if "." not in name}, length)

    def mark(self) -> Any:
        """Return what :meth:`rewind` needs."""
        carried = {part: {name: x.clone() for name, x in named.items()} for part, named in self._carried.items()}
        return carried, None if self.pairs is None else self.pairs.mark()

    def rewind(self, mark: Any) -> None:
        """Forget what was taken in since a mark."""
        self._carried, pairs = mark
        if self.pairs is not None:
            self.pairs.rewind(pairs)


class NetworkState:
    """All that a network carries from one chunk of a stream to the next.

    Args:
        parts: the state of each memory (or attention), by the name of its module.
        batch: rows, B.
        device: of the tensors.

    Attributes:
        length: tokens of the stream so far, the same for every row.
        first: (B,) int64, where in the stream each row's document begins.
    """

    def __init__(self, parts: dict[str, MemoryState], batch: int, device: torch.device) -> None:
        self.parts = parts
        self.length = 0
        self.first = torch.zeros(batch, dtype=torch.int64, device=device)
        self._latest = 0

    def documents(self, batch: int, time: int, starts: Tensor | None) -> Documents:
        """Return where the next tokens of the stream stand; `starts` (B, T) bool is true where documents begin.

        Raises:
            ValueError: another number of rows than the state's.
        """
        if batch != len(self.first):
            raise ValueError(f"the state is of {len(self.first)} rows, the tokens are of {batch}")
        if starts is not None and (starts.shape != (batch, time) or starts.dtype != torch.bool):
            raise ValueError(
                f"starts must be a ({batch}, {time}) bool tensor, got {tuple(starts.shape)} {starts.dtype}"
            )
        return Documents.following(self.length, self.first, self._latest, time, starts)

    def advance(self, documents: Documents) -> None:
        """Count tokens that every part has taken in."""
        self.length = documents.begin + documents.shape[1]
        self.first, self._latest = self.length - 1 - documents.position[:, -1], documents.latest

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, rows first: what a file of it holds. The next token changes them in place."""
        found = {f"{name}.{key}": x for name, part in self.parts.items() for key, x in part.tensors().items()}
        return {**found, "first": self.first, "length": torch.full_like(self.first, self.length)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what :meth:`tensors` gave; this state must be a new one of the same network.

        Raises:
            ValueError: the tensors are of another network.
        """
        rest = {name: x for name, x in current_names(tensors).items() if name not in ("first", "length")}
        self.length, self.first = int(tensors["length"][0]), tensors["first"]
        self._latest = int(self.first.max())
        for name, part in self.parts.items():
            begin = name + "."
            own = [key for key in rest if key.startswith(begin)]
            part.load({key.removeprefix(begin): rest.pop(key) for key in own}, self.length)
        if rest:
            raise ValueError(f"the state is of another network: it has {min(rest).rpartition('.')[0]}")

    def rows(self, index: Tensor, empty: NetworkState) -> NetworkState:
        """Return the chosen rows, any of them as often as wanted, as a state that goes on by itself.

        Args:
            index: (B',) int64.
            empty: a new state of the same network with B' rows, which is filled and returned.
        """
        empty.load({name: x.index_select(0, index) for name, x in self.tensors().items()})
        return empty

    def mark(self) -> Any:
        """Return the present, to which :meth:`rewind` goes back. Costs O(h), whatever the length."""
        return self.length, self.first, self._latest, {name: part.mark() for name, part in self.parts.items()}

    def rewind(self, mark: Any) -> None:
        """Forget all that was read since a mark, which can be used once."""
        self.length, self.first, self._latest, parts = mark
        for name, part in self.parts.items():
            part.rewind(parts[name])

    @property
    def bytes(self) -> int:
        """Of everything that it must hold (buffers may be larger)."""
        return sum(x.nbytes for x in self.tensors().values())

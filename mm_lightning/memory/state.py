"""The state of inference, which a network carries from one chunk of a stream of tokens to the next.

A chunk may be a single token. Between two chunks the equations need the key average with its log scale (8), the raw
value that waits for its look-ahead (9), and the pairs that later queries may read (4): all of them for a memory without
a window, the newest h with one. Each row of a batch says where its document begins, so that rows of unequal lengths
(padded on the left) and documents that end and begin anywhere need no mechanism of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.keys import Carried
from mm_lightning.memory.pair_cache import PairCache

_OLD_PARTS = {"total": "keys", "scale": "keys", "raw": "values"}
"""The part of each tensor that earlier versions named without it."""


class MemoryState:
    """The inference state of one memory (or attention): its stored pairs, and the states of its parts.

    Args:
        pairs: the KV cache; None for a memory whose pairs are parameters.
    """

    def __init__(self, pairs: PairCache | None = None) -> None:
        self.pairs = pairs
        self._carried: dict[str, Carried] = {}

    def carried(self, part: str) -> Carried:
        """Return the state of a part of the memory, such as `keys`, for the part to update; empty at first."""
        return self._carried.setdefault(part, {})

    def tensors(self, pairs: bool = True) -> dict[str, Tensor]:
        """Return all tensors by name, (B, ...) each; without the stored pairs if not `pairs`."""
        carried = {f"{part}.{name}": x for part, named in self._carried.items() for name, x in named.items()}
        return carried | (self.pairs.tensors() if pairs and self.pairs is not None else {})

    def load(self, tensors: dict[str, Tensor], length: int) -> None:
        """Restore what :meth:`tensors` returned after `length` tokens."""
        self._carried = {}
        for name, x in tensors.items():
            part, dot, inner = name.partition(".") if name not in _OLD_PARTS else (_OLD_PARTS[name], ".", name)
            if dot:
                self.carried(part)[inner] = x
        if self.pairs is not None:
            self.pairs.load({name: x for name, x in tensors.items() if "." not in name}, length)

    def mark(self) -> Any:
        """Return a mark for :meth:`rewind`."""
        carried = {part: {name: x.clone() for name, x in named.items()} for part, named in self._carried.items()}
        return carried, None if self.pairs is None else self.pairs.mark()

    def rewind(self, mark: Any) -> None:
        """Return to the state at a mark."""
        self._carried, pairs = mark
        if self.pairs is not None:
            self.pairs.rewind(pairs)


class NetworkState:
    """The inference state of a network, for B streams side by side.

    Args:
        parts: the state of each memory (or attention), by the name of its module.
        batch: number of rows, B.
        device: the device of the tensors.

    Attributes:
        length: number of tokens of the stream so far, the same for every row.
        first: (B,) int64, where in the stream each row's document begins.
    """

    def __init__(self, parts: dict[str, MemoryState], batch: int, device: torch.device) -> None:
        self.parts = parts
        self.length = 0
        self.first = torch.zeros(batch, dtype=torch.int64, device=device)
        self._latest = 0

    def documents(self, batch: int, time: int, starts: Tensor | None) -> Documents:
        """Return the boundaries of the next tokens; `starts` (B, T) bool is true where documents begin.

        Raises:
            ValueError: the number of rows is not the state's, or `starts` has another shape or type.
        """
        if batch != len(self.first):
            raise ValueError(f"tokens must have as many rows as the state, {len(self.first)}, got {batch}")
        if starts is not None and (starts.shape != (batch, time) or starts.dtype != torch.bool):
            raise ValueError(
                f"starts must be a ({batch}, {time}) bool tensor, got {tuple(starts.shape)} {starts.dtype}"
            )
        return Documents.following(self.length, self.first, self._latest, time, starts)

    def advance(self, documents: Documents) -> None:
        """Count a chunk that every part has processed."""
        self.length = documents.begin + documents.shape[1]
        self.first, self._latest = self.length - 1 - documents.position[:, -1], documents.latest

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, (B, ...) each, as in memory files; the next token changes them in place."""
        tensors = {f"{name}.{key}": x for name, part in self.parts.items() for key, x in part.tensors().items()}
        return {**tensors, "first": self.first, "length": torch.full_like(self.first, self.length)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what :meth:`tensors` returned, into a new state of the same network.

        Raises:
            ValueError: the tensors are those of another network.
        """
        rest = {name: x for name, x in tensors.items() if name not in ("first", "length")}
        self.length, self.first = int(tensors["length"][0]), tensors["first"]
        self._latest = int(self.first.max())
        for name, part in self.parts.items():
            begin = name + "."
            names = [key for key in rest if key.startswith(begin)]
            part.load({key.removeprefix(begin): rest.pop(key) for key in names}, self.length)
        if rest:
            raise ValueError(f"the state is that of another network: it has {min(rest).rpartition('.')[0]}")

    def rows(self, index: Tensor, empty: NetworkState) -> NetworkState:
        """Return an independent copy of the chosen rows.

        Args:
            index: (B',) int64, the rows, which may repeat.
            empty: a new state of the same network with B' rows, which is filled and returned.
        """
        empty.load({name: x.index_select(0, index) for name, x in self.tensors().items()})
        return empty

    def mark(self) -> Any:
        """Return a mark for :meth:`rewind`. Costs O(h) time and memory, whatever the length of the stream."""
        return self.length, self.first, self._latest, {name: part.mark() for name, part in self.parts.items()}

    def rewind(self, mark: Any) -> None:
        """Return to the state at a mark, which can be used once."""
        self.length, self.first, self._latest, parts = mark
        for name, part in self.parts.items():
            part.rewind(parts[name])

    @property
    def bytes(self) -> int:
        """The size of all tensors in bytes (preallocated buffers may be larger)."""
        return sum(x.nbytes for x in self.tensors().values())

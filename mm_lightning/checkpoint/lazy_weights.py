"""Tensors by name, read lazily from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Stored(NamedTuple):
    """A tensor on disk: the function that reads it, its shape and its type."""

    read: Callable[[], Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype


class Weights(Mapping[str, Tensor]):
    """Mapping of names to tensors on the CPU, read from disk at each access."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].read().detach()

    def __contains__(self, name: object) -> bool:  # without reading, which Mapping would
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

"""Tensors by name, each read from disk when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor


class Weights(Mapping[str, Tensor]):
    """Tensors by name, on the CPU, read from disk at each look.

    Args:
        readers: for each name what reads it.
        shapes: for each name its shape.
        dtypes: for each name its type.
    """

    def __init__(
        self,
        readers: dict[str, Callable[[], Tensor]],
        shapes: dict[str, tuple[int, ...]],
        dtypes: dict[str, torch.dtype],
    ) -> None:
        self.readers, self.shapes, self.dtypes = readers, shapes, dtypes

    def __getitem__(self, name: str) -> Tensor:
        return self.readers[name]().detach()

    def __contains__(self, name: object) -> bool:
        return name in self.readers

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def weights_of_tensors(state: Mapping[str, Tensor]) -> Weights:
    """Weights that are tensors already, in memory or mapped from a file."""
    readers: dict[str, Callable[[], Tensor]] = {name: partial(_known, value) for name, value in state.items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return Weights(readers, shapes, {name: value.dtype for name, value in state.items()})


def _known(x: Tensor) -> Tensor:
    return x

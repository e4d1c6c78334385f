"""Tensors by name, read lazily from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class Weights(Mapping[str, Tensor]):
    """Mapping of names to tensors on the CPU, read from disk at each access.

    Args:
        readers: functions that read a tensor, by name.
        shapes: shapes by name.
        dtypes: types by name.
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

    def __contains__(self, name: object) -> bool:  # without reading, which Mapping would
        return name in self.readers

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)


def weights_of_tensors(state: Mapping[str, Tensor]) -> Weights:
    """Return tensors, in memory or memory-mapped, as :class:`Weights`."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    dtypes = {name: value.dtype for name, value in state.items()}
    return Weights({name: value.detach for name, value in state.items()}, shapes, dtypes)

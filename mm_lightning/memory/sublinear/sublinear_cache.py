"""A pair cache that single tokens read sub-linearly."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.pair_cache import PairCache, Reader
from mm_lightning.memory.sublinear.key_clusters import KeyClusters, SublinearRead


class SublinearPairCache(PairCache):
    """Pairs without a window, of keys of norm 1, that single tokens read by blocks; see :mod:`...sublinear.store`.

    Args:
        capacity: pairs to make room for at first.
        store: how they are read.
        kernels: what reads the blocks.

    Attributes:
        blocks: the part that is sorted.
    """

    def __init__(self, capacity: int, store: SublinearRead, kernels: Kernels = "auto") -> None:
        super().__init__(None, capacity)
        self.multiple = store.block
        self.blocks = KeyClusters(store, kernels)

    def read(self, q: Tensor, span: Span, documents: Documents, reader: Reader, scale: float = 1.0) -> Tensor:
        """Return answers (B, T, H, D) to the queries of the chunk that was last written."""
        keys, values = self.buffers
        readable = documents.begin + 1 - span.delay
        first = documents.begin - documents.position[:, :1]  # where in the stream each row's document begins
        self.blocks.follow(keys, values, documents.latest, first)
        if q.shape[1] > 1 or not self.blocks.worthwhile(readable):
            return super().read(q, span, documents, reader, scale)
        self.blocks.extend(keys, values, readable)
        return self.blocks.read(q[:, 0] * scale, keys, values, readable, first[:, 0])[:, None]

    def _in_time(self) -> tuple[Tensor, Tensor]:
        keys, values = self.buffers
        return self.blocks.in_time(keys), self.blocks.in_time(values)

    def mark(self) -> Any:
        """Return what :meth:`rewind` needs."""
        return super().mark(), self.blocks.end

    def rewind(self, mark: Any) -> None:
        """Forget what was written since a mark."""
        plain, in_blocks = mark
        super().rewind(plain)
        if self.blocks.end > in_blocks:
            self.blocks.give_up(*self.buffers)

"""A pair cache that single tokens read sub-linearly."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.pair_cache import PairCache, Reader
from mm_lightning.memory.sublinear.key_clusters import KeyClusters, SublinearRead


class SublinearPairCache(PairCache):
    """The pairs of a memory without a window and with keys of norm 1, which single tokens read by clusters.

    Args:
        capacity: pairs to preallocate.
        settings: how clusters are made and read.
        kernels: the kernels that read them; see :class:`KeyClusters`.

    Attributes:
        clusters: the part that is sorted.
    """

    def __init__(self, capacity: int, settings: SublinearRead, kernels: Kernels = "auto") -> None:
        super().__init__(None, capacity)
        self.multiple = settings.cluster_size
        self.clusters = KeyClusters(settings, kernels)

    def read(self, q: Tensor, span: Span, documents: Documents, reader: Reader, scale: float = 1.0) -> Tensor:
        """Return answers (B, T, H, D) to the queries (B, T, H, D) of the chunk that was last written."""
        keys, values = self.buffers
        readable = documents.begin + 1 - span.delay
        first = documents.begin - documents.position[:, :1]  # where in the stream each row's document begins
        self.clusters.follow(self.buffers, documents.latest, first)
        if q.shape[1] > 1 or not self.clusters.worthwhile(readable):
            return super().read(q, span, documents, reader, scale)
        self.clusters.extend(keys, values, readable)
        return self.clusters.read(q[:, 0] * scale, keys, values, readable, first[:, 0])[:, None]

    def _in_time(self) -> tuple[Tensor, ...]:
        return tuple(map(self.clusters.in_time, self.buffers))

    def mark(self) -> Any:
        """Return a mark for :meth:`rewind`."""
        return super().mark(), self.clusters.end

    def rewind(self, mark: Any) -> None:
        """Remove the pairs that were written since a mark."""
        pairs, sorted_end = mark
        super().rewind(pairs)
        if self.clusters.end > sorted_end:
            self.clusters.dissolve(self.buffers)

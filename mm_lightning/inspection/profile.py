"""Mean retrieval weight by distance: Figure 1 of the v2 paper."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_lightning.inspection.reads import Read, watch_reads
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import Network


class Profile:
    """The mean weight with which each head reads the pair d positions back, for d = 0 .. `distances` - 1.

    Only queries count that have `distances` - 1 tokens of their document before them. So every distance is averaged
    over the same queries, and uniform weights have a flat profile; over all queries, near pairs would weigh more merely
    because early queries have no far ones. With `distances` as large as the documents, the query is the last token, as
    in the paper.

    Args:
        distances: number of distances.
    """

    def __init__(self, distances: int) -> None:
        self.distances = distances
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._queries: dict[tuple[str, int], int] = {}

    @property
    def queries(self) -> int:
        """The number of queries of each memory that were averaged."""
        return max(self._queries.values(), default=0)

    @torch.no_grad()
    def run(self, network: Network, tokens: Tensor, documents: Documents | None = None) -> None:
        """Add the reads of a network in a batch of (B, T) tokens; by default every row is one document."""
        with watch_reads(network, self.add):
            network.hidden_states(tokens, documents)

    def add(self, read: Read) -> None:
        """Add the queries of one read of a memory."""
        chosen = read.documents.position >= self.distances - 1  # (B, T)
        if chosen.any():
            for queries, weights in read.weights(int(chosen.any(0).int().argmax())):
                self.add_weights(read, queries, weights)

    def add_weights(self, read: Read, queries: slice, weights: Tensor) -> None:
        """Add queries by their weights (B, H, T', T), as :meth:`Read.weights` yields them."""
        row, place = (read.documents.position[:, queries] >= self.distances - 1).nonzero(as_tuple=True)
        back = (place + queries.start)[:, None] - torch.arange(self.distances, device=place.device)
        by_distance = weights[row, :, place].gather(-1, back[:, None].expand(-1, weights.shape[1], -1))  # (Q, H, N)
        key, total = (read.level, read.layer), by_distance.double().sum(0).cpu()
        self._sums[key] = self._sums[key] + total if key in self._sums else total
        self._queries[key] = self._queries.get(key, 0) + len(row)

    def mean(self) -> dict[str, Tensor]:
        """Return by level the mean weights of all added layers, (L, H, distances) in float64; 0 without queries."""
        by_level: dict[str, list[Tensor]] = {level: [] for level, _ in self._sums}
        for (level, _), sums in sorted(self._sums.items()):
            by_level[level].append(sums)
        return {level: torch.stack(sums) / max(self.queries, 1) for level, sums in by_level.items()}


def retrieval_profile(
    network: Network, tokens: Tensor, documents: Documents | None = None, distances: int | None = None
) -> Profile:
    """Return the profile of one batch; see :class:`Profile`.

    Args:
        network: in evaluation mode.
        tokens: (B, T) int64.
        documents: their boundaries; by default every row is one document.
        distances: number of distances; T by default, which makes the last tokens of whole rows the queries.
    """
    profile = Profile(distances or tokens.shape[1])
    profile.run(network, tokens, documents)
    return profile

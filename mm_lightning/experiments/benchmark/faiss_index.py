"""An approximate nearest-neighbor index of faiss, to compare the sub-linear read of a memory with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mm_lightning.errors import UserError


class FaissIndex:
    """The nearest neighbors of one query a head by faiss, read and renormalized.

    Args:
        kind: ivf (inverted lists of which a 16th is probed) or hnsw (a graph).
        keys, values: (H, n, D).
        neighbors: how many are read.
    """

    def __init__(self, kind: str, keys: Tensor, values: Tensor, neighbors: int) -> None:
        try:
            import faiss
        except ImportError as error:
            raise UserError("faiss is not installed: pip install faiss-cpu, or add --index '[]'") from error
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.values, self.neighbors = values, min(neighbors, keys.shape[1])
        self.share = self.neighbors / keys.shape[1] if kind == "hnsw" else 1 / 16
        self.indexes = []
        index: Any
        for head in keys.cpu().float().numpy():
            if kind == "ivf":
                lists = round(2 * math.sqrt(len(head)))
                quantizer = faiss.IndexFlatIP(head.shape[1])
                index = faiss.IndexIVFFlat(quantizer, head.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
                index.cp.min_points_per_centroid = 1
                index.train(head)
                index.nprobe = max(1, lists // 16)
            else:
                index = faiss.IndexHNSWFlat(head.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
                index.hnsw.efSearch = self.neighbors
            index.add(head)
            self.indexes.append(index)

    def read(self, q: Tensor) -> Tensor:
        """Return answers (1, H, D) for queries (1, H, D)."""
        answers = []
        for index, query, values in zip(self.indexes, q[0], self.values, strict=True):
            result = index.search(query[None].cpu().float().numpy(), self.neighbors)
            scores, places = (torch.from_numpy(x[0]) for x in result)
            scores, places = scores[places >= 0], places[places >= 0]  # fewer, where the lists hold fewer
            answers.append(scores.softmax(0).to(values) @ values[places.to(values.device)])
        return torch.stack(answers)[None]

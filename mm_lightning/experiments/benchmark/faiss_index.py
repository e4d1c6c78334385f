"""An approximate index of a well-kept library, to compare a memory's own sub-linear read with."""

from __future__ import annotations

import math
import time
from typing import Any

from mm_lightning.errors import UserError


class FaissIndex:
    """Nearest neighbours of one query a head through faiss, read and renormalised.

    Args:
        kind: ivf (inverted lists of which a 16th is probed) or hnsw (a graph).
        keys: (H, n, D).
        values: the same.
        neighbours: how many are found.
    """

    def __init__(self, kind: str, keys: Any, values: Any, neighbours: int) -> None:
        try:
            import faiss
        except ImportError as error:
            raise UserError("faiss is not installed: pip install faiss-cpu, or add --index '[]'") from error
        import torch

        begin = time.perf_counter()
        faiss.omp_set_num_threads(torch.get_num_threads())
        self.values, self.neighbours = values, min(neighbours, keys.shape[1])
        self.share = self.neighbours / keys.shape[1]
        self.indexes = []
        for head in keys.cpu().float().numpy():
            if kind == "ivf":
                lists = round(2 * math.sqrt(len(head)))
                quantizer = faiss.IndexFlatIP(head.shape[1])
                made = faiss.IndexIVFFlat(quantizer, head.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
                made.cp.min_points_per_centroid = 1
                made.train(head)
                made.nprobe = max(1, lists // 16)
                self.share = 1 / 16
            else:
                made = faiss.IndexHNSWFlat(head.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
                made.hnsw.efSearch = self.neighbours
            made.add(head)
            self.indexes.append(made)
        self.seconds = time.perf_counter() - begin

    def read(self, q: Any) -> Any:
        """(1, H, D) for queries (1, H, D)."""
        import torch

        answers = []
        for made, query, values in zip(self.indexes, q[0], self.values, strict=True):
            scores, found = (torch.from_numpy(x[0]) for x in made.search(query[None].cpu().numpy(), self.neighbours))
            scores, found = scores[found >= 0], found[found >= 0]  # fewer, where the lists hold fewer
            answers.append(scores.softmax(0).to(values) @ values[found.to(values.device)])
        return torch.stack(answers)[None]

"""The pairs of clusters on a CPU, read where they lie by numba: one compiled call for each row.

Hardware does not foresee where the next cluster lies, so it is prefetched.
"""

from __future__ import annotations

from torch import Tensor

from mm_lightning.memory.kernels.numba_support import flat, get, in_threads, jit, prefetch


@jit
def _score(row, size, queries, keys, clusters, scores):  # type: ignore[no-untyped-def]
    """Write the products of a row's query with the keys of its clusters; prefetch the cluster after the next."""
    query, places, out = queries[row], clusters[row], scores[row]
    dim = len(query)
    for c in range(len(places)):
        ahead = keys[places[min(c + 2, len(places) - 1)] * size * dim :].ctypes.data
        for i in range(size):
            for byte in range(i * dim * keys.itemsize, (i + 1) * dim * keys.itemsize, 64):
                prefetch(ahead + byte)
            at = (places[c] * size + i) * dim
            k, score = keys[at : at + dim], out.dtype.type(0)
            for d in range(dim):
                score += query[d] * get(k, d)
            out[c * size + i] = score


@jit
def _add_values(row, size, weights, values, clusters, totals):  # type: ignore[no-untyped-def]
    """Add the weighted values of a row's clusters to its total; prefetch the next cluster."""
    weight, places, total = weights[row], clusters[row], totals[row]
    dim = len(total)
    for c in range(len(places)):
        ahead = values[places[min(c + 2, len(places) - 1)] * size * dim :].ctypes.data
        for i in range(size):
            for byte in range(i * dim * values.itemsize, (i + 1) * dim * values.itemsize, 64):
                prefetch(ahead + byte)
            at = (places[c] * size + i) * dim
            v, w = values[at : at + dim], weight[c * size + i]
            for d in range(dim):
                total[d] += w * get(v, d)


def pair_scores(q: Tensor, keys: Tensor, clusters: Tensor, size: int) -> Tensor:
    """Return the products (N, K size) of queries (N, D) with the keys of clusters (N, K), which lie in any order.

    Args:
        q: queries.
        keys: (B, H, capacity, D) buffer, contiguous.
        clusters: their places in the buffer, counted in clusters.
        size: pairs of a cluster.
    """
    scores = q.new_empty(len(q), clusters.shape[1] * size)
    arrays = q.contiguous().numpy(), flat(keys), clusters.contiguous().numpy(), scores.numpy()
    in_threads(_score, range(len(q)), size, *arrays)
    return scores


def weighted_values(weights: Tensor, values: Tensor, clusters: Tensor, size: int) -> Tensor:
    """Return the sums (N, D), by weights (N, K size), of the values of clusters; see :func:`pair_scores`."""
    totals = weights.new_zeros(len(weights), values.shape[-1])
    arrays = weights.contiguous().numpy(), flat(values), clusters.contiguous().numpy(), totals.numpy()
    in_threads(_add_values, range(len(weights)), size, *arrays)
    return totals

"""The read of a memory, equation (4), over the pairs that its span makes visible, equation (10).

    f(q) = sum_i exp(q.k_i) v_i / sum_j exp(q.k_j)

The bandwidth (or an attention's 1/sqrt(D)) is a factor of q. Short-term and long-term memories, and a transformer's
attention, differ only in their spans.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels.fused_read import fused_attention, fused_read, zeros_with_gradient
from mm_lightning.memory.layers import MemoryPart
from mm_lightning.memory.pair_cache import PairCache, read_in_tiles, visible


class Retrieval(MemoryPart):
    """The read of pairs by queries. Derive from it, and define :meth:`answer`, for another kernel of the regression.

    The constructor's arguments are those of :class:`mm_lightning.memory.keys.Keys`.

    Attributes:
        kernels: reference for the explicit T x T matrix, any other for fused kernels; see
            :func:`mm_lightning.memory.kernels.set_kernels`.
        softmax: whether the answers are those of equation (4), so that parts of the pairs can be read separately.
        has_dropout: whether :meth:`read` can drop weights. The one of this class passes their share to
            :meth:`answer_scaled` as `dropout`.
    """

    softmax = False
    has_dropout = False

    def answer(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """Return (B, H, T, D) answers to queries of this shape; 0 where there is nothing to read.

        Args:
            q: queries with their bandwidth.
            k, v: (B, H, N, D) keys and values.
            seen: (1 or B, 1, T, N) bool, which pairs each query reads; None: all.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no answer(q, k, v, seen)")

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        span: Span,
        documents: Documents,
        pairs: PairCache | None = None,
        late: int = 0,
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return answers (B, T, H, D) in whole documents, or for a chunk of a stream, whose pairs are stored.

        Args:
            q: (B, T, H, D) queries with their bandwidth.
            k, v: (B, T, G, D) keys and values; each of the G heads serves H/G queries.
            span: the pairs a query reads.
            documents: where documents begin; with `documents.begin` above 0 the pairs before are in the cache.
            pairs: the cache, in inference; the chunk's pairs are written to it.
            late: how many tokens before its first one the chunk's values begin, if it continues a state.
            scale: a further factor on q.k.
            dropout: the share of the weights dropped.
        """
        if pairs is not None and documents.begin > 0:
            pairs.write(k, v, late)
            return pairs.read(q, span, documents, self, scale)
        if pairs is not None:  # nothing is stored yet: read as in training
            pairs.write_first(k, v)
        return self.read(q, k, v, span, documents, scale, dropout)

    def answer_scaled(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
        """Return :meth:`answer` with a factor on q.k, and for k and v of G heads that each serve H/G queries."""
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return self.answer(q * scale, k, v, seen)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float, dropout: float
    ) -> Tensor:
        """Return answers (B, T, H, D) in whole documents, one tile of queries after the other.

        The backward pass answers each tile again, so that no T x T matrix is kept.
        """
        if documents.longest <= span.delay:
            return zeros_with_gradient(q, k, v)
        pairs = k.transpose(1, 2), v.transpose(1, 2)
        drop: dict[str, Any] = {"dropout": dropout} if dropout else {}
        answer = partial(checkpoint, partial(self.answer_scaled, **drop), use_reentrant=False)
        return read_in_tiles(answer, q, pairs, 0, span, documents, scale)

    def weights(self, q: Tensor, k: Tensor, span: Span, documents: Documents, scale: float, queries: slice) -> Tensor:
        """Return the weights with which some queries read values, (B, H, T', T).

        Args:
            q, k, span, documents, scale: as for :meth:`forward`, of whole documents.
            queries: the positions of the T' queries.
        """
        tile = q[:, queries].transpose(1, 2)
        seen = visible(0, k.shape[1], queries.start or 0, tile.shape[2], span, documents, not documents.single)
        return self.tile_weights(tile, k.transpose(1, 2), seen, scale)

    def tile_weights(self, q: Tensor, k: Tensor, seen: Tensor | None, scale: float) -> Tensor:
        """Return weights (B, H, T, N) of queries (B, H, T, D) and keys (B, G, N, D): the answers to one-hot values."""
        one_hot = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
        return self.answer_scaled(q, k, one_hot, seen, scale)


class SoftmaxRetrieval(Retrieval):
    """Equation (4) as it stands: weights exp(q.k) over their sum."""

    softmax = True
    has_dropout = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if vars(cls).keys() & {"answer", "answer_scaled"} and "read" not in vars(cls):
            raise UserError(f"{cls.__name__} defines answers that fused reads never ask for: derive it from Retrieval")

    def answer_scaled(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
        """Return (B, H, T, D) answers to queries of this shape; see :meth:`Retrieval.answer`."""
        answers = fused_attention(q, k, v, seen, scale=scale)
        return answers if seen is None else answers.masked_fill(~seen.any(-1, keepdim=True), 0)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float, dropout: float
    ) -> Tensor:
        """Return answers (B, T, H, D) in whole documents."""
        if self.kernels == "reference":
            return read_reference(q, k, v, span, documents, scale)
        return fused_read(q, k, v, span, documents, scale, dropout)

    def weights(self, q: Tensor, k: Tensor, span: Span, documents: Documents, scale: float, queries: slice) -> Tensor:
        """Return the weights of equation (4); see :func:`read_weights`."""
        return read_weights(q, k, span, documents, scale, queries)


def read_reference(q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float = 1.0) -> Tensor:
    """Compute equation (4) with the T x T matrix written out: the readable form that fused reads must agree with.

    Args:
        q: (B, T, H, D) queries with their bandwidth.
        k: (B, T, G, D) keys; each of the G heads serves H/G queries.
        v: (B, T, G, D) values.
        span: the pairs a query reads.
        documents: a query reads its own document only.
        scale: a further factor on q.k.

    Returns:
        (B, T, H, D); 0 where there is nothing to read.
    """
    weights = read_weights(q, k, span, documents, scale)
    with torch.autocast(q.device.type, enabled=False):
        values = v.repeat_interleave(q.shape[2] // v.shape[2], 2).to(weights.dtype)
        return torch.einsum("bhts,bshd->bthd", weights, values).to(q.dtype)


def read_weights(
    q: Tensor, k: Tensor, span: Span, documents: Documents, scale: float = 1.0, queries: slice = slice(None)
) -> Tensor:
    """Compute the weights of equation (4), exp(q.k_i) / sum_j exp(q.k_j) over the pairs that are read, 0 of all others.

    Args:
        q, k, span, documents, scale: as for :func:`read_reference`.
        queries: the positions t of the T' queries; all by default.

    Returns:
        (B, H, T', T) in float32 or better; each row sums to 1, or to 0 where there is nothing to read.
    """
    t = torch.arange(q.shape[1], device=q.device)
    age = t[queries, None] - t  # how many tokens ago
    seen = (age >= span.delay) & (age <= documents.position[:, queries, None])  # (B, T', T)
    if span.size is not None:
        seen &= age < span.delay + span.size
    exact = torch.promote_types(q.dtype, torch.float32)
    q, k = q[:, queries].to(exact), k.repeat_interleave(q.shape[2] // k.shape[2], 2).to(exact)
    with torch.autocast(q.device.type, enabled=False):
        scores = torch.einsum("bthd,bshd->bhts", q, k) * scale
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return weights.masked_fill(~seen[:, None], 0)  # a row of -inf only

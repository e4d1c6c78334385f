"""Reading a memory: kernel regression over the pairs that a span makes visible, equation (4).

    f(q) = sum_i exp(q.k_i) v_i / sum_j exp(q.k_j)

with the bandwidth (or an attention's 1/sqrt(D)) already multiplied into q. Every memory is a span: short-term and
long-term memories, and a transformer's attention, differ in which positions they see and in nothing else here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.kernels.cpu_dropout import dropout_read
from mm_lightning.memory.kernels.cpu_window import windowed_read
from mm_lightning.memory.pair_cache import BLOCK, PairCache, visible


class Retrieval(nn.Module):
    """How queries read pairs. Derive from it, and define :meth:`answer`, for another kernel of the regression.

    Args of a kind's constructor: as of :class:`mm_lightning.memory.keys.Keys`.

    Attributes:
        kernels: reference, or anything else for the fastest way; see
            :func:`mm_lightning.memory.kernels.set_kernels`.
    """

    kernels: Kernels = "auto"
    softmax = False

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
        """Return answers (B, T, H, D): equation (4) in whole documents, or for a chunk, whose pairs are stored.

        Args:
            q: (B, T, H, D) queries with their bandwidth.
            k, v: (B, T, G, D) keys and values; each of the G heads serves H/G queries.
            span: the pairs a query reads.
            documents: where documents begin; with `documents.begin` above 0 the pairs before are in the cache.
            pairs: the cache, in inference; it takes in these pairs.
            late: how many tokens before its first one the chunk's values begin, if it goes on from a state.
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
        """Return what :meth:`answer` does, with a factor on q.k."""
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return self.answer(q * scale, k, v, seen)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float, dropout: float
    ) -> Tensor:
        """Return answers (B, T, H, D) in whole documents, some queries after the other.

        In the backward pass each block of queries is answered again, so that no T x T matrix is kept.
        """
        if dropout:
            raise UserError(f"{type(self).__name__} has no dropout of retrieval weights: set dropout 0")
        if documents.longest <= span.delay:
            return _nothing(q, k, v)
        outputs = []
        for at in range(0, q.shape[1], BLOCK):
            block = q[:, at : at + BLOCK].transpose(1, 2)
            size = block.shape[2]
            low = 0 if span.size is None else max(0, at - span.delay - span.size + 1)
            high = max(at + size - span.delay, low)
            if high == low:
                outputs.append(torch.zeros_like(block))
                continue
            seen = visible(low, high, at, size, span, documents, not documents.single)
            near = (x[:, low:high].transpose(1, 2) for x in (k, v))
            outputs.append(checkpoint(self.answer_scaled, block, *near, seen, scale, use_reentrant=False))
        return torch.cat(outputs, 2).transpose(1, 2)

    def weights(self, q: Tensor, k: Tensor, span: Span, documents: Documents, scale: float, queries: slice) -> Tensor:
        """Return the weights with which some queries read values, (B, H, T', T): the answers to values that are units.

        Args:
            q, k, span, documents, scale: as for :meth:`forward`, of whole documents.
            queries: the positions of the T' queries.
        """
        block = q[:, queries].transpose(1, 2)
        first, time = queries.start or 0, k.shape[1]
        seen = visible(0, time, first, block.shape[2], span, documents, not documents.single)
        units = torch.eye(time, dtype=k.dtype, device=k.device).expand(*k.shape[:1], k.shape[2], time, time)
        return self.answer_scaled(block, k.transpose(1, 2), units, seen, scale)


class SoftmaxRetrieval(Retrieval):
    """Equation (4) as it stands: weights exp(q.k) over their sum."""

    softmax = True

    def answer_scaled(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
        """Return (B, H, T, D) answers to queries of this shape; see :meth:`Retrieval.answer`."""
        found = fused_attention(q, k, v, seen, scale=scale)
        return found if seen is None else found.masked_fill(~seen.any(-1, keepdim=True), 0)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float, dropout: float
    ) -> Tensor:
        """Return answers (B, T, H, D) in whole documents."""
        return read(q, k, v, span, documents, scale, dropout, self.kernels == "reference")

    def weights(self, q: Tensor, k: Tensor, span: Span, documents: Documents, scale: float, queries: slice) -> Tensor:
        """Return the weights of equation (4); see :func:`read_weights`."""
        return read_weights(q, k, span, documents, scale, queries)


def read_reference(q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float = 1.0) -> Tensor:
    """Equation (4) with the T x T matrix written out; what :func:`read` must agree with.

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
    """The weights of equation (4), exp(q.k_i) / sum_j exp(q.k_j) of the pairs that are read and 0 of all others.

    Args:
        q, k, span, documents, scale: as for :func:`read_reference`.
        queries: the positions t to write them out for; all by default.

    Returns:
        (B, H, T', T) for T' queries, in float32 or better; each row sums to 1, or to 0 where there is nothing to read.
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
    return weights.masked_fill(~seen[:, None], 0)  # a row of nothing but -inf


def read(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Span,
    documents: Documents,
    scale: float = 1.0,
    dropout: float = 0.0,
    reference: bool = False,
) -> Tensor:
    """Equation (4) through fused kernels: no T x T matrix, and O(T size) work for a span of limited size.

    Same arguments and result as :func:`read_reference`; with `dropout`, that share of the weights is dropped.
    `reference` asks for that function itself, and leaves dropout out.
    """
    if reference:
        return read_reference(q, k, v, span, documents, scale)
    if documents.longest <= span.delay:
        return _nothing(q, k, v)
    if backend(q.device, q.dtype, q.shape[-1]) == VARLEN and not dropout:
        return _read_varlen(q, k, v, span, documents, scale)
    shape, lengths = q.shape, documents.lengths
    if documents.single:  # all rows at once
        lengths = (shape[1],)
    else:  # one stream
        q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
    pieces = []
    for early, late, keys, values in _cut(q, k, v, lengths, span.delay):
        pieces += _read_rows(early, late, keys, values, span, scale, dropout)
    return torch.cat(pieces, 1).view(shape)


def _nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return zeros that still depend on the inputs, so that every parameter has a gradient."""
    everything = q.sum() + k.sum() + v.sum()
    return torch.zeros_like(q) + everything.masked_fill(torch.ones_like(everything, dtype=torch.bool), 0)


VARLEN = "variable-length flash attention"
SPLIT = "scaled_dot_product_attention, one document at a time"


def backend(device: torch.device, dtype: torch.dtype, dim: int = 8) -> str:
    """How memories with heads of dim numbers are read on this device in this type: one of `VARLEN`, `SPLIT`."""
    half = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    # Numbers that flash attention has kernels for, on devices that have its instructions.
    flash = half and dim % 8 == 0 and dim <= 256 and _capability(device) >= (8, 0)
    return VARLEN if flash and _varlen_attn() is not None else SPLIT


@lru_cache
def _varlen_attn() -> Callable[..., Any] | None:
    """torch's kernel, whose import takes seconds: it brings the compiler along."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # a torch without it reads document by document on CUDA as well
        return None
    return varlen_attn


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """torch's `scaled_dot_product_attention`, (B, H, T, D), by kernels that take every shape as it comes.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, N, D); each of the G heads serves H/G queries.
        mask: bool, true where a query reads, or what is added to q.k; broadcast to (B, H, T, N).
        dropout: share of the weights dropped.
        causal: whether query t reads the keys up to t only.
        scale: a factor on q.k.
    """
    gqa = q.shape[1] != k.shape[1]
    with any_shape(q):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=gqa)


def any_shape(x: Tensor) -> AbstractContextManager[None]:
    """Within it, reads on x's device take every shape as it comes.

    cuDNN's kernels, which torch prefers on some GPUs, are left out: they are planned anew, in tenths of a second, for
    every shape not seen before, and ours change with each delay m, batch of documents and decoded token.
    """
    return _without_cudnn() if x.is_cuda else nullcontext()


@contextmanager
def _without_cudnn() -> Iterator[None]:
    # Not torch's sdpa_kernel, which would allow again what a user has forbidden, and takes several times as long.
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _cut(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], delay: int
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per document: the queries that read nothing, the others, and the keys and values they can read.

    A delay is a shift: without its first `delay` queries and its last `delay` keys, a document is read causally.
    One `split` for all documents, because its derivative is one concatenation.
    """
    queries, pairs = [], []
    for length in lengths:
        kept = max(length - delay, 0)
        queries += [length - kept, kept]
        pairs += [kept, length - kept]
    q_parts, k_parts, v_parts = q.split(queries, 1), k.split(pairs, 1), v.split(pairs, 1)
    return list(zip(q_parts[::2], q_parts[1::2], k_parts[::2], v_parts[::2], strict=True))


def _read_rows(
    early: Tensor, q: Tensor, k: Tensor, v: Tensor, span: Span, scale: float, dropout: float
) -> list[Tensor]:
    """One document (of each row): zeros for the early queries, then causal or windowed reads; along dim 1."""
    parts = [torch.zeros_like(early)] if early.shape[1] else []
    if q.shape[1] == 0:
        return parts
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
    if dropout and q.device.type == "cpu":
        outputs = [dropout_read(q, k, v, span.size, scale, dropout)]
    elif span.size is None or q.shape[2] <= span.size:
        outputs = [fused_attention(q, k, v, dropout=dropout, causal=True, scale=scale)]
    elif q.device.type == "cpu":
        outputs = [windowed_read(q, k, v, span.size, scale)]
    else:
        outputs = _windowed(q, k, v, span.size, scale, dropout)
    return [*parts, *(x.transpose(1, 2) for x in outputs)]


def _windowed(q: Tensor, k: Tensor, v: Tensor, size: int, scale: float, dropout: float) -> list[Tensor]:
    """Causal reads of the last `size` keys, (B, H, T, D): each block of queries against the blocks it can see."""
    back = -(-(size - 1) // BLOCK)  # blocks of keys before a query's own
    mask = _band(size, back, q.dtype, q.device)
    keys, values = k.split(BLOCK, 2), v.split(BLOCK, 2)
    outputs = []
    for i, block in enumerate(q.split(BLOCK, 2)):
        first = max(i - back, 0)
        near_k, near_v = torch.cat(keys[first : i + 1], 2), torch.cat(values[first : i + 1], 2)
        seen = mask[: block.shape[2], (back - i + first) * BLOCK :][:, : near_k.shape[2]]
        outputs.append(fused_attention(block, near_k, near_v, seen, dropout, scale=scale))
    return outputs


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what inference is first to ask for, training uses later
def _band(size: int, back: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(BLOCK, (back + 1) BLOCK) additive mask of a block of queries over its keys: 0 where visible, else -inf."""
    query = torch.arange(BLOCK, device=device)[:, None] + back * BLOCK
    age = query - torch.arange((back + 1) * BLOCK, device=device)
    mask = torch.zeros(age.shape, dtype=dtype, device=device)
    return mask.masked_fill_((age < 0) | (age >= size), -torch.inf)


class _Rows(torch.autograd.Function):
    """Rows of a tensor, each at most once: `index_select`, whose derivative would add them up by atomic operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.count, *grad.shape[1:]).index_copy_(0, rows, grad), None


def _read_varlen(q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float) -> Tensor:
    """The whole batch as one stream of documents; keys without each document's last `delay` ones.

    The kernel aligns queries and keys at a document's end, so the shorter list of keys is the delay.
    """
    k, v, offsets = k.flatten(0, 1), v.flatten(0, 1), documents.offsets
    if span.delay:
        kept, offsets = documents.without_last(span.delay)
        k, v = _Rows.apply(k, kept), _Rows.apply(v, kept)
    left = -1 if span.size is None else span.size - 1
    longest = documents.longest
    varlen_attn, grouped = _varlen_attn(), dict[str, Any]()
    assert varlen_attn is not None
    if (shared := q.shape[2] // k.shape[1]) > 1:
        if "enable_gqa" in signature(varlen_attn).parameters:
            grouped["enable_gqa"] = True
        else:  # torch < 2.12
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    with any_shape(q):
        out: Any = varlen_attn(
            q.flatten(0, 1),
            k,
            v,
            documents.offsets,
            offsets,
            longest,
            max(longest - span.delay, 1),
            scale=scale,
            window_size=(left, 0),
            **grouped,
        )
    return out.view_as(q)

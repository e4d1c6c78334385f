"""Equation (4) by fused attention kernels: no T x T matrix, and O(T size) work for a span of limited size.

A delay is a shift: without its first `delay` queries and its last `delay` keys, a document is read causally. On CUDA in
16 bits a whole batch is one call of variable-length flash attention; elsewhere each document is read for itself, by
`scaled_dot_product_attention` or, on a CPU, by the reads of `cpu_window` and `cpu_dropout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels.cpu_dropout import dropout_read
from mm_lightning.memory.kernels.cpu_window import band_mask, windowed_read

TILE = 128
"""Queries of a windowed read that share one matrix product."""

VARLEN = "variable-length flash attention"
SPLIT = "scaled_dot_product_attention, one document at a time"


def fused_read(
    q: Tensor, k: Tensor, v: Tensor, span: Span, documents: Documents, scale: float = 1.0, dropout: float = 0.0
) -> Tensor:
    """Compute :func:`mm_lightning.memory.retrieval.read_reference` without the T x T matrix, to rounding.

    Args:
        q, k, v, span, documents, scale: as for the reference.
        dropout: share of the weights dropped; the others are divided by 1 - dropout.

    Returns:
        (B, T, H, D); 0 where there is nothing to read.
    """
    if documents.longest <= span.delay:
        return zeros_with_gradient(q, k, v)
    if attention_backend(q.device, q.dtype, q.shape[-1]) == VARLEN and not dropout:
        return _read_varlen(q, k, v, span, documents, scale)
    shape, lengths = q.shape, documents.lengths
    if documents.single:  # all rows at once
        lengths = (shape[1],)
    else:  # one stream
        q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
    # One `split` into documents, because its derivative is one concatenation: queries that read nothing, the others,
    # and the pairs that these can read.
    early = [min(length, span.delay) for length in lengths]
    queries = [n for length, few in zip(lengths, early, strict=True) for n in (few, length - few)]
    pairs = [n for length, few in zip(lengths, early, strict=True) for n in (length - few, few)]
    q_parts, k_parts, v_parts = q.split(queries, 1), k.split(pairs, 1), v.split(pairs, 1)
    outputs = []
    for parts in zip(q_parts[::2], q_parts[1::2], k_parts[::2], v_parts[::2], strict=True):
        outputs += _read_document(*parts, span, scale, dropout)
    return torch.cat(outputs, 1).view(shape)


def zeros_with_gradient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return zeros of q's shape that still depend on all inputs, so that every parameter has a gradient."""
    everything = q.sum() + k.sum() + v.sum()
    return torch.zeros_like(q) + everything.masked_fill(torch.ones_like(everything, dtype=torch.bool), 0)


def attention_backend(device: torch.device, dtype: torch.dtype, dim: int = 8) -> str:
    """Return the attention backend for head dimension `dim` on a device in a type: `VARLEN` or `SPLIT`."""
    half = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    # Head dimensions that flash attention has kernels for, on devices that have its instructions.
    flash = half and dim % 8 == 0 and dim <= 256 and _capability(device) >= (8, 0)
    return VARLEN if flash else SPLIT


@lru_cache
def _varlen_attn() -> Callable[..., Any]:
    """Import torch's variable-length attention, which takes seconds: it brings the compiler along."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Call torch's `scaled_dot_product_attention`, (B, H, T, D), without kernels that are planned again for each shape.

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
    """Context manager without cuDNN's attention kernels, if x is on a GPU.

    torch prefers them on some GPUs, but they take tenths of a second to plan for every new shape,
    and shapes change with each delay m, batch of documents and decoded token.
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


def _read_document(
    early: Tensor, q: Tensor, k: Tensor, v: Tensor, span: Span, scale: float, dropout: float
) -> list[Tensor]:
    """Read one document (of each row): zeros for the early queries, then causal or windowed reads; along dim 1."""
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
        outputs = _read_window(q, k, v, span.size, scale, dropout)
    return [*parts, *(x.transpose(1, 2) for x in outputs)]


def _read_window(q: Tensor, k: Tensor, v: Tensor, size: int, scale: float, dropout: float) -> list[Tensor]:
    """Read causally the last `size` keys, (B, H, T, D): each tile of queries against the tiles of keys it can see."""
    back = -(-(size - 1) // TILE)  # tiles of keys before a query's own
    mask = band_mask(size, TILE, back * TILE, q.dtype, q.device)
    keys, values = k.split(TILE, 2), v.split(TILE, 2)
    outputs = []
    for i, tile in enumerate(q.split(TILE, 2)):
        first = max(i - back, 0)
        near_k, near_v = torch.cat(keys[first : i + 1], 2), torch.cat(values[first : i + 1], 2)
        seen = mask[: tile.shape[2], (back - i + first) * TILE :][:, : near_k.shape[2]]
        outputs.append(fused_attention(tile, near_k, near_v, seen, dropout, scale=scale))
    return outputs


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
    """Read the whole batch as one stream of documents; keys without each document's last `delay` ones.

    The kernel aligns queries and keys at a document's end, so the shorter list of keys is the delay.
    """
    k, v, offsets = k.flatten(0, 1), v.flatten(0, 1), documents.offsets
    if span.delay:
        remaining, offsets = documents.without_last(span.delay)
        k, v = _Rows.apply(k, remaining), _Rows.apply(v, remaining)
    left = -1 if span.size is None else span.size - 1
    longest = documents.longest
    varlen_attn, grouped = _varlen_attn(), dict[str, Any]()
    if (shared := q.shape[2] // k.shape[1]) > 1:
        if "enable_gqa" in signature(varlen_attn).parameters:
            grouped["enable_gqa"] = True
        else:  # torch < 2.12
            k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    with any_shape(q):
        lengths = documents.offsets, offsets, longest, max(longest - span.delay, 1)
        out: Any = varlen_attn(q.flatten(0, 1), k, v, *lengths, scale=scale, window_size=(left, 0), **grouped)
    return out.view_as(q)

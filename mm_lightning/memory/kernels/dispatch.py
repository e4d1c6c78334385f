"""Dispatch of keys and values, equations (8) and (9), to the kernels of torch, numba or Triton.

The compiled kernels are registered as operators of torch, so that torch.compile does not trace into them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import Kernels, is_plain, resolve_kernels
from mm_lightning.memory.kernels.self_test import compare
from mm_lightning.memory.kernels.torch_features import (
    contiguous_rows,
    finite_bandwidth,
    gated_average,
    look_ahead,
    normalize,
    queries,
)

_LIBRARY = __name__.replace(".", "_")
"""The namespace of the operators; that of an exported copy of this module differs."""


@cache
def kernel_mismatch(kernels: Kernels, device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """Return why kernels fail their self-test on a device, with a warning, or None; `dim` is the head dimension D."""

    def compute(kernels: Kernels, device: torch.device) -> list[Tensor]:
        resolve_kernels(kernels, device, dtype, dim)
        return _self_test_case(kernels, device, dtype, dim)

    return compare(kernels, device, dtype, compute, f" with head dimension {dim}", "keys and values", "tests/memory")


def dispatch_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype, dim: int) -> Kernels:
    """Return :func:`resolve_kernels`, but for `auto` torch where the kernels for a GPU fail their self-test there."""
    if kernels in ("reference", "torch"):  # so that torch.compile meets nothing that is cached
        return kernels
    resolved = resolve_kernels(kernels, device, dtype, dim)
    if kernels == "auto" and resolved == "triton" and kernel_mismatch(resolved, device, dtype, dim):
        return "torch"
    return resolved


def gated_keys(
    ktilde: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, documents: Documents, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Return queries q = beta k and keys k of equation (8), of whole documents.

    Args:
        ktilde: (B, T, H, D) raw keys W_phi x.
        gate: (B, T, H) log g.
        decay: (B, T, H) log lambda, at most 0.
        beta: bandwidths, (B, T, H) or (H,).
        documents: where to restart.
        kernels: torch, numba or triton.

    Returns:
        q and k, (B, T, H, D) each in ktilde's type.
    """
    if kernels == "torch":
        k = gated_average(ktilde, gate, decay, documents)
        return queries(k, beta), k
    exact = torch.promote_types(ktilde.dtype, torch.float32)
    scalars = [x.to(exact).expand_as(gate).contiguous() for x in (gate, decay, finite_bandwidth(beta, ktilde.dtype))]
    arguments = (contiguous_rows(ktilde), *scalars, documents.starts)
    return _kernel("keys")(*arguments)[:2] if _directly(kernels, ktilde) else _GatedKeys.apply(*arguments)


def ahead_values(vtilde: Tensor, gamma: Tensor | None, alpha: Tensor, documents: Documents, kernels: Kernels) -> Tensor:
    """Return alpha Norm(gamma vtilde_t + (1 - gamma) vtilde_{t+1}), equation (9), (B, T, H, D) in vtilde's type.

    Args:
        vtilde: (B, T, H, D) raw values W_psi x.
        gamma: (H,) weight of the present token; None: 1.
        alpha: (H,) norm of the values, above 0.
        documents: a document's last token has no next one, which counts as 0.
        kernels: torch, numba or triton.
    """
    exact = torch.promote_types(vtilde.dtype, torch.float32)
    if kernels == "torch":
        values = normalize(vtilde.to(exact)).to(vtilde.dtype) if gamma is None else look_ahead(vtilde, gamma, documents)
        return values * alpha[:, None].to(values.dtype)
    gamma = torch.ones_like(alpha) if gamma is None else gamma
    arguments = (contiguous_rows(vtilde), gamma.to(exact), alpha.to(exact), documents.starts)
    return _kernel("values")(*arguments)[0] if _directly(kernels, vtilde) else _AheadValues.apply(*arguments)


def _directly(kernels: Kernels, x: Tensor) -> bool:
    """Return whether to call numba kernels without the operator around them.

    The first call of an operator imports torch.compile, which takes seconds and is of no use without gradients.
    """
    return kernels == "numba" and is_plain(x) and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


class _GatedKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, starts: Tensor) -> tuple:
        q, k, saved = _keys(raw, gate, decay, beta, starts)
        ctx.save_for_backward(raw, beta, starts, k, saved)
        return q, k

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor) -> tuple:  # type: ignore[override]
        return *_keys_backward(*ctx.saved_tensors, d_q, d_k), None


class _AheadValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, gamma: Tensor, alpha: Tensor, starts: Tensor) -> Tensor:
        v, norm = _values(raw, gamma, alpha, starts)
        ctx.save_for_backward(raw, gamma, alpha, starts, v, norm)
        return v

    @staticmethod
    def backward(ctx: Any, d_v: Tensor) -> tuple:  # type: ignore[override]
        return *_values_backward(*ctx.saved_tensors, d_v), None


def _kernel(name: str) -> Callable[..., Any]:
    """Return the kernel of this name, Triton's on CUDA, else numba's; they are imported when it is first called."""

    def call(*arguments: Tensor) -> Any:
        if arguments[0].is_cuda:
            from mm_lightning.memory.kernels import triton_launch

            return getattr(triton_launch, name)(*arguments)
        from mm_lightning.memory.kernels import numba_features

        return getattr(numba_features, name)(*arguments)

    return call


def _operator(name: str, kernel: str, arguments: str, results: int) -> Any:
    """Register kernels of the same name for CPU (numba) and CUDA (triton) as an operator of torch."""
    tensors = ", ".join(f"Tensor {argument}" for argument in arguments.split())
    schema = f"({tensors}) -> ({', '.join(['Tensor'] * results)})"
    settings: dict[str, Any] = {"mutates_args": (), "device_types": ("cpu", "cuda"), "schema": schema}
    return torch.library.custom_op(f"{_LIBRARY}::{name}", _kernel(kernel), **settings)


_keys = _operator("gated_keys", "keys", "raw gate decay beta starts", 3)
_keys_backward = _operator("gated_keys_backward", "keys_backward", "raw beta starts k saved d_q d_k", 4)
_values = _operator("ahead_values", "values", "raw gamma alpha starts", 2)
_values_backward = _operator("ahead_values_backward", "values_backward", "raw gamma alpha starts v norm d_v", 3)

# Shapes, types and strides of the results, for torch.compile


def _like(raw: Tensor) -> Tensor:
    """Return an empty tensor (B, T, H, D), with heads before time in memory on a CPU."""
    batch, time, heads, dim = raw.shape
    if raw.device.type == "cpu":
        return raw.new_empty(batch, heads, time, dim).transpose(1, 2)
    return raw.new_empty(raw.shape)


@_keys.register_fake
def _(raw, gate, decay, beta, starts):  # type: ignore[no-untyped-def]
    batch, time, heads = gate.shape
    saved = (batch, time, heads) if raw.device.type == "cpu" else (batch, heads, time)
    return _like(raw), _like(raw), gate.new_empty(3, *saved)


@_keys_backward.register_fake
def _(raw, beta, starts, k, saved, d_q, d_k):  # type: ignore[no-untyped-def]
    return raw.new_empty(raw.shape), *(beta.new_empty(beta.shape) for _ in range(3))


@_values.register_fake
def _(raw, gamma, alpha, starts):  # type: ignore[no-untyped-def]
    return _like(raw), gamma.new_empty(raw.shape[:3])


@_values_backward.register_fake
def _(raw, gamma, alpha, starts, v, norm, d_v):  # type: ignore[no-untyped-def]
    return raw.new_empty(raw.shape), torch.empty_like(gamma), torch.empty_like(alpha)


def _self_test_case(kernels: Kernels, device: torch.device, dtype: torch.dtype, dim: int) -> list[Tensor]:
    """Compute keys, queries, values and gradients of three documents in two rows."""
    draw = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device)

    time, heads = 70, 2  # more than two chunks, and a part of one
    shape = (2, time, heads, dim)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        starts = torch.zeros(2, time, dtype=torch.bool)
        starts[:, 0] = starts[1, 40] = True
        documents = Documents.from_starts(starts).to(device)
        raw, ahead = (random(*shape).to(dtype).requires_grad_() for _ in range(2))
        gate, decay, beta = random(2, time, heads), -random(2, time, heads).abs(), 1 + random(2, time, heads).abs()
        gamma, alpha = random(heads).sigmoid(), 1 + random(heads).abs()
        inputs = [raw, ahead, *(x.requires_grad_() for x in (gate, decay, beta, gamma, alpha))]
        q, k = gated_keys(raw, gate, decay, beta, documents, kernels)
        outputs = [q, k, ahead_values(ahead, gamma, alpha, documents, kernels)]
        gradients = torch.autograd.grad(outputs, inputs, [random(*shape).to(dtype) for _ in outputs])
        return [x.detach().float().cpu() for x in (*outputs, *gradients)]

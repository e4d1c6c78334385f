"""Which code computes keys and values, equations (8) and (9): readable references, torch, or one compiled pass.

All agree in values and gradients. The compiled ones are operators of torch, so that torch.compile leaves them alone.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.features import look_ahead, look_ahead_reference
from mm_lightning.memory.recurrence import gated_average, gated_average_reference, queries, storable, unit

Kernels = Literal["auto", "reference", "torch", "native", "triton"]


class _Compiled(NamedTuple):
    """Where compiled kernels run."""

    package: str
    device: str
    types: tuple[torch.dtype, ...]
    largest_head: int = 2**31

    def fits(self, device: torch.device, dtype: torch.dtype, dim: int) -> bool:
        return device.type == self.device and dtype in self.types and dim <= self.largest_head


_COMPILED: dict[Kernels, _Compiled] = {
    "native": _Compiled("numba", "cpu", (torch.float32, torch.float64, torch.bfloat16)),
    "triton": _Compiled("triton", "cuda", (torch.float32, torch.float16, torch.bfloat16), largest_head=256),
}

_LIBRARY = __name__.replace(".", "_")
"""Of our operators: an exported folder holds a copy of this module."""


@cache
def resolve(kernels: Kernels, device: torch.device, dtype: torch.dtype = torch.float32, dim: int = 1) -> Kernels:
    """What `auto` means here: native on a CPU with numba, triton on CUDA with triton, torch elsewhere.

    Args:
        kernels: what was asked for; other than auto, checked and returned.
        device, dtype, dim: of raw keys and values, dim = D.

    Raises:
        UserError: the kernels that were asked for cannot run here.
    """
    if kernels == "auto":
        for name, form in _COMPILED.items():
            if form.fits(device, dtype, dim) and find_spec(form.package):
                return name
        return "torch"
    if kernels in _COMPILED:
        form = _COMPILED[kernels]
        if not find_spec(form.package):
            raise UserError(
                f"kernels {kernels} need {form.package}: pip install {form.package}, or choose auto or torch"
            )
        if not form.fits(device, dtype, dim):
            *types, last = (str(x).removeprefix("torch.") for x in form.types)
            known = f"{', '.join(types)} and {last} on {form.device}"
            here = f"{dtype} on {device}".removeprefix("torch.")
            if dim > form.largest_head:
                known, here = f"{known}, with heads of at most {form.largest_head} numbers", f"{here} with {dim}"
            raise UserError(f"kernels {kernels} compute in {known}, not in {here}: choose auto")
    return kernels


def chosen(kernels: Kernels, device: torch.device, dtype: torch.dtype, dim: int) -> Kernels:
    """:func:`resolve`, but where `auto` would mean kernels for a GPU, they must pass a small trial on it first."""
    if kernels in ("reference", "torch"):  # so that torch.compile meets nothing that is cached
        return kernels
    found = resolve(kernels, device, dtype, dim)
    if kernels == "auto" and found == "triton":
        from mm_lightning.memory.trial import problem

        return "torch" if problem(found, device, dtype, dim) else found
    return found


def takes_token(kernels: Kernels, x: Tensor, weight: Tensor) -> bool:
    """Whether x is one token, and native kernels take it through these weights: while text is generated on a CPU."""
    if x.numel() != x.shape[-1] or torch.is_grad_enabled() or not (x.is_cpu and weight.is_cpu):
        return False
    if x.dtype != weight.dtype or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    if not (plain(x) and plain(weight)) or x.shape[-1] != weight.shape[-1]:  # of which torch says what is wrong
        return False
    ordered = weight.is_contiguous() and x.stride(-1) == 1
    return ordered and resolve(kernels, x.device, x.dtype) == "native"


def plain(x: Tensor) -> bool:
    """Whether its numbers lie where `data_ptr()` says: those of quantised, sharded or imagined tensors do not."""
    return type(x) in (Tensor, nn.Parameter)


def describe(kernels: Kernels) -> str:
    """Their name, and which package's version compiles them."""
    if kernels not in _COMPILED:
        return kernels
    package = _COMPILED[kernels].package
    return f"{kernels} ({package} {version(package)})"


def set_kernels(network: nn.Module, kernels: Kernels) -> None:
    """Has all memories of a network computed by these."""
    for module in network.modules():
        if isinstance(getattr(module, "kernels", None), str):
            if kernels == "reference" and getattr(module, "dropout", None):
                raise UserError("kernels reference have no dropout of retrieval weights: set dropout 0 or choose torch")
            setattr(module, "kernels", kernels)  # noqa: B010


def gated_keys(
    ktilde: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, documents: Documents, kernels: Kernels = "auto"
) -> tuple[Tensor, Tensor]:
    """Queries and keys: k of equation (8), and q = beta k.

    Args:
        ktilde: (B, T, H, D) raw keys W_phi x.
        gate: (B, T, H) log g.
        decay: (B, T, H) log lambda, at most 0.
        beta: bandwidths, (B, T, H) or (H,).
        documents: where to restart.
        kernels: what computes them.

    Returns:
        q and k, (B, T, H, D) each in ktilde's type.
    """
    kernels = chosen(kernels, ktilde.device, ktilde.dtype, ktilde.shape[-1])
    if kernels in ("reference", "torch"):
        average = gated_average if kernels == "torch" else gated_average_reference
        k = average(ktilde, gate, decay, documents)
        return queries(k, beta), k
    exact = torch.promote_types(ktilde.dtype, torch.float32)
    scalars = [x.to(exact).expand_as(gate).contiguous() for x in (gate, decay, storable(beta, ktilde.dtype))]
    arguments = (_with_rows(ktilde), *scalars, documents.starts)
    return _native_keys(*arguments)[:2] if _directly(kernels, ktilde) else _GatedKeys.apply(*arguments)


def ahead_values(
    vtilde: Tensor, gamma: Tensor | None, alpha: Tensor, documents: Documents, kernels: Kernels = "auto"
) -> Tensor:
    """Equation (9): alpha Norm(gamma vtilde_t + (1 - gamma) vtilde_{t+1}), (B, T, H, D) in vtilde's type.

    Args:
        vtilde: (B, T, H, D) raw values W_psi x.
        gamma: (H,) weight of the present token; None: 1.
        alpha: (H,) norm of the values, above 0.
        documents: a document's last token has no next one, which counts as 0.
        kernels: what computes them.
    """
    kernels = chosen(kernels, vtilde.device, vtilde.dtype, vtilde.shape[-1])
    exact = torch.promote_types(vtilde.dtype, torch.float32)
    if kernels in ("reference", "torch"):
        if gamma is None:
            values = unit(vtilde.to(exact)).to(vtilde.dtype)
        else:
            values = (look_ahead if kernels == "torch" else look_ahead_reference)(vtilde, gamma, documents)
        return values * alpha[:, None].to(values.dtype)
    gamma = torch.ones_like(alpha) if gamma is None else gamma
    arguments = (_with_rows(vtilde), gamma.to(exact), alpha.to(exact), documents.starts)
    return _native_values(*arguments)[0] if _directly(kernels, vtilde) else _AheadValues.apply(*arguments)


def _directly(kernels: Kernels, x: Tensor) -> bool:
    """Whether native kernels are called as they are, not as operators: the first call of an operator imports
    torch.compile, which takes seconds, and where nobody wants gradients or compiles it adds nothing."""
    return kernels == "native" and plain(x) and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def _with_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _GatedKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, starts: Tensor) -> tuple:
        q, k, kept = _keys(raw, gate, decay, beta, starts)
        ctx.save_for_backward(raw, beta, starts, k, kept)
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


def _native_keys(
    raw: Tensor, gate: Tensor, decay: Tensor, beta: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, heads, dim = raw.shape
    total = gate.new_zeros(batch, heads, dim)
    scale = torch.full((batch, heads), -torch.inf, dtype=torch.float64, device=raw.device)
    from mm_lightning.memory.native import keys

    return keys(raw, gate, decay, beta, starts, total, scale)


_keys = torch.library.custom_op(_LIBRARY + "::gated_keys", _native_keys, mutates_args=(), device_types="cpu")


@torch.library.custom_op(_LIBRARY + "::gated_keys_backward", mutates_args=(), device_types="cpu")
def _keys_backward(
    raw: Tensor, beta: Tensor, starts: Tensor, k: Tensor, kept: Tensor, d_q: Tensor, d_k: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from mm_lightning.memory.native import keys_backward

    return keys_backward(raw, beta, starts, k, kept, d_q, d_k)


def _native_values(raw: Tensor, gamma: Tensor, alpha: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    from mm_lightning.memory.native import values

    return values(raw, gamma, alpha, starts)


_values = torch.library.custom_op(_LIBRARY + "::ahead_values", _native_values, mutates_args=(), device_types="cpu")


@torch.library.custom_op(_LIBRARY + "::ahead_values_backward", mutates_args=(), device_types="cpu")
def _values_backward(
    raw: Tensor, gamma: Tensor, alpha: Tensor, starts: Tensor, v: Tensor, norm: Tensor, d_v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from mm_lightning.memory.native import values_backward

    return values_backward(raw, gamma, alpha, starts, v, norm, d_v)


@_keys.register_kernel("cuda")
def _(raw, gate, decay, beta, starts):  # type: ignore[no-untyped-def]
    from mm_lightning.memory.triton_kernels import keys

    return keys(raw, gate, decay, beta, starts)


@_keys_backward.register_kernel("cuda")
def _(raw, beta, starts, k, kept, d_q, d_k):  # type: ignore[no-untyped-def]
    from mm_lightning.memory.triton_kernels import keys_backward

    return keys_backward(raw, beta, starts, k, kept, d_q, d_k)


@_values.register_kernel("cuda")
def _(raw, gamma, alpha, starts):  # type: ignore[no-untyped-def]
    from mm_lightning.memory.triton_kernels import values

    return values(raw, gamma, alpha, starts)


@_values_backward.register_kernel("cuda")
def _(raw, gamma, alpha, starts, v, norm, d_v):  # type: ignore[no-untyped-def]
    from mm_lightning.memory.triton_kernels import values_backward

    return values_backward(raw, gamma, alpha, starts, v, norm, d_v)


# Shapes, types and strides of the results, by which torch.compile plans.


def _like(raw: Tensor) -> Tensor:
    """(B, T, H, D), stored heads first on a CPU."""
    batch, time, heads, dim = raw.shape
    if raw.device.type == "cpu":
        return raw.new_empty(batch, heads, time, dim).transpose(1, 2)
    return raw.new_empty(raw.shape)


@_keys.register_fake
def _(raw, gate, decay, beta, starts):  # type: ignore[no-untyped-def]
    batch, time, heads = gate.shape
    kept = (batch, time, heads) if raw.device.type == "cpu" else (batch, heads, time)
    return _like(raw), _like(raw), gate.new_empty(3, *kept)


@_keys_backward.register_fake
def _(raw, beta, starts, k, kept, d_q, d_k):  # type: ignore[no-untyped-def]
    return raw.new_empty(raw.shape), *(beta.new_empty(beta.shape) for _ in range(3))


@_values.register_fake
def _(raw, gamma, alpha, starts):  # type: ignore[no-untyped-def]
    return _like(raw), gamma.new_empty(raw.shape[:3])


@_values_backward.register_fake
def _(raw, gamma, alpha, starts, v, norm, d_v):  # type: ignore[no-untyped-def]
    return raw.new_empty(raw.shape), torch.empty_like(gamma), torch.empty_like(alpha)

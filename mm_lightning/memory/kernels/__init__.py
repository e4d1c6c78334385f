"""Faster forms of the equations, and which of them runs where: readable references, plain torch, or compiled code.

All agree in values and gradients. Nothing here knows of memories or networks: only of tensors and documents.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mm_lightning.errors import UserError

Kernels = Literal["auto", "reference", "torch", "numba", "triton"]


class _Compiled(NamedTuple):
    """Where compiled kernels run."""

    package: str
    device: str
    types: tuple[torch.dtype, ...]
    largest_head: int = 2**31

    def fits(self, device: torch.device, dtype: torch.dtype, dim: int) -> bool:
        return device.type == self.device and dtype in self.types and dim <= self.largest_head


_COMPILED: dict[Kernels, _Compiled] = {
    "numba": _Compiled("numba", "cpu", (torch.float32, torch.float64, torch.bfloat16)),
    "triton": _Compiled("triton", "cuda", (torch.float32, torch.float16, torch.bfloat16), largest_head=256),
}


@cache
def resolve_kernels(
    kernels: Kernels, device: torch.device, dtype: torch.dtype = torch.float32, dim: int = 1
) -> Kernels:
    """Return the kernels that run here: for `auto` numba on a CPU, triton on CUDA, torch where neither is installed.

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


def is_plain(x: Tensor) -> bool:
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
        if kernels == "reference" and hasattr(module, "retrieval") and getattr(module, "dropout", None):
            raise UserError("kernels reference have no dropout of retrieval weights: set dropout 0 or choose torch")
        if isinstance(getattr(module, "kernels", None), str):
            setattr(module, "kernels", kernels)  # noqa: B010

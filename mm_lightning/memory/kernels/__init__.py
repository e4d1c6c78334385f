"""Kernels, the faster forms of the equations, and the choice between them: references, torch, numba or Triton.

All agree in values and gradients. They take tensors and document boundaries, and import no memory or network.
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
    """The devices, types and head dimensions that compiled kernels support."""

    package: str
    device: str
    types: tuple[torch.dtype, ...]
    largest_dim: int = 2**31

    def supports(self, device: torch.device, dtype: torch.dtype, dim: int) -> bool:
        return device.type == self.device and dtype in self.types and dim <= self.largest_dim


_COMPILED: dict[Kernels, _Compiled] = {
    "numba": _Compiled("numba", "cpu", (torch.float32, torch.float64, torch.bfloat16)),
    "triton": _Compiled("triton", "cuda", (torch.float32, torch.float16, torch.bfloat16), largest_dim=256),
}


@cache
def resolve_kernels(
    kernels: Kernels, device: torch.device, dtype: torch.dtype = torch.float32, dim: int = 1
) -> Kernels:
    """Return the kernels that run here: for `auto` numba on a CPU, triton on CUDA, torch where neither is installed.

    Args:
        kernels: auto, or others, which are checked and returned.
        device, dtype: those of raw keys and values.
        dim: head dimension D.

    Raises:
        UserError: the kernels cannot run on this device, in this type or with this head dimension.
    """
    if kernels == "auto":
        for name, compiled in _COMPILED.items():
            if compiled.supports(device, dtype, dim) and find_spec(compiled.package):
                return name
        return "torch"
    if kernels in _COMPILED:
        compiled = _COMPILED[kernels]
        if not find_spec(compiled.package):
            package = compiled.package
            raise UserError(f"kernels {kernels} need the package {package}: pip install {package}, or choose auto")
        if not compiled.supports(device, dtype, dim):
            *types, last = (str(x).removeprefix("torch.") for x in compiled.types)
            supported = f"{', '.join(types)} and {last} on {compiled.device}"
            got = f"{dtype} on {device}".removeprefix("torch.")
            if dim > compiled.largest_dim:
                supported, got = f"{supported} with head dimensions up to {compiled.largest_dim}", f"{got} with {dim}"
            raise UserError(f"kernels {kernels} support {supported}, got {got}: choose auto")
    return kernels


def is_plain(x: Tensor) -> bool:
    """Return whether the data of a tensor lie at `data_ptr()`: not those of quantized, sharded or fake tensors."""
    return type(x) in (Tensor, nn.Parameter)


def describe(kernels: Kernels) -> str:
    """Return the name of kernels with the package that compiles them and its version."""
    if kernels not in _COMPILED:
        return kernels
    package = _COMPILED[kernels].package
    return f"{kernels} ({package} {version(package)})"


def set_kernels(network: nn.Module, kernels: Kernels) -> None:
    """Set the kernels of all memories of a network."""
    for module in network.modules():
        if kernels == "reference" and hasattr(module, "retrieval") and getattr(module, "dropout", None):
            raise UserError("kernels reference have no dropout of retrieval weights: set dropout 0, or choose torch")
        if isinstance(getattr(module, "kernels", None), str):
            setattr(module, "kernels", kernels)  # noqa: B010

"""The self-test of kernels compiled for a GPU, on that GPU, before `auto` chooses them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mm_lightning.memory.kernels import Kernels

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest difference of values and gradients, relative to the largest of them."""


Compute = Callable[[Kernels, torch.device], list[Tensor]]
"""Compute a small case with some kernels on a device; results in float32 on the CPU."""


def compare(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, compute: Compute, case: str, what: str, tests: str
) -> str | None:
    """Compare kernels with torch on a device; return why they differ, with a warning, or None if they agree.

    Args:
        kernels: the kernels under test.
        device: the device to run them on.
        dtype: the type of their inputs.
        compute: computes a small case.
        case: the case in words, for the warning.
        what: the name of the results in the warning.
        tests: the folder of tests that the warning names.
    """
    try:
        results = _in_own_thread(compute, kernels, device)
        expected = _in_own_thread(compute, "torch", torch.device("cpu"))  # where no setting shortens matrix products
        errors = [(a - b).abs().max() / b.abs().max().clamp(min=1e-2) for a, b in zip(results, expected, strict=True)]
        worst = torch.stack(errors).max().item()  # NaN if any is, which Python's max may overlook
    except Exception as error:  # whatever a compiler or a driver raises
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    else:
        if worst <= TOLERANCE[dtype]:
            return None
        why = f"their results differ from torch's by {worst:.1%}"
    warnings.warn(
        f"kernels {kernels} fail their self-test on {device}{case} in {str(dtype).removeprefix('torch.')} ({why}): "
        f"torch computes {what} instead, more slowly. pytest -m gpu {tests} tells more; model.kernels: {kernels} "
        f"insists on them.",
        stacklevel=3,
    )
    return why


def _in_own_thread(compute: Compute, kernels: Kernels, device: torch.device) -> list[Tensor]:
    """Compute in a new thread, out of reach of the caller's contexts: autocast, no_grad, activation checkpointing."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute, kernels, device).result()

"""A trial of kernels compiled for a GPU, on that GPU, before `auto` trusts them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mm_lightning.memory.kernels import Kernels

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of the largest number, for values and gradients."""


Compute = Callable[[Kernels, torch.device], list[Tensor]]
"""What some kernels compute on a device, in float32 on the CPU."""


def compare(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, compute: Compute, case: str, what: str, tests: str
) -> str | None:
    """Why kernels cannot be trusted on a device, with a warning; None if they compute what torch does.

    Args:
        kernels: to be tried.
        device: where.
        dtype: of what they are given.
        compute: a small case.
        case: that case in words, for the warning.
        what: they compute, for the warning.
        tests: a folder of tests that tell more.
    """
    try:
        found = _alone(compute, kernels, device)
        expected = _alone(compute, "torch", torch.device("cpu"))  # where no setting shortens matrix products
        errors = [(a - b).abs().max() / b.abs().max().clamp(min=1e-2) for a, b in zip(found, expected, strict=True)]
        worst = torch.stack(errors).max().item()  # NaN if any is, which Python's max may overlook
    except Exception as error:  # whatever a compiler or a driver raises
        why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    else:
        if worst <= TOLERANCE[dtype]:
            return None
        why = f"their results differ from torch's by {worst:.1%}"
    warnings.warn(
        f"kernels {kernels} fail a small trial on {device}{case} in {str(dtype).removeprefix('torch.')} ({why}): "
        f"torch computes {what} instead, more slowly. pytest -m gpu {tests} tells more; model.kernels: {kernels} "
        f"insists on them.",
        stacklevel=3,
    )
    return why


def _alone(compute: Compute, kernels: Kernels, device: torch.device) -> list[Tensor]:
    """In a thread of its own, into which nothing of the surrounding call reaches: it may be evaluation, under autocast,
    or a block that is checkpointed, which keeps a list of what it computes."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute, kernels, device).result()

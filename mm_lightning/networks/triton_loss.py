"""Cross-entropy of logits and its derivative on a GPU, by Triton: logits are read twice, and written over once."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import IGNORE_INDEX
from mm_lightning.memory.kernels import Kernels
from mm_lightning.memory.kernels.self_test import compare
from mm_lightning.networks.torch_loss import errors_reference

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise UserError("kernels triton need the package triton: pip install triton, or choose torch") from error

COLUMNS = 4096
"""Logits of a token that one iteration of a kernel loads."""


@triton.jit
def _errors(logits, targets, losses, V: tl.constexpr, C: tl.constexpr, IGNORE: tl.constexpr, LEARNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute the loss, and the derivatives, of one token per program."""
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * V
    target = tl.load(targets + token)
    largest, total = float("-inf"), 0.0  # and the sum of exp(logit - largest)
    for first in range(0, V, C):
        at = first + tl.arange(0, C)
        x = tl.load(row + at, at < V, float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
        largest = larger
    scale = largest + tl.log(total)
    counts = target != IGNORE
    known = (target >= 0) & (target < V)
    target_logit = tl.load(row + target, known, float("nan")).to(tl.float32)
    tl.store(losses + token, tl.where(counts, scale - target_logit, 0.0))
    if LEARNS:
        for first in range(0, V, C):
            at = first + tl.arange(0, C)
            x = tl.load(row + at, at < V, float("-inf")).to(tl.float32)
            error = tl.exp(x - scale) - (at == target).to(tl.float32)
            tl.store(row + at, tl.where(counts, error, 0.0), at < V)


def errors(logits: Tensor, targets: Tensor, ignore: int, learns: bool = True) -> Tensor:
    """Compute the loss of each token, (N,) float32 in nats; with `learns`, overwrite the logits by its gradient.

    Args:
        logits: (N, V), contiguous, in float32, bfloat16 or float16.
        targets: (N,) int64.
        ignore: the target that is ignored. Any other outside 0 .. V - 1 makes the loss NaN.
        learns: whether to compute derivatives.
    """
    tokens, vocabulary = logits.shape
    losses = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    columns = min(COLUMNS, triton.next_power_of_2(vocabulary))
    with torch.cuda.device_of(logits):
        _errors[(tokens,)](
            logits, targets.contiguous(), losses, V=vocabulary, C=columns, IGNORE=ignore, LEARNS=learns, num_warps=8
        )
    return losses


@cache
def kernel_mismatch(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernel fails its self-test against torch on a device, with one warning; None if it passes."""

    def compute(kernels: Kernels, device: torch.device) -> list[Tensor]:
        draw = torch.Generator("cpu").manual_seed(0)
        logits = (3 * torch.randn(5, COLUMNS + 300, generator=draw)).to(dtype).to(device)
        targets = torch.tensor([0, 7, IGNORE_INDEX, 4200, len(logits[0]) - 1], device=device)
        if kernels == "torch":
            return [x.to(dtype).float() for x in errors_reference(logits, targets, torch.float32)]
        losses = errors(logits, targets, IGNORE_INDEX)
        return [losses.to(dtype).float().cpu(), logits.float().cpu()]

    return compare("triton", device, dtype, compute, "", "the loss", "tests/networks")

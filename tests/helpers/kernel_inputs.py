"""Inputs of equations (8) and (9), and how far the results of two kernels are apart."""

import torch
from torch import Tensor

from mm_lightning.memory.documents import Documents

TINY = {"vocab_size": 31, "layers": 2, "dim": 16, "heads": 2, "persistent_dim": 24}


def arguments(time: int, dim: int, gates: float) -> tuple[list[Tensor], list[Tensor], Documents]:
    """Of both functions, in float64; documents of all lengths, the first tokens of some next to each other."""
    torch.manual_seed(time)
    batch, heads = 2, 3
    starts = torch.rand(batch, time) < 0.15
    starts[0, time // 2 : time // 2 + 2] = True
    raw, values = torch.randn(2, batch, time, heads, dim, dtype=torch.float64)
    gate, decay = torch.randn(2, batch, time, heads, dtype=torch.float64) * gates
    beta = torch.rand(batch, time, heads, dtype=torch.float64) + 1
    gamma, alpha = torch.rand(2, heads, dtype=torch.float64) + 0.1
    keys = [raw, gate, -decay.abs(), beta]
    return keys, [values, gamma, alpha], Documents.from_starts(starts)


def results_and_gradients(function, inputs, documents, kernels, dtype=torch.float64) -> list[Tensor]:
    """Of a fixed random projection of the results."""
    exact = torch.promote_types(dtype, torch.float32)
    inputs = [x.to(dtype if x.dim() == 4 else exact).requires_grad_() for x in inputs]
    results = function(*inputs, documents, kernels)
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in results]
    total = sum((x.double() * w).sum() for x, w in zip(results, weights, strict=True))
    return [x.detach().double() for x in (*results, *torch.autograd.grad(total, inputs))]


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    errors = [(x - y).abs().max() / y.abs().max().clamp(min=1e-3) for x, y in zip(found, expected, strict=True)]
    return float(torch.stack(errors).max())  # NaN if any is, which Python's max may overlook

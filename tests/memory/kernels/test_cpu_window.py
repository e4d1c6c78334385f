"""Windowed reads, tile by tile, agree with the matrix written out, in values and gradients."""

import pytest
import torch

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels.cpu_window import TILE, windowed_read
from mm_lightning.memory.kernels.fused_read import _read_window
from mm_lightning.memory.retrieval import read_reference


@pytest.mark.parametrize("read", [windowed_read, lambda *x: torch.cat(_read_window(*x, 0.0), 2)], ids=["cpu", "any"])
@pytest.mark.parametrize(("time", "size"), [(1, 1), (TILE + 1, 1), (3 * TILE - 5, 2 * TILE + 3), (70, 20)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_equals_the_reference(read, time, size, groups):
    generator = torch.Generator().manual_seed(time)
    q, d_out = torch.randn(2, 2, 4, time, 6, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, 2, groups, time, 6, dtype=torch.float64, generator=generator)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    expected = read_reference(*(x.transpose(1, 2) for x in inputs), Span(0, size), Documents.whole(2, time), 0.7)
    found = read(*inputs, size, 0.7)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(x, inputs, d_out) for x in (found, expected.transpose(1, 2))]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_shorter_types():
    q, k, v = torch.randn(3, 1, 2, 2 * TILE, 8).bfloat16()
    found = windowed_read(q, k, v, 40, 1.0)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), windowed_read(q.float(), k.float(), v.float(), 40, 1.0), rtol=0.02, atol=0.02
    )

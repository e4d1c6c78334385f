"""A single token through a memory on a CPU: reads against the same in float64."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("numba")

import numpy as np

from mm_lightning.memory.kernels import numba_decode
from mm_lightning.memory.kernels.numba_support import flat


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def read(q, keys, values, first, end):
    scores, found = np.empty(256, flat(q).dtype), np.empty(q.numel(), flat(q).dtype)
    numba_decode.read_pairs(flat(q), flat(keys), flat(values), first, end, scores, found)
    return torch.from_numpy(found)


@pytest.mark.parametrize(("first", "end"), [(0, 0), (0, 1), (5, 5), (2, 5), (0, 256), (1, 258), (3, 1030)])
@pytest.mark.parametrize("beta", [1e-3, 1.0, 30.0, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_read_is_a_softmax(dtype, beta, first, end):
    keys, values = F.normalize(drawn(1030, 21), dim=-1).to(dtype), drawn(1030, 21, seed=1).to(dtype)
    q = (beta * F.normalize(drawn(21, seed=2), dim=-1)).to(dtype)
    scores = keys[first:end].double() @ q.double()
    expected = scores.softmax(0) @ values[first:end].double()
    # A score's own rounding is what tells float32 from float64 at large bandwidths.
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert (read(q, keys, values, first, end) - expected).abs().max() <= tolerance * max(1, beta)


def test_a_read_does_not_hide_what_is_not_a_number():
    keys, values = drawn(300, 8).float(), drawn(300, 8, seed=1).float()
    keys[270, 3] = float("nan")
    assert read(drawn(8, seed=2).float(), keys, values, 0, 300).isnan().all()

"""A single token on a CPU: products, norms and reads against the same in float64."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("numba")

import weakref
from concurrent.futures import Future
from threading import Event, Semaphore

import numpy as np

from mm_lightning.memory import native_step, native_token
from mm_lightning.memory.compiled import flat, kinds
from mm_lightning.memory.layers import Linear, Norm
from mm_lightning.memory.native_token import product, rms_norm

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3}


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 13), (96, 64), (1025, 1024)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_product_is_that_of_float64(dtype, rows, columns, threads):
    weight, x = drawn(rows, columns).to(dtype), drawn(1, 1, columns, seed=1).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = product(x, weight)
    finally:
        torch.set_num_threads(before)
    expected = x.double() @ weight.double().T
    assert found.dtype == dtype
    assert found.shape == (1, 1, rows)
    assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("size", [1e-4, 1, 1e6])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_norm_is_that_of_float64(dtype, size):
    x, weight = (size * drawn(1, 1, 37)).to(dtype), drawn(37, seed=1).to(dtype)
    expected = F.rms_norm(x.double(), (37,), weight.double(), 1e-6)
    found = rms_norm(x, weight, 1e-6)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_layers_take_single_tokens_through_them_without_gradients_only():
    linear, norm = Linear(16, 24, 1.0, bias=True).requires_grad_(True), Norm(16, 1e-6)
    x = drawn(1, 1, 16).float().requires_grad_(True)
    linear.bias.data.fill_(3.0)
    trained = linear(norm(x))
    trained.sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert torch.allclose(linear(norm(x)), trained, atol=1e-5)
        for layer in (linear, norm):
            layer.kernels = "torch"
        assert torch.equal(linear(norm(x)), trained)


class Halved(torch.Tensor):
    """A weight without memory of its own, as quantised ones are: the layer sees twice what is stored."""

    @staticmethod
    def __new__(cls, stored):
        return torch.Tensor._make_wrapper_subclass(cls, stored.shape, dtype=stored.dtype)

    def __init__(self, stored):
        self.stored = stored

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            return F.linear(args[0], 2 * args[1].stored)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        assert function is torch.ops.aten.detach.default
        return cls(args[0].stored)


def test_weights_that_are_not_where_they_seem_are_left_to_torch():
    linear, x = Linear(16, 24, 1.0), drawn(1, 1, 16).float()
    linear.weight = torch.nn.Parameter(Halved(linear.weight.detach()), requires_grad=False)
    with torch.no_grad():
        assert torch.equal(linear(x), F.linear(x, 2 * linear.weight.stored))


@pytest.mark.parametrize("layer", [Linear(16, 24, 1.0), Norm(16, 1e-6)])
@pytest.mark.parametrize("size", [1, 15, 17])
def test_a_token_of_another_size_is_refused(layer, size):
    with torch.no_grad(), pytest.raises(RuntimeError, match="shape"):
        layer(torch.ones(1, 1, size))


def test_another_default_device_does_not_matter():
    kinds.cache_clear()
    linear, x = Linear(16, 24, 1.0), torch.ones(1, 1, 16)
    with torch.no_grad(), torch.device("meta"):
        assert linear(x).shape == (1, 1, 24)


def test_memory_is_held_until_threads_are_done_with_it(monkeypatch):
    """Also if what waits for them is interrupted, as by Ctrl-C."""
    begun, go_on, done, held = Event(), Event(), Semaphore(0), []
    x, weight = torch.ones(1, 1, 16), torch.ones(24, 16)
    tensors = [weakref.ref(x), weakref.ref(weight)]

    def kernel(*arguments):
        begun.set()
        go_on.wait(10)
        held.append([y() is not None for y in tensors])
        done.release()

    def interrupted(future):
        begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(native_token, "SHARE", 1)
    monkeypatch.setattr(native_token, "_product", kernel)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with monkeypatch.context() as patched:
        patched.setattr(Future, "result", interrupted)
        try:
            product(x, weight)
        except KeyboardInterrupt:
            del x, weight
    go_on.set()
    assert all(done.acquire(timeout=10) for _ in range(2))
    assert held == [[True, True], [True, True]]


def read(q, keys, values, first, end):
    scores, found = np.empty(256, flat(q).dtype), np.empty(q.numel(), flat(q).dtype)
    native_step._read(flat(q), flat(keys), flat(values), first, end, scores, found)
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


def test_rows_are_read_as_a_step_reads_them():
    q, keys, values = drawn(2, 3, 9), drawn(2, 3, 20, 9, seed=1), drawn(2, 3, 20, 9, seed=2)
    weights = torch.einsum("bhd,bhnd->bhn", q, keys[:, :, :17]).softmax(-1)
    expected = torch.einsum("bhn,bhnd->bhd", weights, values[:, :, :17])
    assert torch.allclose(native_step.read(q, keys, values, 17), expected, atol=1e-13)


def test_a_read_does_not_hide_what_is_not_a_number():
    keys, values = drawn(300, 8).float(), drawn(300, 8, seed=1).float()
    keys[270, 3] = float("nan")
    assert read(drawn(8, seed=2).float(), keys, values, 0, 300).isnan().all()

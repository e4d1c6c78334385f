"""Kernels for a GPU that fail there are not what `auto` means."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mm_lightning.memory.kernels import dispatch, self_test
from mm_lightning.memory.kernels.dispatch import dispatch_kernels, gated_keys
from mm_lightning.networks import base

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh():
    dispatch.kernel_mismatch.cache_clear()
    yield
    dispatch.kernel_mismatch.cache_clear()


@pytest.mark.parametrize("dtype", self_test.TOLERANCE)
def test_kernels_that_agree_are_trusted(dtype):
    assert dispatch.kernel_mismatch("torch", CPU, dtype, 8) is None


def test_numba_kernels_agree():
    pytest.importorskip("numba")
    with torch.inference_mode():
        assert dispatch.kernel_mismatch("numba", CPU, torch.float32, 24) is None


def test_kernels_that_fail_are_not():
    with pytest.warns(UserWarning, match="triton fail their self-test on cpu with head dimension 8 in float32"):
        assert "UserError" in dispatch.kernel_mismatch("triton", CPU, torch.float32, 8)


def test_kernels_that_differ_are_not(monkeypatch):
    def wrong(raw, gate, decay, beta, documents, kernels):
        q, k = gated_keys(raw, gate, decay, beta, documents, "torch")
        return (q * 1.01, k) if kernels == "numba" else (q, k)

    monkeypatch.setattr(dispatch, "gated_keys", wrong)
    monkeypatch.setattr(dispatch, "ahead_values", lambda v, *rest: v * 1)
    monkeypatch.setattr(dispatch.torch.autograd, "grad", lambda outputs, inputs, down: ())
    with pytest.warns(UserWarning, match=r"differ from torch's by 1\.\d%"):
        assert dispatch.kernel_mismatch("numba", CPU, torch.float32, 8)


def test_nan_is_not_overlooked(monkeypatch):
    monkeypatch.setattr(dispatch, "ahead_values", lambda v, *rest: v * (torch.nan if rest[-1] == "numba" else 1))
    monkeypatch.setattr(dispatch, "gated_keys", lambda raw, *rest: (raw * 1, raw * 2))
    monkeypatch.setattr(dispatch.torch.autograd, "grad", lambda outputs, inputs, down: ())
    with pytest.warns(UserWarning, match="differ from torch's by nan%"):
        assert dispatch.kernel_mismatch("numba", CPU, torch.float32, 8)


def test_a_self_test_in_the_middle_of_something_else():
    """A checkpointed block asks first, which must not be computed again then; nor does a default device matter."""
    x = torch.ones(3, requires_grad=True)
    found = []

    def block(x):
        y = x.exp()
        with torch.device("meta"):
            found.append(dispatch.kernel_mismatch("torch", CPU, torch.float32, 8))
        return y.sin()

    checkpoint(block, x, use_reentrant=False).sum().backward()
    assert found == [None, None]
    torch.testing.assert_close(x.grad, x.exp().cos() * x.exp())


def test_what_a_self_test_computes_is_not_kept_for_a_block(monkeypatch):
    """Selective checkpointing takes what it kept in the order in which it was computed."""
    monkeypatch.setattr(dispatch, "_self_test_case", lambda *_: [torch.ones(2, 2) @ torch.ones(2, 2)])
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(3, 3)

    def block(x):
        dispatch.kernel_mismatch("torch", CPU, torch.float32, 8)
        return ((x @ weight).sin() @ weight).sin()

    found, expected = (torch.autograd.grad(y.sum(), x)[0] for y in (
        checkpoint(block, x, use_reentrant=False, context_fn=base._keep_products), block(x)
    ))  # fmt: skip
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("why", "meant"), [(None, "triton"), ("off", "torch")])
def test_auto_asks_and_an_order_does_not(monkeypatch, why, meant):
    monkeypatch.setattr(dispatch, "resolve_kernels", lambda *arguments: "triton")
    monkeypatch.setattr(dispatch, "kernel_mismatch", lambda *arguments: why)
    assert dispatch_kernels("auto", CPU, torch.float32, 8) == meant
    assert dispatch_kernels("triton", CPU, torch.float32, 8) == "triton"

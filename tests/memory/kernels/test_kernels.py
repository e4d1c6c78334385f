"""Every form of equations (8) and (9) agrees with the readable one, in values and gradients."""

import pytest
import torch
from kernel_inputs import TINY, arguments, results_and_gradients, worst

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import resolve_kernels, set_kernels
from mm_lightning.memory.kernels.dispatch import _keys, _values
from mm_lightning.memory.keys import average_keys
from mm_lightning.memory.values import look_ahead_values
from mm_lightning.networks import V1, MemoryMosaicConfig, TransformerConfig

FAST = ["torch", "numba"]


@pytest.mark.parametrize("kernels", FAST)
@pytest.mark.parametrize(("time", "dim", "gates"), [(1, 4, 1), (17, 5, 1), (33, 8, 500), (70, 4, 0), (48, 6, 20)])
def test_all_forms_agree(kernels, time, dim, gates):
    keys, values, documents = arguments(time, dim, gates)
    for function, inputs in ((average_keys, keys), (look_ahead_values, values)):
        expected = results_and_gradients(function, inputs, documents, "reference")
        assert worst(results_and_gradients(function, inputs, documents, kernels), expected) < 1e-11


@pytest.mark.parametrize("kernels", FAST)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_shorter_types(kernels, dtype, bound):
    keys, values, documents = arguments(67, 8, 1)
    keys, values = ([x.to(dtype if x.dim() == 4 else torch.float32).double() for x in xs] for xs in (keys, values))
    for function, inputs in ((average_keys, keys), (look_ahead_values, values)):
        expected = results_and_gradients(function, inputs, documents, "reference")
        assert worst(results_and_gradients(function, inputs, documents, kernels, dtype), expected) < bound


def test_bfloat16_rounds_to_nearest_and_keeps_what_is_not_a_number():
    raw = torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.bfloat16)[:, None, None, None]
    found = look_ahead_values(raw, None, torch.tensor([1.00390625]), Documents.whole(3, 1), "numba")
    assert found.flatten()[0] == torch.tensor(1.00390625).bfloat16()
    assert found.isnan().flatten().tolist() == [False, True, True]


def test_inputs_of_any_layout_on_any_number_of_threads():
    keys, values, documents = arguments(40, 8, 1)
    wide = torch.randn(2, 40, 2, 3, 8, dtype=torch.float64)
    keys[0], values[0] = wide.unbind(2)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 8):
            torch.set_num_threads(count)
            for function, inputs in ((average_keys, keys), (look_ahead_values, values)):
                expected = results_and_gradients(function, inputs, documents, "reference")
                assert worst(results_and_gradients(function, inputs, documents, "numba"), expected) < 1e-11
    finally:
        torch.set_num_threads(threads)


def test_no_look_ahead_is_a_gamma_of_one():
    _, (raw, gamma, alpha), documents = arguments(20, 4, 1)
    expected = look_ahead_values(raw, torch.ones_like(gamma), alpha, documents, "reference")
    for kernels in ("reference", *FAST):
        torch.testing.assert_close(look_ahead_values(raw, None, alpha, documents, kernels), expected)


def test_operators_keep_their_promises():
    keys, (raw, *scalars), documents = arguments(9, 4, 1)
    torch.library.opcheck(_keys, (*keys, documents.starts))
    torch.library.opcheck(_values, (raw, *scalars, documents.starts))


@pytest.mark.parametrize("changes", [{}, V1 | {"dropout": 0.0, "persistent_slots": 5}, {"look_ahead": False}])
def test_networks_do_not_depend_on_the_kernels(changes):
    torch.manual_seed(0)
    network = MemoryMosaicConfig(**TINY, **changes).build().double()
    tokens = torch.randint(31, (2, 90))
    documents = Documents.from_starts(torch.rand(2, 90) < 0.1)
    found = {}
    for kernels in ("reference", *FAST):
        set_kernels(network, kernels)
        network.zero_grad()
        loss = network(tokens, documents, tokens, delays={"long": 7})
        loss.backward()
        found[kernels] = [loss.detach(), *(p.grad for p in network.parameters())]
    for kernels in FAST:
        torch.testing.assert_close(found[kernels], found["reference"], rtol=1e-9, atol=1e-12)


def test_a_transformer_has_a_reference_too():
    network = TransformerConfig(**TINY).build().double()
    tokens = torch.randint(31, (2, 40))
    expected = network(tokens)
    set_kernels(network, "reference")
    torch.testing.assert_close(network(tokens), expected)


def test_what_cannot_run_is_refused(monkeypatch):
    cpu = torch.device("cpu")
    assert resolve_kernels("auto", cpu) == "numba"
    assert resolve_kernels("auto", torch.device("meta")) == "torch"
    assert resolve_kernels("auto", cpu, torch.float16) == "torch"
    with pytest.raises(UserError, match="choose auto"):
        resolve_kernels("numba", torch.device("cuda"))
    with pytest.raises(UserError, match="dropout"):
        set_kernels(MemoryMosaicConfig(**TINY, dropout=0.1).build(), "reference")
    monkeypatch.setattr("mm_lightning.memory.kernels.find_spec", lambda name: None)
    resolve_kernels.cache_clear()
    assert resolve_kernels("auto", cpu) == "torch"
    with pytest.raises(UserError, match="pip install numba"):
        resolve_kernels("numba", cpu)
    resolve_kernels.cache_clear()


@pytest.mark.parametrize("kernels", ["reference", "torch"])
def test_queries_are_finite_in_float16_whatever_the_bandwidth(kernels):
    raw, log = torch.randn(1, 3, 2, 4).half(), torch.zeros(1, 3, 2)
    q, k = average_keys(raw, log, log, torch.tensor([65535.0**2, 3.0]), Documents.whole(1, 3), kernels)
    assert q.isfinite().all()
    assert torch.allclose(q[:, :, 0].float(), 65504 * k[:, :, 0].float(), rtol=1e-3)

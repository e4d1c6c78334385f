"""The kernels of a GPU agree with the references: on a GPU, and without one through Triton's interpreter."""

from pathlib import Path

import pytest
import torch
from kernel_inputs import TINY, arguments, results_and_gradients, worst
from on_a_gpu import DEVICE, no_gpu, on_either, through_the_interpreter

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import resolve_kernels, set_kernels
from mm_lightning.memory.kernels.dispatch import _keys, _values
from mm_lightning.memory.keys import average_keys
from mm_lightning.memory.values import look_ahead_values
from mm_lightning.networks import MemoryMosaicConfig

pytest.importorskip("triton")


@pytest.mark.slow
def test_all_of_them_through_the_interpreter():
    loss = Path(__file__).parents[2] / "networks" / "test_triton_loss.py"
    through_the_interpreter([__file__, str(loss)], 9 + 6)


def without_autograd(function, inputs, documents, dtype):
    """What `results_and_gradients` finds, by the functions behind the operators; on a CPU those would be others."""
    from mm_lightning.memory.kernels import triton_launch

    raw, *scalars = (x.to(DEVICE, dtype if x.dim() == 4 else torch.float32) for x in inputs)
    starts = documents.starts.to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    grads = [
        torch.randn(raw.shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        for _ in range(2 if function is average_keys else 1)
    ]
    if function is average_keys:
        q, k, kept = triton_launch.keys(raw, *scalars, starts)
        found = q, k, *triton_launch.keys_backward(raw, scalars[-1], starts, k, kept, *grads)
    else:
        v, norm = triton_launch.values(raw, *scalars, starts)
        found = v, *triton_launch.values_backward(raw, *scalars, starts, v, norm, *grads)
    return [x.double().cpu() for x in found]


def of_one_row(time, dim, gates, dtype=torch.float32):
    """Arguments of both functions as they are after rounding; two heads are enough."""
    keys, values, documents = arguments(time, dim, gates)
    keys, values = ([x.to(dtype if x.dim() == 4 else torch.float32).double() for x in xs] for xs in (keys, values))
    keys = [x[:1, :, :2] for x in keys]
    values = [values[0][:1, :, :2], *(x[:2] for x in values[1:])]
    return keys, values, Documents.from_starts(documents.starts[:1])


@on_either
@pytest.mark.parametrize(
    ("time", "dim", "gates", "dtype", "bound"),
    [
        (1, 4, 1, torch.float32, 5e-4),  # the gates' derivatives are 0
        (33, 130, 1, torch.float32, 2e-6),
        (50, 20, 20, torch.float32, 1e-5),
        (40, 5, 1, torch.bfloat16, 3e-2),
        (33, 8, 1, torch.float16, 4e-3),
    ],
)
def test_kernels_agree_with_the_reference(time, dim, gates, dtype, bound):
    keys, values, documents = of_one_row(time, dim, gates, dtype)
    for function, inputs in ((average_keys, keys), (look_ahead_values, values)):
        expected = results_and_gradients(function, inputs, documents, "reference")
        assert worst(without_autograd(function, inputs, documents, dtype), expected) < bound


@on_either
@pytest.mark.parametrize("chance", [0.0, 0.1])
def test_extreme_gates_agree(chance):
    """Gates of up to 500 either way and log lambda down to -5000, without and with documents."""
    keys, _, documents = of_one_row(70, 8, 1)
    keys[1], keys[2] = keys[1].clamp(-1, 1) * 500, keys[2].clamp(min=-1) * 5000
    keys[2][:, 20:40] = 0  # everything stays
    documents = documents if chance else Documents.whole(1, 70)
    expected = results_and_gradients(average_keys, keys, documents, "reference")
    found = without_autograd(average_keys, keys, documents, torch.float32)
    assert all(x.isfinite().all() for x in found)
    assert worst(found[:3], expected[:3]) < 1e-5
    # Where one weight is all there is, gates have next to no gradient: the others set the scale.
    for x, y in zip(found[3:5], expected[3:5], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@on_either
def test_sums_over_many_chunks_agree(monkeypatch):
    """More chunks than one step of the sums over them takes."""
    monkeypatch.setattr("mm_lightning.memory.kernels.triton_launch.CHUNKS", 16)
    monkeypatch.setattr("mm_lightning.memory.kernels.triton_launch.CHUNK", 16)
    generator = torch.Generator().manual_seed(0)
    time = 16 * 17 + 5
    raw = torch.randn(1, time, 1, 3, generator=generator).double()
    gate, decay, beta = torch.rand(3, 1, time, 1, generator=generator).double()
    starts = torch.zeros(1, time, dtype=torch.bool)
    starts[0, 150:160] = True
    inputs, documents = [raw, gate, -decay / 100, beta], Documents.from_starts(starts)
    inputs[2][:, 100] = -300  # all that came before is gone
    expected = results_and_gradients(average_keys, inputs, documents, "torch")
    assert worst(without_autograd(average_keys, inputs, documents, torch.float32), expected) < 1e-5


@on_either
def test_layouts_agree():
    """Slices of a wider tensor, and gradients that do not lie in rows."""
    from mm_lightning.memory.kernels import triton_launch

    keys, _, documents = of_one_row(40, 8, 1)
    raw, gate, decay, beta = (x.float().to(DEVICE) for x in keys)
    starts = documents.starts.to(DEVICE)
    wide = torch.stack([raw, raw + 1], 2).flatten(2, 3)[:, :, :2]
    turned = raw.transpose(1, 3).contiguous().transpose(1, 3)
    q, k, kept = triton_launch.keys(wide, gate, decay, beta, starts)
    expected = triton_launch.keys(raw, gate, decay, beta, starts)
    torch.testing.assert_close((q, k, kept), expected)
    found = triton_launch.keys_backward(wide, beta, starts, k, kept, turned, wide)
    torch.testing.assert_close(found, triton_launch.keys_backward(raw, beta, starts, k, kept, raw, raw))


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("dim", [16, 96, 128, 256])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_operators_on_a_gpu(dim, dtype, bound):
    """Through autograd, at sizes of use."""
    keys, values, _ = arguments(2500, dim, 1)
    keys, values = ([x.to(dtype if x.dim() == 4 else torch.float32).double() for x in xs] for xs in (keys, values))
    documents = Documents.from_starts(torch.rand(2, 2500, generator=torch.Generator().manual_seed(0)) < 0.01)
    for function, inputs in ((average_keys, keys), (look_ahead_values, values)):
        expected = results_and_gradients(function, inputs, documents, "torch")
        found = without_autograd(function, inputs, documents, dtype)
        assert worst(found, expected) < bound
        generator = torch.Generator().manual_seed(0)
        inputs = [x.to("cuda", dtype if x.dim() == 4 else torch.float32).requires_grad_() for x in inputs]
        results = function(*inputs, documents.to("cuda"), "triton")
        results = results if isinstance(results, tuple) else (results,)
        grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to("cuda", dtype) for x in results]
        again = [*results, *torch.autograd.grad(results, inputs, grads)]
        assert all(torch.equal(x.detach().double().cpu(), y) for x, y in zip(again, found, strict=True))


@pytest.mark.gpu
@no_gpu
def test_operators_keep_their_promises_on_a_gpu():
    keys, (raw, *scalars), documents = arguments(70, 8, 1)
    starts = documents.starts.cuda()
    torch.library.opcheck(_keys, (*(x.float().cuda() for x in keys), starts))
    torch.library.opcheck(_values, (raw.float().cuda(), *(x.float().cuda() for x in scalars), starts))


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_networks_do_not_depend_on_the_kernels_of_a_gpu(compiled):
    torch.manual_seed(0)
    network = MemoryMosaicConfig(**TINY).build().cuda()
    tokens = torch.randint(31, (2, 90)).cuda()
    documents = Documents.from_starts(torch.rand(2, 90).cuda() < 0.1)
    found = []
    for kernels in ("torch", "triton"):
        set_kernels(network, kernels)
        run = torch.compile(network) if compiled and kernels == "triton" else network
        loss = run(tokens, documents, tokens)
        found.append([loss, *torch.autograd.grad(loss, list(network.parameters()))])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_where_they_run(monkeypatch):
    cuda = torch.device("cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert resolve_kernels("auto", cuda, dtype, 256) == resolve_kernels("triton", cuda, dtype, 256) == "triton"
    assert resolve_kernels("auto", cuda, torch.float64) == resolve_kernels("auto", cuda, torch.bfloat16, 257) == "torch"
    with pytest.raises(UserError, match=r"float32, float16 and bfloat16 on cuda, got float32 on cpu: choose auto"):
        resolve_kernels("triton", torch.device("cpu"))
    with pytest.raises(UserError, match="got float64 on cuda"):
        resolve_kernels("triton", cuda, torch.float64)
    with pytest.raises(UserError, match="head dimensions up to 256, got float32 on cuda with 300"):
        resolve_kernels("triton", cuda, dim=300)
    monkeypatch.setattr("mm_lightning.memory.kernels.find_spec", lambda name: None)
    resolve_kernels.cache_clear()
    assert resolve_kernels("auto", cuda) == "torch"
    with pytest.raises(UserError, match="pip install triton"):
        resolve_kernels("triton", cuda)
    resolve_kernels.cache_clear()


TENSORS = "raw", "qs", "ks", "d_qs", "d_ks", "d_raw", "vs", "d_vs"
POINTERS = {
    "starts": "*u8",
    **dict.fromkeys(("gate", "decay", "beta", "ends", "freshes", "fades", "norms", "gamma", "alpha"), "*fp32"),
    **dict.fromkeys(("d_gate", "d_decay", "d_beta", "d_gamma", "d_alpha"), "*fp32"),
    **dict.fromkeys(("scales_and_fades", "scales", "left"), "*fp64"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "dim"),
    [(80, "bf16", 128), (90, "bf16", 128), (90, "bf16", 256), (90, "fp16", 16), (90, "fp32", 64)],
)
def test_kernels_compile_without_a_gpu(capability, dtype, dim):
    """Down to machine code, which asks for more than the interpreter does."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from mm_lightning.memory.kernels import triton_kernels, triton_launch

    pointers = POINTERS | dict.fromkeys(TENSORS, f"*{dtype}")
    names = [f"{part}_{step}" for part in ("keys", "back") for step in ("ends", "carry", "results")]
    for name in [*names, "values_results", "values_back"]:
        kernel, carries = getattr(triton_kernels, name), name.endswith("carry")
        chosen = {
            "C": triton_launch.CHUNK,
            "N": triton_launch.CHUNKS,
            "D": triton_launch.COLUMNS if carries else dim,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32",
        }
        constants = {n: chosen[n] for n in kernel.arg_names if n in chosen}
        types = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in pointers}
        source = ASTSource(kernel, types, constants, aligned)
        warps = 8 if carries or dim > 128 else 4
        code = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert code.asm["cubin"]

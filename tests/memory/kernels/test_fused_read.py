"""Fused reads agree with the matrix of equation (4) written out, in values and gradients."""

import pytest
import torch

from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.kernels import cpu_window
from mm_lightning.memory.kernels import fused_read as kernels
from mm_lightning.memory.kernels.fused_read import fused_read
from mm_lightning.memory.retrieval import read_reference

SPANS = {
    "attention": Span(0),
    "contextual": Span(1),
    "long": Span(64),
    "short": Span(1, 255),
    "narrow": Span(1, 3),
    "single": Span(2, 1),
    "wide": Span(5, 300),
}


def inputs(time, heads=2, groups=2, dtype=torch.float64, batch=2, dim=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, time, n, dim) for n in (heads, groups, groups)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def random_documents(time, chance, batch=2):
    return Documents.from_starts(torch.rand(batch, time, generator=torch.Generator().manual_seed(1)) < chance)


def values_and_gradients(function, arguments, *rest):
    out = function(*arguments, *rest)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [out, *torch.autograd.grad((out.double() * weights.to(out.device)).sum(), arguments, materialize_grads=True)]


def error(found, expected):
    errors = [(a.double() - b.double()).abs().max() for a, b in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()  # NaN if any is


@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 255, 256, 257, 530])
def test_fused_reads_agree_with_the_reference(span, time):
    for chance in (0.0, 0.01, 0.5):
        arguments, documents = inputs(time), random_documents(time, chance)
        expected = values_and_gradients(read_reference, arguments, span, documents)
        assert error(values_and_gradients(fused_read, arguments, span, documents), expected) < 1e-12


@pytest.mark.parametrize("span", [SPANS["attention"], SPANS["short"]], ids=["attention", "short"])
def test_grouped_queries(span):
    arguments, documents = inputs(300, heads=4, groups=2), random_documents(300, 0.01)
    expected = values_and_gradients(read_reference, arguments, span, documents)
    assert error(values_and_gradients(fused_read, arguments, span, documents), expected) < 1e-12


@pytest.mark.parametrize("span", [SPANS["long"], SPANS["short"]], ids=["long", "short"])
def test_bf16_is_within_its_rounding(span):
    arguments, documents = inputs(300, dtype=torch.bfloat16), random_documents(300, 0.01)
    exact = [x.detach().double().requires_grad_() for x in arguments]
    expected = values_and_gradients(read_reference, exact, span, documents)
    found = values_and_gradients(fused_read, arguments, span, documents)
    assert found[0].dtype == torch.bfloat16
    assert (found[0].double() - expected[0]).abs().max() < 2e-2
    assert error(found, expected) < 0.15


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("span", [Span(3), Span(1, 255), Span(0)], ids=["long", "short", "attention"])
@pytest.mark.parametrize("chance", [0.0, 0.02, 0.5])
def test_the_stream_handed_to_variable_length_kernels(span, chance, heads, monkeypatch):
    """The kernel itself needs a GPU; here a slow one with its documented meaning stands in for it."""

    def varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size):
        out = torch.zeros_like(q)
        assert k.shape[1:] == q.shape[1:]  # the oldest kernel knows no groups
        assert (cu_q is cu_k) == (span.delay == 0)
        assert max_q >= int(cu_q.diff().max())
        assert max_k >= int(cu_k.diff().max())
        for n in range(len(cu_q) - 1):
            rows, columns = range(int(cu_q[n]), int(cu_q[n + 1])), range(int(cu_k[n]), int(cu_k[n + 1]))
            for i, row in enumerate(rows):
                end = i + len(columns) - len(rows)  # aligned at the bottom right, (left, 0)
                seen = [c for j, c in enumerate(columns) if end - (window_size[0] % 10**6) <= j <= end]
                if seen:
                    scores = torch.einsum("hd,chd->hc", q[row], k[seen]) * scale
                    out[row] = torch.einsum("hc,chd->hd", scores.softmax(-1), v[seen])
        return out

    arguments, documents = inputs(80, heads), random_documents(80, chance)
    expected = read_reference(*arguments, span, documents)
    monkeypatch.setattr(kernels, "_varlen_attn", lambda: varlen_attn)
    monkeypatch.setattr(kernels, "attention_backend", lambda *_: kernels.VARLEN)
    with torch.no_grad():
        assert (fused_read(*arguments, span, documents) - expected).abs().max() < 1e-12


def test_rows_that_are_read_have_gradients_without_sums():
    """On a GPU sums by number are atomic, which is slow in 16 bits and has an order of its own each time."""
    x = torch.randn(9, 2, 3, dtype=torch.float64, requires_grad=True)
    out = kernels._Rows.apply(x, torch.tensor([0, 1, 4, 8]))
    assert torch.equal(out, x[[0, 1, 4, 8]])
    down = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, x, down)
    assert torch.equal(grad[[0, 1, 4, 8]], down)
    assert (grad[[2, 3, 5, 6, 7]] == 0).all()


def test_where_variable_length_kernels_run(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(kernels, "_varlen_attn", lambda: len)
    monkeypatch.setattr(kernels, "_capability", lambda device: (9, 0))
    for dim, dtype in ((8, torch.bfloat16), (96, torch.float16), (256, torch.bfloat16)):
        assert kernels.attention_backend(cuda, dtype, dim) == kernels.VARLEN
        assert kernels.attention_backend(torch.device("cpu"), dtype, dim) == kernels.SPLIT
    for dim, dtype in ((20, torch.bfloat16), (264, torch.bfloat16), (64, torch.float32)):
        assert kernels.attention_backend(cuda, dtype, dim) == kernels.SPLIT
    monkeypatch.setattr(kernels, "_capability", lambda device: (7, 5))
    assert kernels.attention_backend(cuda, torch.float16, 64) == kernels.SPLIT


def test_nothing_to_read_still_gives_every_input_a_gradient():
    arguments = inputs(20)
    out = fused_read(*arguments, Span(64), Documents.whole(2, 20))
    assert (out == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), arguments))


def test_training_after_inference_mode():
    """What is kept from one read to the next must not be an inference tensor."""
    cpu_window.band_mask.cache_clear()
    span, documents = Span(1, 20), Documents.whole(2, 200)
    with torch.inference_mode():
        fused_read(*inputs(200), span, documents)
    arguments = inputs(200)
    found, expected = (
        torch.autograd.grad(f(*arguments, span, documents).sum(), arguments) for f in (fused_read, read_reference)
    )
    assert all(torch.allclose(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("span", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("chance", [0.0, 0.01, 0.5])
def test_flash_kernels_on_a_gpu(span, chance):
    arguments = [x.detach().cuda().requires_grad_() for x in inputs(1000, dtype=torch.bfloat16, dim=64)]
    documents = random_documents(1000, chance)
    exact = [x.detach().cpu().double().requires_grad_() for x in arguments]
    expected = values_and_gradients(read_reference, exact, span, documents)
    found = values_and_gradients(fused_read, arguments, span, documents.to("cuda"))
    for a, b in zip(found, expected, strict=True):
        assert (a.double().cpu() - b).norm() <= 2e-2 * b.norm()

"""The loss of logits by a kernel for a GPU agrees with that of torch; without a GPU, test_triton.py interprets it."""

import pytest
import torch
from on_a_gpu import DEVICE, no_gpu, on_either
from torch.nn import functional as F

from mm_lightning.networks import loss
from mm_lightning.networks.loss import linear_cross_entropy
from mm_lightning.networks.torch_loss import errors_reference

pytest.importorskip("triton")
from mm_lightning.networks import triton_loss


def arguments(vocabulary, dtype, ignored=0.3):
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(9, vocabulary, generator=generator)).to(dtype)
    targets = torch.randint(vocabulary, (9,), generator=generator)
    targets[:2] = torch.tensor([0, vocabulary - 1])
    return logits, targets.masked_fill(torch.rand(9, generator=generator) < ignored, -100)


@on_either
@pytest.mark.parametrize(
    ("vocabulary", "dtype", "bound"),
    [
        (1, torch.float32, 1e-6),
        (51, torch.float32, 1e-6),
        (700, torch.bfloat16, 8e-3),
        (700, torch.float16, 5e-4),
    ],
)
def test_errors_agree_with_torch(monkeypatch, vocabulary, dtype, bound):
    monkeypatch.setattr(triton_loss, "COLUMNS", 256)
    logits, targets = arguments(vocabulary, dtype)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, ignore_index=-100, reduction="none")
    expected.sum().backward()
    found = logits.to(DEVICE)
    losses = triton_loss.errors(found, targets.to(DEVICE), -100)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.cpu().double(), expected.detach(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(found.cpu().double(), exact.grad, rtol=bound, atol=bound * 1e-2)


@on_either
def test_without_derivatives_logits_stay_and_losses_agree():
    logits, targets = arguments(300, torch.float32)
    found = logits.to(DEVICE)
    losses = triton_loss.errors(found, targets.to(DEVICE), -100, learns=False)
    assert torch.equal(found.cpu(), logits)
    torch.testing.assert_close(losses.cpu(), errors_reference(logits, targets, torch.float32)[0])


@on_either
def test_what_is_no_target_is_not_a_number_where_others_agree():
    logits, targets = arguments(300, torch.float32, ignored=0)
    expected = errors_reference(logits.clone(), targets, torch.float32)[0]
    targets[3], targets[4] = 300, -1
    losses = triton_loss.errors(logits.to(DEVICE), targets.to(DEVICE), -100).cpu()
    assert losses.isnan().nonzero().flatten().tolist() == [3, 4]
    torch.testing.assert_close(losses[5:], expected[5:])


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_a_loss_on_a_gpu(monkeypatch, kernels):
    monkeypatch.setattr(loss, "LOGITS", 300 * 1000)
    torch.manual_seed(0)
    x = torch.randn(1000, 64, device="cuda").requires_grad_()
    weight = (torch.randn(1000, 64, device="cuda") / 8).requires_grad_()
    targets = torch.randint(1000, (1000,), device="cuda")
    results = []
    for chosen in ("torch", kernels):
        with torch.autocast("cuda", torch.bfloat16):
            found = linear_cross_entropy(x, weight, targets, chosen)
        results.append([found, *torch.autograd.grad(found, [x, weight])])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() < 1e-2 * b.norm()
    assert triton_loss.kernel_mismatch(x.device, torch.bfloat16) is None


def test_a_kernel_that_fails_is_not_trusted():
    triton_loss.kernel_mismatch.cache_clear()
    message = r"fail their self-test on meta in bfloat16 .*: torch computes the loss instead.*-m gpu tests/networks"
    with pytest.warns(UserWarning, match=message):
        assert triton_loss.kernel_mismatch(torch.device("meta"), torch.bfloat16)
    triton_loss.kernel_mismatch.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (90, "bf16"), (90, "fp32")])
def test_the_kernel_compiles_without_a_gpu(capability, dtype):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    types = {"logits": f"*{dtype}", "targets": "*i64", "losses": "*fp32"}
    constants = {"V": 128256, "C": triton_loss.COLUMNS, "IGNORE": -100, "LEARNS": True}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    source = ASTSource(triton_loss._errors, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
    code = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert code.asm["cubin"]
    assert ".local" not in code.asm["ptx"]  # nothing is spilled

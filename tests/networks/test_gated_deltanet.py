"""Gated DeltaNet: the paper's recurrence, its chunked form, the short convolution, and what its state costs."""

import pytest
import torch
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.kernels import set_kernels
from mm_lightning.networks import GatedDeltaNetConfig
from mm_lightning.networks.cost import forward_flops_per_token, module_costs
from mm_lightning.networks.gated_deltanet import delta_rule, delta_rule_reference, fla_delta_rule
from mm_lightning.networks.short_convolution import ShortConvolution

SMALL = {"vocab_size": 40, "layers": 4, "dim": 24, "heads": 3, "persistent_dim": 40}


def inputs(batch, time, heads=2, dim=5, value_dim=7, device="cpu"):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(normal(batch, time, heads, dim), dim=-1) for _ in range(2))
    v, log_alpha = normal(batch, time, heads, value_dim), -normal(batch, time, heads).exp()
    beta, state = normal(batch, time, heads).sigmoid(), normal(batch, heads, dim, value_dim)
    return [x.to(device).requires_grad_() for x in (q, k, v, log_alpha, beta, state)]


def test_the_reference_is_equation_10_of_the_paper():
    q, k, v, log_alpha, beta, _ = inputs(1, 6, heads=1)
    answers, last = delta_rule_reference(q, k, v, log_alpha, beta, Documents.whole(1, 6), q.new_zeros(1, 1, 5, 7))
    S = torch.zeros(7, 5, dtype=torch.float64)
    for t in range(6):
        kt, vt, b = k[0, t, 0], v[0, t, 0], beta[0, t, 0]
        S = S @ (log_alpha[0, t, 0].exp() * (torch.eye(5) - b * torch.outer(kt, kt))) + b * torch.outer(vt, kt)
        torch.testing.assert_close(answers[0, t, 0], S @ q[0, t, 0])
    torch.testing.assert_close(last[0, 0], S.T)


@pytest.mark.parametrize("time", [1, 7, 64, 150])
@pytest.mark.parametrize("begin", [0, 30])
def test_chunks_are_the_recurrence(time, begin):
    """Values and gradients, where documents end and begin anywhere, and where a chunk continues a state."""
    *tensors, state = inputs(2, time)
    starts = torch.rand(2, time, generator=torch.Generator().manual_seed(1)) < 0.05
    documents = Documents.from_starts(starts)
    if begin:
        documents = Documents.following(begin, torch.tensor([3, 20]), 20, time, starts)
    expected = delta_rule_reference(*tensors, documents, state)
    actual = delta_rule(*tensors, documents, state)
    weights = [torch.randn(x.shape, dtype=torch.float64) for x in expected]
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)

    def gradients(results):
        total = sum((w * x).sum() for w, x in zip(weights, results, strict=True))
        return torch.autograd.grad(total, [*tensors, state], allow_unused=True)

    for x, y in zip(gradients(actual), gradients(expected), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


def test_the_convolution_is_that_of_torch_within_each_document():
    convolution, x = ShortConvolution(6, 4).double(), torch.randn(1, 12, 6, dtype=torch.float64)
    documents = Documents.from_starts(torch.tensor([[t in (0, 5, 7) for t in range(12)]]))
    parts = [
        F.conv1d(F.pad(part.mT, (3, 0)), convolution.weight.flip(1)[:, None], groups=6).mT
        for part in x.split([5, 2, 5], 1)
    ]
    torch.testing.assert_close(convolution(x, documents), torch.cat(parts, 1))


def test_the_network_is_the_same_by_reference():
    torch.manual_seed(0)
    network = GatedDeltaNetConfig(**SMALL, attention_every=4).build().double()
    tokens, documents = torch.randint(40, (2, 90)), Documents.from_starts(torch.rand(2, 90) < 0.05)
    fast = network(tokens, documents)
    set_kernels(network, "reference")
    torch.testing.assert_close(network(tokens, documents), fast, rtol=1e-9, atol=1e-9)


def test_its_state_does_not_grow():
    network = GatedDeltaNetConfig(**SMALL).build()
    state = network.new_state()
    with torch.inference_mode():
        sizes = []
        for time in (70, 1, 300):
            network(torch.zeros(1, time, dtype=torch.int64), state=state)
            sizes.append(sum(x.numel() for x in state.tensors().values()))
    heads, (key, value), layers = 3, (6, 12), 4
    assert sizes == [layers * heads * (key * value + 3 * (2 * key + value)) + 2] * 3


def test_its_cost_by_hand():
    config = GatedDeltaNetConfig(**SMALL, attention_every=4)
    costs = {part.name: part for part in module_costs(config)}
    channels = 3 * 6 + 3 * 6 + 3 * 12
    matrices = 24 * (channels + 36 + 3 + 3) + channels * 4 + 36 * 24
    assert costs["delta memory"].active == 3 * matrices
    assert costs["delta memory"].parameters == 3 * (matrices + 12 + 2 * 3)
    assert costs["attention"].active == 4 * 24 * 24
    assert sum(part.parameters for part in costs.values()) == sum(p.numel() for p in config.build().parameters())
    longer = forward_flops_per_token(config, 2000) - forward_flops_per_token(config, 1000)
    assert longer == 2 * 1000 * 24  # the one attention alone
    assert (
        costs["delta memory"].forward_flops(1)
        < costs["delta memory"].forward_flops(1000)
        == 2 * 3 * (matrices + 3 * 6 * 12 * 3)
    )


def test_where_attention_cannot_be():
    with pytest.raises(UserError, match="attention_every must be at most the number of layers, 4, got 5"):
        GatedDeltaNetConfig(**SMALL, attention_every=5)
    with pytest.raises(UserError, match="no block has attention: leave canon, forget_gate out"):
        GatedDeltaNetConfig(**SMALL, canon=4, forget_gate=True)
    with pytest.raises(UserError, match="no block has attention: leave levels, rope_base out"):
        GatedDeltaNetConfig(**SMALL, levels=("long",), rope_base=1e4)
    assert GatedDeltaNetConfig(**SMALL, attention_every=4, canon=4).canon == 4


@pytest.mark.gpu
def test_the_fused_kernel_agrees():
    if fla_delta_rule() is None:
        pytest.skip("flash-linear-attention is not installed")
    torch.manual_seed(0)
    network = GatedDeltaNetConfig(vocab_size=40, layers=2, dim=256, heads=4, persistent_dim=256).build().cuda()
    tokens, documents = torch.randint(40, (2, 300)).cuda(), Documents.from_starts(torch.rand(2, 300) < 0.02).to("cuda")
    losses = {}
    for kernels in ("auto", "torch"):
        set_kernels(network, kernels)
        network.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = network(tokens, documents, tokens)
        loss.backward()
        losses[kernels] = loss, torch.cat([p.grad.flatten() for p in network.parameters()])
    torch.testing.assert_close(losses["auto"][0], losses["torch"][0], rtol=1e-2, atol=1e-2)
    cosine = F.cosine_similarity(losses["auto"][1], losses["torch"][1], dim=0)
    assert cosine > 0.99

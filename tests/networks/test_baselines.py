"""Switches of the transformer: YaRN, position encoding by level, scalable softmax, short convolution, forget gate."""

import math

import pytest
import torch
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import TransformerConfig
from mm_lightning.networks.forget_gate import ForgetGate
from mm_lightning.networks.rotary import frequencies, rotary

SMALL = {"vocab_size": 40, "layers": 1, "dim": 24, "heads": 3, "persistent_dim": 40}


def attention(time=30, **settings):
    """A random attention in float64, inputs, one document, its span and the rotation of its positions."""
    torch.manual_seed(0)
    network = TransformerConfig(**SMALL, **settings).build().double()
    documents = Documents.whole(1, time)
    context = network.context(documents)
    module = network.blocks[0].contextual["full"]
    return module, torch.randn(1, time, 24, dtype=torch.float64), context.spans["full"], documents, context.rotation


def by_hand(q, k, v, scores):
    """Causal attention with these scores, (H, T, T)."""
    time = q.shape[1]
    hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v[0]).flatten(-2)


@pytest.mark.parametrize(("factor", "context", "dim"), [(4.0, 512, 64), (8.0, 2048, 128), (16.0, 64, 32)])
def test_yarn_is_that_of_transformers(factor, context, dim):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context, "rope_theta": 5e5}
    config = transformers.LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        max_position_embeddings=int(factor * context),
        rope_parameters=scaling,
    )
    expected, sharpness = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    torch.testing.assert_close(frequencies(dim, 5e5, factor, context).float(), expected, rtol=1e-5, atol=0)
    cos, _ = rotary(torch.zeros(1, 1), dim, 5e5, factor, context)
    assert cos.unique().item() == pytest.approx(sharpness)


def test_levels_without_rotation_do_not_know_positions():
    module, x, span, documents, rotation = attention(rotary_levels=[])
    shuffled = torch.cat([x[:, torch.randperm(29)], x[:, 29:]], 1)  # the last query reads the same pairs
    torch.testing.assert_close(*(module(y, span, documents, rotation)[0, -1] for y in (x, shuffled)))
    rotated = attention()[0]
    first, second = (rotated(y, span, documents, rotation)[0, -1] for y in (x, shuffled))
    assert (first - second).abs().max() > 1e-3


def test_scalable_softmax_by_hand():
    module, x, span, documents, rotation = attention(scalable_softmax=True, qk_norm=True, rotary_levels=[])
    q, k, v = module.project(x, rotation)
    torch.testing.assert_close(q.square().mean(-1), torch.ones(1, 30, 3, dtype=torch.float64), rtol=1e-3, atol=0)
    n = torch.arange(1, 31, dtype=torch.float64)
    scores = torch.einsum("thd,shd->hts", q[0], k[0]) * 8**-0.5 * 0.43 * n.log()[:, None]
    torch.testing.assert_close(module(x, span, documents, rotation)[0], by_hand(q, k, v, scores))


def test_the_short_convolution_is_added_to_queries_keys_and_values():
    module, x, span, documents, rotation = attention(canon=4, rotary_levels=[])

    def mixed(linear, channels):
        y = linear(x)
        return y + F.conv1d(F.pad(y.mT, (3, 0)), module.convolution.weight[channels].flip(1)[:, None], groups=24).mT

    parts = (slice(24 * i, 24 * i + 24) for i in range(3))
    linears = module.W_q, module.W_k, module.W_v
    q, k, v = (mixed(m, channels).unflatten(-1, (3, 8)) for m, channels in zip(linears, parts, strict=True))
    scores = torch.einsum("thd,shd->hts", q[0], k[0]) * 8**-0.5
    torch.testing.assert_close(module(x, span, documents, rotation)[0], by_hand(q, k, v, scores))


def test_the_forget_gate_by_hand():
    module, x, span, documents, rotation = attention(forget_gate=True, rotary_levels=[])
    q, k, v = module.project(x, rotation)
    f = module.forget.W_f(x)[0].sigmoid()
    scores = torch.einsum("thd,shd->hts", q[0], k[0]) * 8**-0.5
    for t in range(30):
        for i in range(t):
            scores[:, t, i] += f[i + 1 : t + 1].log().sum(0)
    torch.testing.assert_close(module(x, span, documents, rotation)[0], by_hand(q, k, v, scores))


@pytest.mark.parametrize(("dtype", "dimensions"), [(torch.float32, 1), (torch.bfloat16, 3), (torch.float16, 3)])
def test_sums_of_gates_keep_their_accuracy_in_16_bits(dtype, dimensions):
    q, k, v = (torch.zeros(1, 50, 2, 8, dtype=dtype) for _ in range(3))
    c = -(torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(0)) * 900)
    scale = 8**-0.5
    q, k, v = ForgetGate.extend(q, k, v, c, scale)
    assert q.shape == k.shape == v.shape == (1, 50, 2, 16)
    assert k[..., 8:].bool().any((0, 1, 2)).sum() == dimensions
    torch.testing.assert_close((q.float() * k.float()).sum(-1) * scale, -c, rtol=1e-6, atol=0)


def test_where_settings_do_not_fit():
    with pytest.raises(UserError, match=r"rotary_levels takes levels of this network, \['full'\], got 'short'"):
        TransformerConfig(**SMALL, rotary_levels=("short",))
    for settings in ({"yarn_factor": 2.0}, {"yarn_context": 128}):
        with pytest.raises(UserError, match="yarn_factor and yarn_context go together"):
            TransformerConfig(**SMALL, **settings)
    assert math.isclose(TransformerConfig(**SMALL, yarn_factor=2.0, yarn_context=128).yarn_factor, 2)

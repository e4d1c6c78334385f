"""What is seen of a network is what the network does."""

import torch
from small_networks import CONFIGS, build, config, packed  # noqa: F401

from mm_lightning.inspection.profile import Profile, retrieval_profile
from mm_lightning.inspection.reads import Read, watch_reads
from mm_lightning.memory.contextual import ContextualMemory
from mm_lightning.memory.documents import Documents, Span
from mm_lightning.memory.retrieval import SoftmaxRetrieval


def test_weights_times_values_is_what_the_network_reads(config, build, packed):  # noqa: F811
    network = build(config, torch.float64).eval()
    tokens, documents = packed(config, 2, 50, 0.05)
    seen, answers = [], []
    reads = []
    for layer, block in enumerate(network.blocks):
        for level, memory in block.contextual.items():
            if hasattr(memory, "retrieval"):  # a recurrent layer reads no pairs
                reads.append((layer, level))
                memory.register_forward_hook(lambda module, inputs, answer: answers.append(answer))
    with torch.no_grad(), watch_reads(network, seen.append):
        network(tokens, documents)
    assert [(read.layer, read.level) for read in seen] == reads
    for read, answer in zip(seen, answers, strict=True):
        weights = torch.cat([weights for _, weights in read.weights()], 2)
        values = read.v.repeat_interleave(config.heads // read.v.shape[2], 2)
        found = torch.einsum("bhts,bshd->bthd", weights, values)[..., : config.head_dim].flatten(-2)
        assert (found - answer).abs().max() < 1e-12
        if isinstance(read.memory, ContextualMemory):
            assert read.beta.shape == read.gate.shape == read.decay.shape == (2, 50, config.heads)
            unit = (read.q / read.beta[..., None] - read.k).abs().max()
            assert unit < 1e-12
            assert (read.decay <= 1).all()
        else:
            assert read.beta is None
    assert not any(m._forward_pre_hooks for m in network.modules())


class Around(torch.nn.Module):
    """A block of a user's class: whatever it holds, its memories lie somewhere within."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner

    def forward(self, x, context):
        return (x, None) if self.inner is None else self.inner(x, context)


def test_blocks_of_any_class_are_seen(build, packed):  # noqa: F811
    config = CONFIGS["v2"]  # noqa: F811
    network, seen = build(config).eval(), []
    network.blocks = torch.nn.ModuleList([Around(), *(Around(block) for block in network.blocks)])
    tokens, documents = packed(config, 1, 20, 0)
    with torch.no_grad(), watch_reads(network, seen.append):
        network(tokens, documents)
    assert [(read.layer, read.level) for read in seen] == [(n, level) for n in (1, 2) for level in config.levels]
    network.blocks = torch.nn.ModuleList([Around()])
    assert retrieval_profile(network, tokens).mean() == {}


def uniform(span, documents, heads=2):
    """A memory whose keys are all alike."""
    q = torch.zeros(*documents.shape, heads, 3)
    return Read(0, "full", torch.nn.Identity(), q, q, q, span, documents, 1.0, SoftmaxRetrieval())


def test_a_profile_counts_queries_with_enough_before_them():
    starts = torch.zeros(1, 14, dtype=torch.bool)
    starts[0, 10] = True
    profile = Profile(8)
    profile.add(uniform(Span(2), Documents.from_starts(starts)))
    # positions 7, 8 and 9 of the first document read 6, 7 and 8 pairs; the second document is too short
    mean = (1 / 6 + 1 / 7 + 1 / 8) / 3
    assert profile.queries == 3
    expected = torch.tensor([0, 0] + [mean] * 6, dtype=torch.float64)
    assert torch.allclose(profile.mean()["full"], expected.expand(1, 2, 8), rtol=1e-6)


def test_profile_of_the_last_token(build):  # noqa: F811
    config = CONFIGS["v2"]  # noqa: F811
    network = build(config, torch.float64).eval()
    tokens = torch.randint(config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    seen = []
    with torch.no_grad(), watch_reads(network, seen.append):
        network(tokens)
    profile = retrieval_profile(network, tokens)
    assert profile.queries == 3
    for read in seen:
        ((_, weights),) = read.weights(39)
        expected = weights[:, :, 0].flip(-1).mean(0)  # by age
        assert torch.allclose(profile.mean()[read.level][read.layer], expected)


class Named(SoftmaxRetrieval):
    """Called as by a user's attention, which names its arguments and leaves out what it does not need."""

    def __call__(self, q, k, v, span, documents, pairs, late, scale, dropout):
        return super().__call__(q, k, v, documents=documents, span=span, scale=scale)


def test_reads_with_named_arguments_are_seen(build, packed):  # noqa: F811
    config = CONFIGS["transformer"]  # noqa: F811
    network, tokens = build(config).eval(), packed(config, 1, 20, 0)[0]
    by_position, by_name = [], []
    with torch.no_grad(), watch_reads(network, by_position.append):
        network(tokens)
    for block in network.blocks:
        for memory in block.contextual.values():
            memory.retrieval = Named()
    with torch.no_grad(), watch_reads(network, by_name.append):
        network(tokens)
    assert len(by_name) == config.layers
    for one, other in zip(by_name, by_position, strict=True):
        assert (one.span, one.scale) == (other.span, other.scale)
        assert torch.equal(one.q, other.q)

"""What every network must do, and the mosaic against the paper's equations written out."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mm_lightning.errors import UserError
from mm_lightning.memory.documents import Documents
from mm_lightning.memory.persistent import Experts
from mm_lightning.networks import V1, MemoryMosaicConfig, NetworkConfig, TransformerConfig
from mm_lightning.networks.base import _keep_products


@pytest.mark.parametrize(
    ("time", "chance", "dtype", "tolerance"),
    [
        (250, 0.02, torch.float64, 1e-9),
        (80, 0.1, torch.float64, 1e-9),
        (80, 0.1, torch.float32, 1e-5),
        (16, 0.9, torch.float64, 1e-9),
    ],
)
def test_packing_equals_running_alone(config, build, packed, time, chance, dtype, tolerance):
    """Documents of one token, shorter than m, and longer than the window."""
    torch.manual_seed(0)
    # In float32 as initialized: the larger the bandwidths, the more of its rounding is seen.
    network = config.build() if dtype == torch.float32 else build(config, dtype)
    tokens, documents = packed(config, 2, time, chance)
    together = network(tokens, documents).flatten(0, 1)
    pieces = tokens.flatten().split(documents.lengths)
    alone = dict.fromkeys(range(len(pieces)))
    for length in set(documents.lengths):  # those of one length are the rows of a batch
        same = [n for n, piece in enumerate(pieces) if len(piece) == length]
        alone.update(zip(same, network(torch.stack([pieces[n] for n in same])), strict=True))
    alone = torch.cat([*alone.values()])
    assert (together - alone).abs().max() < tolerance


def test_causal(config, build, packed):
    network, (tokens, documents) = build(config, torch.float64), packed(config, 1, 120, 0.01)
    before = network(tokens, documents)
    for t in (0, 1, 50, 119):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % config.vocab_size
        after = network(changed, documents)
        # The value at t - 1 looks at t, but the pair at t - 1 is read from t on.
        if t:
            assert (after[:, :t] - before[:, :t]).abs().max() < 1e-12
        assert (after[:, t] - before[:, t]).abs().max() > 1e-4


def test_loss_counts_targets_only(config, build, packed):
    network, (tokens, documents) = build(config).eval(), packed(config, 2, 50, 0.1)
    targets = tokens.roll(-1, 1)
    targets[:, ::7] = -100
    loss = network(tokens, documents, targets)
    logits = network(tokens, documents).double().log_softmax(-1)
    kept = targets != -100
    expected = -logits[kept].gather(-1, targets[kept][:, None]).mean()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("checkpointing", [True, "selective"])
def test_activation_checkpointing_changes_nothing(config, build, packed, checkpointing):
    network, (tokens, documents) = build(config), packed(config, 2, 60, 0.05)
    gradients = []
    for network.activation_checkpointing in (False, checkpointing):
        network.zero_grad()
        network(tokens, documents, tokens).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.equal(*gradients)


class Buffered(torch.autograd.Function):
    """A product and ReLU as compiled code writes them: into one buffer, of which the backward pass reads."""

    @staticmethod
    def forward(ctx, x, weight):
        y = torch.full((len(x), weight.shape[1]), math.nan)
        torch.mm(x, weight, out=y).clamp_(0)
        ctx.save_for_backward(weight, y)
        return y.clone()

    @staticmethod
    def backward(ctx, gradient):
        weight, y = ctx.saved_tensors
        return (gradient * (y > 0) * y) @ weight.T, None


def test_selective_checkpointing_leaves_the_buffers_of_compiled_parts_alone():
    x, weight = torch.ones(2, 3, requires_grad=True), torch.arange(12.0).view(3, 4) - 5
    (expected,) = torch.autograd.grad(Buffered.apply(x, weight).sum(), x)
    again = checkpoint(Buffered.apply, x, weight, use_reentrant=False, context_fn=_keep_products)
    assert torch.equal(torch.autograd.grad(again.sum(), x)[0], expected)
    assert expected.any()


@pytest.mark.parametrize("precision", ["autocast", "bf16"])
def test_one_step_in_bf16(config, build, packed, precision):
    network, (tokens, documents) = build(config), packed(config, 2, 40, 0.05)
    exact = float(network(tokens, documents, tokens).detach())
    if precision == "bf16":
        network = network.bfloat16()
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    losses = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = network(tokens, documents, tokens)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(exact, rel=2e-2)
    assert losses[1] < losses[0]


def test_every_parameter_learns(config, build, packed):
    """Also where no document is long enough for the long-term memory."""
    network, (tokens, documents) = build(config), packed(config, 2, 100, 0.9)
    network(tokens, documents, tokens).backward()
    assert all(p.grad is not None for p in network.parameters())
    network.zero_grad()
    network(tokens, None, tokens).backward()
    silent = [name for name, p in network.named_parameters() if not p.grad.any()]
    # Whatever is in the very last pair of every document is never read, but everything else is.
    assert not silent


def test_state_dict_round_trip(config, build, packed, tmp_path):
    network, (tokens, documents) = build(config), packed(config, 1, 40, 0.1)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with torch.device("meta"):
        other = config.build()
    other.to_empty(device="cpu").reset_parameters()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(network(tokens, documents), other(tokens, documents))


def test_mosaic_is_the_papers_equations(build, packed):
    """Section 2 of the v2 paper, one token and one pair at a time, in float64."""
    config = MemoryMosaicConfig(
        vocab_size=11, layers=2, dim=8, heads=2, persistent_dim=12, short_term_window=6, inference_delay=4
    )
    network, (tokens, documents) = build(config, torch.float64), packed(config, 1, 30, 0.1)
    expected = torch.cat([_by_the_paper(network, piece) for piece in tokens[0].split(documents.lengths)])
    assert (network(tokens, documents)[0] - expected).abs().max() < 1e-10


def _by_the_paper(network, tokens):
    """Logits of one document, (T, V)."""
    config, w = network.config, {name: p.detach() for name, p in network.named_parameters()}

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight

    x = w["embedding.weight"][tokens]
    for block in range(config.layers):
        b = f"blocks.{block}."
        y = norm(x, w[b + "contextual_norm.weight"])
        answers = [_memory(config, w, f"{b}contextual.{level}.", level, y) for level in ("long", "short")]
        x = x + torch.cat(answers, -1) @ w[b + "W_o.weight"].T
        y, p = norm(x, w[b + "persistent_norm.weight"]), b + "persistent."
        hidden = torch.nn.functional.silu(y @ w[p + "W_1.weight"].T) * (y @ w[p + "W_3.weight"].T)
        x = x + hidden @ w[p + "W_2.weight"].T
    return norm(x, w["norm.weight"]) @ w["classifier.weight"].T


def _memory(config, w, name, level, y):
    """One contextual memory, pair by pair."""
    T, H, D = len(y), config.heads, config.head_dim
    raw_k = (y @ w[name + "keys.W_phi.weight"].T).view(T, H, D)
    raw_v = (y @ w[name + "W_psi.weight"].T).view(T, H, D)
    g = (y @ w[name + "keys.W_g.weight"].T).exp()
    decay = (-(y @ w[name + "keys.W_lambda.weight"].T).abs()).exp()
    out = torch.zeros(T, H, D, dtype=y.dtype)
    for h in range(H):
        gamma = w[name + "values.gamma"][h]
        alpha_psi = w[name + "values.alpha_psi_theta"][h].abs().clamp(max=15).exp()
        beta_0, beta_1 = (w[f"{name}bandwidth.beta_{i}_theta"][h].clamp(max=10).exp() for i in (0, 1))
        alpha = w[name + "bandwidth.alpha_theta"][h].abs().clamp(max=1)
        keys, values, average = [], [], torch.zeros(D, dtype=y.dtype)
        for t in range(T):
            average = g[t, h] * raw_k[t, h] + decay[t, h] * average
            keys.append(average / average.norm())
            ahead = raw_v[t + 1, h] if t + 1 < T else torch.zeros(D, dtype=y.dtype)
            value = gamma * raw_v[t, h] + (1 - gamma) * ahead
            values.append(alpha_psi * value / value.norm())
        for t in range(T):
            if level == "short":
                pairs = range(max(0, t - config.short_term_window + 1), t)
            else:
                pairs = range(max(0, t - config.inference_delay + 1))
            if not pairs:
                continue
            beta = beta_1 * len(pairs) ** alpha + beta_0
            weights = torch.stack([(beta * keys[t] @ keys[i]).exp() for i in pairs])
            out[t, h] = sum(a * values[i] for a, i in zip(weights, pairs, strict=True)) / weights.sum()
    return out.flatten(1)


def test_transformer_rotates_by_position_in_the_document(build, packed):
    """A token's logits depend on relative positions only: shifting a document changes nothing."""
    config = TransformerConfig(vocab_size=11, layers=1, dim=8, heads=2, persistent_dim=12)
    network, (tokens, _) = build(config, torch.float64), packed(config, 1, 20, 0.0)
    documents = Documents.whole(1, 20)
    shifted = Documents(documents.lengths, documents.position + 1000, documents.offsets)
    assert (network(tokens, documents) - network(tokens, shifted)).abs().max() < 1e-6


def test_initialization_of_table_6():
    """Measured standard deviations per parameter and depth; clipping at 3 sigma takes 1.3% of the variance."""
    d, f, layers = 128, 320, 3
    torch.manual_seed(0)
    network = MemoryMosaicConfig(vocab_size=500, layers=layers, dim=d, heads=4, persistent_dim=f).build()
    seen = 0
    for name, p in network.named_parameters():
        if p.dim() < 2:
            continue
        depth = int(name.split(".")[1]) + 1 if name.startswith("blocks") else 1
        fan_in = f if name.endswith("W_2.weight") else d
        sigma = 1 / math.sqrt(2 * fan_in * depth)
        measured = p.detach().double()
        count = measured.numel()
        assert float(measured.std()) == pytest.approx(0.9973 * sigma, rel=4 / math.sqrt(2 * count) + 0.002), name
        assert float(measured.mean().abs()) < 4 * sigma / math.sqrt(count), name
        assert float(measured.abs().max()) <= 3 * sigma * (1 + 1e-6), name
        seen += 1
    assert seen == layers * 12 + 2
    scalars = network.memory_scalars()
    assert scalars["long/gamma"].min() >= 0
    assert scalars["long/gamma"].max() <= 1
    assert scalars["long/gamma"].std() == pytest.approx(1 / math.sqrt(12), rel=0.5)
    assert (scalars["short/alpha_psi"] == 1).all()
    assert scalars["short/beta_0"].numel() == layers * 4


def test_weight_decay_on_matrices_only(config, build):
    matrices, others = build(config).weight_decay_groups()
    assert all(p.dim() >= 2 for p in matrices)
    assert all(p.dim() == 1 for p in others)
    assert len(matrices) + len(others) == len(list(build(config).parameters()))


def test_delay_is_drawn_from_seed_and_step():
    config = MemoryMosaicConfig(vocab_size=8, layers=1, dim=8, heads=1, persistent_dim=8)
    network, again = config.build(), config.build()
    draws = [network.step_randomness(3, step)["delays"]["long"] for step in range(4000)]
    assert draws == [again.step_randomness(3, step)["delays"]["long"] for step in range(4000)]
    assert draws != [network.step_randomness(4, step)["delays"]["long"] for step in range(4000)]
    assert set(draws) == set(range(64, 257))
    assert sum(draws) / len(draws) == pytest.approx(160, abs=3)


def test_the_sampled_delay_is_the_one_used(build, packed):
    config = MemoryMosaicConfig(vocab_size=9, layers=1, dim=8, heads=1, persistent_dim=8, inference_delay=7)
    network, (tokens, documents) = build(config), packed(config, 1, 60, 0)
    assert torch.equal(network(tokens, documents), network(tokens, documents, delays={"long": 7}))
    assert not torch.equal(network(tokens, documents), network(tokens, documents, delays={"long": 8}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 24, "heads": 5}, "heads must divide dim: 5 heads do not divide dim 24; .* is 4"),
        ({"layers": 0}, "layers takes a whole number of at least 1 and at most 10,000, got 0"),
        ({"long_term_delay": (9, 5)}, r"\[smallest, largest\], got \[9, 5\]"),
        ({"short_term_window": 1}, "short_term_window takes a whole number of at least 2, got 1"),
        ({"inference_delay": 0}, "inference_delay takes a whole number of at least 1, got 0"),
        ({"levels": ()}, "levels must name"),
        ({"bias": True}, "bias is for v1 alone"),
    ],
)
def test_impossible_dimensions_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MemoryMosaicConfig(**settings)


def test_odd_heads_cannot_be_rotated():
    with pytest.raises(UserError, match="even head dimension"):
        TransformerConfig(dim=9, heads=3)


def test_the_common_config_builds_nothing():
    with pytest.raises(TypeError, match="MemoryMosaicConfig"):
        NetworkConfig().build()


def test_v1_is_its_published_equations(build, packed):
    """Section by section what v1's public code computes, one token and one pair at a time, in float64."""
    config = MemoryMosaicConfig(
        vocab_size=11,
        layers=2,
        dim=8,
        heads=2,
        **{**V1, "dropout": 0.0},
        persistent_slots=5,
        persistent_banks=2,
    )
    network, (tokens, documents) = build(config, torch.float64), packed(config, 1, 25, 0.1)
    expected = torch.cat([_v1_by_hand(network, piece) for piece in tokens[0].split(documents.lengths)])
    assert (network(tokens, documents)[0] - expected).abs().max() < 1e-10


def _v1_by_hand(network, tokens):
    config, w = network.config, {name: p.detach() for name, p in network.named_parameters()}
    T, H, D = len(tokens), config.heads, config.head_dim

    def norm(x, weight):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight

    def keys(y, name, h):
        raw = (y @ w[name + "W_phi.weight"].T).view(T, H, D)[:, h]
        leak, average, found = (-(10 * w[name + "leak"][h]).abs()).exp(), torch.zeros(D, dtype=y.dtype), []
        for t in range(T):
            average = raw[t] + leak * average
            found.append(average / average.norm())
        return found

    x = w["embedding.weight"][tokens]
    for block in range(config.layers):
        b = f"blocks.{block}."
        y, c = norm(x, w[b + "contextual_norm.weight"]), f"{b}contextual.full."
        out = torch.zeros(T, H, D, dtype=x.dtype)
        raw_v = (y @ w[c + "W_psi.weight"].T).view(T, H, D)
        for h in range(H):
            k = [(10 * w[c + "bandwidth.kappa"][h]).exp() * key for key in keys(y, c + "keys.", h)]
            gamma, norm_v = w[c + "values.gamma"][h], (10 * w[c + "values.alpha_psi_theta"][h]).exp()
            for t in range(1, T):
                scores = torch.stack([(k[t] @ k[i]).exp() for i in range(t)])
                v = torch.stack([gamma * raw_v[i, h] + (1 - gamma) * raw_v[i + 1, h] for i in range(t)])
                v = norm_v * v / v.norm(dim=-1, keepdim=True)
                out[t, h] = (scores[:, None] * v).sum(0) / scores.sum()
        x = x + out.flatten(1) @ w[b + "W_o.weight"].T
        y, p = norm(x, w[b + "persistent_norm.weight"]), b + "persistent."
        out = torch.zeros(T, H, D, dtype=x.dtype)
        for h in range(H):
            for t, key in enumerate(keys(y, p + "keys.", h)):
                q = (20 * w[p + "bandwidth.kappa"][h]).exp() * key
                for pk, pv in zip(w[p + "slot_keys"][:, h], w[p + "slot_values"][:, h], strict=True):
                    out[t, h] += (pk @ q).softmax(0) @ pv / config.persistent_banks
            out[:, h] *= (10 * w[p + "answer_scale"][h]).exp()
        x = x + out.flatten(1) @ w[p + "W_c.weight"].T
    return norm(x, w["norm.weight"]) @ w["embedding.weight"].T


def test_v1_begins_as_published():
    """What v1 begins with: leaks from 0.5 to 5, beta = exp(2), values of norm exp(-0.5), slots 1/sqrt(D)."""
    config = MemoryMosaicConfig(vocab_size=11, layers=1, dim=32, heads=4, persistent_slots=400, **V1)
    network = config.build()
    scalars = network.memory_scalars()
    assert scalars["full/lambda"].tolist() == pytest.approx([math.exp(-s) for s in (0.5, 2.0, 3.5, 5.0)])
    assert scalars["full/beta"].tolist() == pytest.approx([math.exp(2)] * 4)
    assert scalars["full/alpha_psi"].tolist() == pytest.approx([math.exp(-0.5)] * 4)
    persistent = network.blocks[0].persistent
    assert float(persistent.slot_keys.detach().std()) == pytest.approx(8**-0.5, rel=0.02)
    assert (10 * persistent.answer_scale).exp().tolist() == pytest.approx([math.exp(-0.5)] * 4)
    with torch.no_grad():
        persistent.bandwidth.kappa.fill_(99)
        network.blocks[0].contextual["full"].bandwidth.kappa.fill_(99)
    assert persistent.bandwidth.beta.tolist() == pytest.approx([65535.0] * 4)
    contextual = network.blocks[0].contextual["full"]
    assert contextual.bandwidth.beta.tolist() == pytest.approx([65535.0**2] * 4)  # both sides are multiplied


def test_dropout_keeps_the_expectation_and_only_trains(packed):
    config = MemoryMosaicConfig(vocab_size=9, layers=1, dim=8, heads=2, persistent_dim=8, dropout=0.3, levels=("full",))
    torch.manual_seed(0)
    network, (tokens, documents) = config.build(), packed(config, 1, 300, 0.01)
    assert torch.equal(network.eval()(tokens, documents), network(tokens, documents))
    network.train()
    assert not torch.equal(network(tokens, documents), network(tokens, documents))
    network(tokens, documents, tokens).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_experts_by_hand():
    """Two tokens, three experts, k = 2: weights renormalized over the chosen ones."""
    torch.manual_seed(0)
    experts = Experts(4, 6, 3, 2, 0.5, 0.5).double()
    x = torch.randn(1, 2, 4, dtype=torch.float64)
    found, balance = experts(x)
    shares, probabilities = torch.zeros(3), torch.zeros(3)
    for t in range(2):
        p = (experts.router.weight.detach() @ x[0, t]).softmax(0)
        best = p.argsort(descending=True)[:2]
        expected = torch.zeros(4, dtype=torch.float64)
        for e in best:
            hidden = torch.nn.functional.silu(experts.W_1[e] @ x[0, t]) * (experts.W_3[e] @ x[0, t])
            expected = expected + p[e] / p[best].sum() * (experts.W_2[e] @ hidden)
        assert (found[0, t] - expected).abs().max() < 1e-6
        shares[best] += 1 / 4
        probabilities += p.float() / 2
    assert float(balance.detach()) == pytest.approx(3 * float((shares * probabilities).sum()), rel=1e-5)


def test_experts_are_balanced_within_each_sequence_over_tokens_with_a_target():
    torch.manual_seed(0)
    experts, x = Experts(4, 6, 3, 2, 0.5, 0.5).double(), torch.randn(3, 5, 4, dtype=torch.float64)
    counted = torch.tensor([[True] * 5, [True, False, True, True, False], [False] * 5])
    each = [experts(x[row : row + 1, counted[row]])[1].detach() for row in (0, 1)]  # as the test above has it
    assert float((experts(x, counted)[1].detach() - (5 * each[0] + 3 * each[1]) / 8).abs()) < 1e-12
    assert float(experts(x[2:], counted[2:])[1].detach()) == 0


def test_the_two_parts_of_the_loss():
    small = {"vocab_size": 11, "layers": 2, "dim": 8, "heads": 2, "persistent_dim": 8}
    network = MemoryMosaicConfig(**small, persistent="experts", experts=3, balance_weight=50.0).build()
    tokens, targets = torch.randint(11, (2, 2, 9))
    loss, balance = network(tokens, targets=targets, separate_losses=True)
    assert 0.8 < float(balance.detach()) <= 3
    assert float((network(tokens, targets=targets) - loss - 50 * balance).detach().abs()) < 1e-4
    network.eval()
    assert float((network(tokens, targets=targets) - loss).detach().abs()) < 1e-5
    assert network(tokens, targets=targets, separate_losses=True)[1] is None

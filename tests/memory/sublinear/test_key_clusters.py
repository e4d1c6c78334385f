"""A memory read by clusters: what is proven holds, and exact settings are exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mm_lightning.errors import UserError
from mm_lightning.memory.kernels import set_kernels
from mm_lightning.memory.sublinear.key_clusters import KeyClusters, SublinearRead
from mm_lightning.memory.sublinear.summaries import cluster_order, summarize
from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig

KINDS = ["random", "clusters", "one point", "opposite", "line", "zeros"]


def draw(kind, count, dim=8, seed=0, rows=1, heads=2):
    """Keys of norm 1 (or 0) and values, (B, H, n, D) each, in float64."""
    torch.manual_seed(seed)
    keys = torch.randn(rows, heads, count, dim, dtype=torch.float64)
    if kind == "clusters":
        keys = 0.05 * keys + torch.randn(rows, heads, 1 + count // 20, dim)[:, :, torch.arange(count) // 20]
    elif kind == "one point":
        keys = torch.ones_like(keys)
    elif kind == "opposite":
        keys = keys[:, :, :1] * torch.where(torch.arange(count) % 2 > 0, 1.0, -1.0)[:, None]
    elif kind == "line":
        keys = torch.cat([torch.linspace(-1, 1, count)[:, None].expand(rows, heads, count, 1), 0 * keys[..., 1:]], -1)
        keys[..., 1] = 0.3
    elif kind == "zeros":
        keys = keys * (torch.rand(rows, heads, count, 1) > 0.4)
    return F.normalize(keys, dim=-1), torch.randn(rows, heads, count, dim, dtype=torch.float64)


def exact(q, keys, values, seen=None):
    """Equation (4) written out, (B, H, D)."""
    scores = torch.einsum("bhd,bhnd->bhn", q, keys)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
    return torch.einsum("bhn,bhnd->bhd", scores.softmax(-1), values)


def by_clusters(q, keys, values, read_settings, kernels="auto"):
    """The answer of a read_settings that is filled at once, with pairs that lie sorted afterwards."""
    clusters = KeyClusters(read_settings, kernels)
    room = -(-keys.shape[2] // read_settings.cluster_size) * read_settings.cluster_size + read_settings.cluster_size
    buffers = [F.pad(x, (0, 0, 0, room - x.shape[2]), value=float("nan")) for x in (keys, values)]
    clusters.extend(*buffers, keys.shape[2])
    first = torch.zeros(len(q), dtype=torch.long)
    return clusters.read(q, *buffers, keys.shape[2], first), clusters, buffers


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.floats(0.1, 300),
    st.sampled_from([0, 0.001, 0.1, 1.0]),
    st.sampled_from(["torch", "numba"]),
)
def test_the_proven_error_holds(kind, seed, beta, epsilon, kernels):
    keys, values = draw(kind, 150, seed=seed)
    q = beta * F.normalize(torch.randn(1, 2, 8, dtype=torch.float64), dim=-1)
    if seed % 2:
        q = beta * keys[:, :, seed % 150]
    found, _, _ = by_clusters(
        q, keys, values, SublinearRead(budget=8, epsilon=epsilon, cluster_size=4, segment=16), kernels
    )
    largest = values.norm(dim=-1).amax(-1)
    error = (found - exact(q, keys, values)).norm(dim=-1)
    assert (error <= epsilon * (largest + found.norm(dim=-1)) + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.floats(0.1, 300),
    st.integers(48, 200),
    st.integers(3, 9),
    st.integers(3, 6),
    st.integers(1, 60),
)
def test_the_compiled_read_is_that_of_torch(kind, seed, beta, count, dim, size, chosen):
    """Where clusters promise the same, either may read other ones; they hold the same keys here."""
    keys, values = draw(kind, count, dim, seed, heads=1)
    q = beta * F.normalize(torch.randn(1, 1, dim, dtype=torch.float64), dim=-1)
    read_settings = SublinearRead(budget=size * chosen, cluster_size=size, segment=size * 8)
    expected, one, _ = by_clusters(q, keys, values, read_settings, "torch")
    found, other, _ = by_clusters(q, keys, values, read_settings, "numba")
    assert torch.allclose(found, expected, atol=1e-9)
    assert one.share == other.share


@pytest.mark.parametrize("wanted", [1, 2, 7, 39, 40])
@pytest.mark.parametrize("ties", [1, 3, 100])
def test_the_largest_by_a_threshold(ties, wanted):
    from mm_lightning.memory.sublinear.numba_read import _largest

    rank = torch.randn(40, generator=torch.Generator().manual_seed(ties)).mul(100 / ties).round()
    places = torch.zeros(40, dtype=torch.long)
    assert _largest(rank.numpy(), wanted, places.numpy()) == wanted
    found = places[:wanted]
    assert torch.equal(found, found.unique())
    assert torch.equal(rank[found].sort(descending=True).values, rank.topk(wanted).values)


def test_a_query_that_is_not_a_number():
    keys, values = draw("random", 100)
    q = torch.full((1, 2, 8), float("nan"), dtype=torch.float64)
    for epsilon in (None, 0.01):
        read_settings = SublinearRead(budget=16, epsilon=epsilon, cluster_size=4, segment=16)
        assert by_clusters(q, keys, values, read_settings, "numba")[0].isnan().all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "tolerance", "epsilon"),
    [  # each type with and without a proven error takes seconds to compile
        (torch.float64, 1e-12, None),
        (torch.float64, 1e-12, 0.01),
        (torch.float32, 1e-5, None),
        (torch.float32, 1e-5, 0.01),
        pytest.param(torch.bfloat16, 0.02, None, marks=pytest.mark.slow),
        (torch.bfloat16, 0.02, 0.01),
    ],
)
def test_clusters_read_where_they_lie_are_those_copied_together(dtype, tolerance, epsilon, threads):
    keys, values = (x.to(dtype) for x in draw("clusters", 150, rows=2))
    q = (3 * F.normalize(torch.randn(2, 2, 8, dtype=torch.float64), dim=-1)).to(dtype)
    read_settings = SublinearRead(budget=32, epsilon=epsilon, cluster_size=4, segment=16)
    # One by one, for torch reads as many clusters for all as one of them needs for a proven error
    each = [[[x[b : b + 1, h : h + 1] for x in (q, keys, values)] for h in range(2)] for b in range(2)]
    expected = torch.cat([torch.cat([by_clusters(*x, read_settings, "torch")[0] for x in row], 1) for row in each])
    _, clusters, buffers = by_clusters(q, keys, values, read_settings, "numba")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = clusters.read(q, *buffers, 150, torch.zeros(2, dtype=torch.long))
    finally:
        torch.set_num_threads(before)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.integers(1, 6), st.floats(0.5, 2))
def test_bounds_of_clusters(kind, seed, power, norm):
    """The mass of every cluster lies between the two bounds of the docstring, for any query and any norm of keys."""
    keys, values = draw(kind, 4 << power, seed=seed)
    keys, values = ((norm * x).flatten(0, 1) for x in (keys, values))
    index = cluster_order(keys, 4)
    assert torch.equal(index.sort(1).values, torch.arange(4 << power).expand(2, -1))
    keys = keys.gather(1, index[..., None].expand_as(keys))
    sums = summarize(keys, values, 4, 4 << power, keys.dtype)
    q = 5 * F.normalize(torch.randn(2, 8, 1, dtype=torch.float64), dim=1)
    mass = (keys @ q).exp().unflatten(1, (-1, 4)).sum(2)[..., 0]
    centre = (sums["keys"].transpose(1, 2) @ q)[..., 0]
    low = 4 * centre.exp()
    along = centre / sums["norm"]
    across = (25 - along**2).clamp(min=0).sqrt()
    b = torch.maximum(along * sums["high"], along * sums["low"]) + across * sums["aside"]
    assert (low <= mass * (1 + 1e-9)).all()
    assert (mass <= low * b.exp() * (1 + 1e-6)).all()


ROUNDING = {torch.float64: 2**-53, torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([*KINDS, "nearly equal"]),
    st.sampled_from([1e-7, 1e-5, 1e-3, 1e-2]),
    st.integers(0, 10**6),
    st.sampled_from([1.0, 30.0, 100.0, 5e3, 1e5]),
    st.sampled_from([0, 1e-4, 1e-2]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float16]),
    st.sampled_from(["torch", "numba"]),
)
def test_the_proven_error_holds_for_what_is_stored_in_any_type(kind, spread, seed, beta, epsilon, dtype, kernels):
    """Keys so close together that their cosines are equal, keys that are longer than 1 once rounded, sharp queries."""
    if kind == "nearly equal":
        keys, values = draw("random", 150, seed=seed)
        keys = F.normalize(keys[:, :, :1] + spread * keys, dim=-1)
    else:
        keys, values = draw(kind, 150, seed=seed)
    values = values + 3 * keys.roll(1, -1)
    q = (beta * (keys[:, :, seed % 150] if seed % 2 else F.normalize(torch.randn(1, 2, 8).double(), dim=-1))).to(dtype)
    q = q.nan_to_num(posinf=6e4, neginf=-6e4)  # float16
    keys, values = keys.to(dtype), values.to(dtype)
    read_settings = SublinearRead(budget=8, epsilon=epsilon, cluster_size=4, segment=16)
    found, _, _ = by_clusters(q, keys, values, read_settings, "torch" if dtype == torch.float16 else kernels)
    assert found.dtype == dtype
    found, values = found.double(), values.double()
    error = (found - exact(q.double(), keys.double(), values)).norm(dim=-1)
    unit = values.norm(dim=-1).amax(-1) + found.norm(dim=-1)
    assert (error <= max(epsilon, 2 * ROUNDING[dtype] + 1e-12 * beta) * unit).all()


def test_a_budget_reads_so_many_and_is_near():
    """Clustered keys: a few clusters and the summaries of the rest give the exact read but for a percent."""
    keys, values = draw("clusters", 2048)
    values = values * 0.1 + keys.roll(1, -1)  # values that follow their keys, as far as they can
    q = 12 * keys[:, :, 77]
    expected = exact(q, keys, values)
    found, clusters, _ = by_clusters(q, keys, values, SublinearRead(budget=64, cluster_size=8, segment=1024))
    assert clusters.share == 64 / 2048
    assert (found - expected).norm() <= 0.01 * expected.norm()
    whole, clusters, _ = by_clusters(q, keys, values, SublinearRead(budget=2048, cluster_size=8, segment=1024))
    assert torch.allclose(whole, expected, atol=1e-12)
    assert clusters.share == 1


def test_second_moments_correct_the_summaries():
    """A flat read of values that depend on their keys: far nearer than by means (an epsilon that asks nothing)."""
    keys, _ = draw("random", 4096)
    values = keys @ torch.randn(8, 8, dtype=torch.float64) + 0.3
    q = 2 * keys[:, :, 9]
    expected = exact(q, keys, values)
    errors = []
    for epsilon in (None, 1e9):
        found, _, _ = by_clusters(
            q, keys, values, SublinearRead(budget=16, epsilon=epsilon, cluster_size=16, segment=4096)
        )
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert errors[0] < 0.02
    assert errors[1] > 5 * errors[0]


@pytest.mark.parametrize("count", [64, 100, 127, 128, 448, 449])
def test_segments_grow_and_merge(count):
    """Filled little by little, with clusters of all ages: sizes are binary digits, nothing is lost."""
    read_settings = SublinearRead(budget=16, epsilon=0.0, cluster_size=4, segment=64)
    keys, values = draw("random", 452)
    keys, values = keys.float(), values.float()
    clusters, buffers = KeyClusters(read_settings), (keys.clone(), values.clone())
    for readable in range(64, count + 1):
        clusters.extend(*buffers, readable)
    units = count // 64
    assert clusters.sizes == [64 << i for i in (2, 1, 0) if units >> i & 1]
    assert torch.equal(clusters.in_time(buffers[0]), keys)
    assert torch.equal(clusters.in_time(buffers[1]), values)
    q = 20 * keys[:, :, 5]
    found = clusters.read(q, *buffers, count, torch.zeros(1, dtype=torch.long))
    assert torch.allclose(found, exact(q, keys[:, :, :count], values[:, :, :count]), atol=1e-5)


CONFIG = {"vocab_size": 40, "layers": 2, "dim": 24, "heads": 3, "persistent_dim": 40, "inference_delay": 9}
SETTINGS = SublinearRead(budget=8, epsilon=0.0, cluster_size=4, segment=16)


def network(**more):
    torch.manual_seed(0)
    return MemoryMosaicConfig(**{**CONFIG, "short_term_window": 20, **more}).build().double().eval()


def decode(model, state, tokens, starts=None):
    with torch.inference_mode():
        return torch.cat(
            [
                model(tokens[:, t : t + 1], state=state, starts=None if starts is None else starts[:, t : t + 1])
                for t in range(tokens.shape[1])
            ],
            1,
        )


@pytest.mark.parametrize("restarts", ["none", "one row", "all rows", "anywhere"])
@pytest.mark.parametrize("levels", [("long", "short"), ("full",)])
def test_decoding_with_exact_sublinear_reads(levels, restarts):
    model = network(levels=levels)
    tokens = torch.randint(40, (2, 130))
    starts = torch.zeros(2, 130, dtype=torch.bool)
    if restarts == "anywhere":
        starts = torch.rand(2, 130) < 0.02
    elif restarts != "none":
        starts[0 if restarts == "one row" else slice(None), 57] = True
    state, plain = model.new_state(2, sublinear=SETTINGS), model.new_state(2)
    for part, begun in ((tokens[:, :75], starts[:, :75]), (tokens[:, 75:82], starts[:, 75:82])):
        with torch.inference_mode():
            a, b = model(part, state=state, starts=begun), model(part, state=plain, starts=begun)
        assert torch.allclose(a, b, atol=1e-9)
    assert torch.allclose(
        decode(model, state, tokens[:, 82:], starts[:, 82:]), decode(model, plain, tokens[:, 82:], starts[:, 82:]),
        atol=1e-9,
    )  # fmt: skip
    if restarts != "anywhere":
        assert state.parts[f"blocks.0.contextual.{levels[0]}"].pairs.clusters.sizes


def test_a_state_with_clusters_is_saved_forked_and_rewound():
    """What is saved lies in the order of the tokens, so that a state with or without clusters goes on from it."""
    model = network()
    tokens = torch.randint(40, (2, 140))
    state, plain = model.new_state(2, sublinear=SETTINGS), model.new_state(2)
    decode(model, state, tokens[:, :80]), decode(model, plain, tokens[:, :80])
    for name, x in plain.tensors().items():
        assert torch.allclose(state.tensors()[name], x, atol=1e-12), name
    loaded = model.new_state(2, sublinear=SETTINGS)
    loaded.load({name: x.clone() for name, x in state.tensors().items()})
    forked = state.rows(torch.tensor([1, 0]), model.new_state(2))
    mark = state.mark()
    expected = decode(model, plain, tokens[:, 80:])
    for other, order in ((loaded, [0, 1]), (forked, [1, 0])):
        assert torch.allclose(decode(model, other, tokens[order, 80:])[order], expected, atol=1e-9)
    decode(model, state, tokens[:, 5:60], torch.arange(55).expand(2, 55) == 7)
    state.rewind(mark)
    assert torch.allclose(decode(model, state, tokens[:, 80:]), expected, atol=1e-9)


def test_in_bfloat16():
    """Sums are taken in float32; what is left is the rounding of the answer's parts."""
    keys, values = draw("clusters", 512)
    q = 20 * keys[:, :, 77]
    low = [x.bfloat16() for x in (q, keys, values)]
    found, _, _ = by_clusters(*low, SublinearRead(budget=64, epsilon=0.01, cluster_size=8, segment=256))
    assert found.dtype == torch.bfloat16
    expected = exact(*(x.double() for x in low))
    assert (found - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("prompt", [torch.bfloat16, torch.float32])
def test_under_autocast(prompt, kernels):
    """As commands compute on a GPU; it may also begin after the prompt."""
    model = network().float()
    set_kernels(model, kernels)
    tokens = torch.randint(40, (1, 110))
    found = []
    for state in (model.new_state(sublinear=SETTINGS), model.new_state()):
        with torch.inference_mode(), torch.autocast("cpu", enabled=prompt == torch.bfloat16):
            model(tokens[:, :80], state=state)
        with torch.autocast("cpu"):
            found.append(decode(model, state, tokens[:, 80:]))
    assert (found[0] - found[1]).abs().max() <= 0.06 * found[1].abs().max()


def test_mistakes():
    nan = float("nan")
    for wrong in (
        {"cluster_size": 1},
        {"budget": 3},
        {"segment": 48},
        {"segment": 100},
        {"epsilon": -0.1},
        {"epsilon": nan},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SublinearRead(**wrong)
    transformer = TransformerConfig(**{k: v for k, v in CONFIG.items() if k != "inference_delay"}).build()
    with pytest.raises(UserError, match="this network has none"):
        transformer.new_state(sublinear=SETTINGS)
    with pytest.raises(UserError, match="this network has none"):
        network(levels=("short",)).new_state(sublinear=SETTINGS)

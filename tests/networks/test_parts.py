"""The parts of docs/extending.md, in a module outside the package: named in a configuration, no line changed here."""

import sys
from dataclasses import replace

import pytest
import torch
from documented_modules import documented_modules
from small_networks import SMALL, SPANS, run

from mm_lightning.checkpoint import METADATA_KEY, load_weights, network_metadata
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.memory.keys import Keys
from mm_lightning.memory.retrieval import SoftmaxRetrieval
from mm_lightning.memory.sublinear.key_clusters import SublinearRead
from mm_lightning.networks import MemoryMosaicConfig, NetworkConfig
from mm_lightning.networks.config_dict import config_from_dict
from mm_lightning.networks.cost import forward_flops_per_token, module_costs, parameters
from mm_lightning.training.activation_memory import activation_bytes_per_token
from mm_lightning.user_classes import load_class

MINE = {
    "keys": {"class_path": "mine_of_docs.LastThree"},
    "bandwidth": {"class_path": "mine_of_docs.OfTheToken", "init_args": {"offset": 0.5}},
    "values": {"class_path": "mine_of_docs.Raw"},
    "retrieval": {"class_path": "mine_of_docs.Cauchy"},
    "persistent": {"class_path": "mine_of_docs.SquaredReLU", "init_args": {"hidden": 40}},
}
DERIVED = """
from dataclasses import dataclass, field

import torch

from mm_lightning import networks
from mm_lightning.memory.keys import GatedKeys


class Turned(GatedKeys):
    def __init__(self, dim, heads, std):
        super().__init__(dim, heads, std(dim))

    def forward(self, x, beta, documents, carried=None):
        return [y + 0.5 * y.roll(1, -1) for y in super().forward(x, beta, documents, carried)]


class Stretched(GatedKeys):
    def __init__(self, dim, heads, std):
        super().__init__(dim, heads, std(dim))

    def keys(self, x, documents, carried):
        return 2 * super().keys(x, documents, carried)


class Projected(GatedKeys):
    def __init__(self, dim, heads, std):
        super().__init__(dim, heads, std(dim))
        self.register_buffer("projection", torch.randn(dim, dim))
        self.register_buffer("seen", torch.tensor(1_000_001))

    def keys(self, x, documents, carried):
        return super().keys(x @ self.projection, documents, carried)


@dataclass
class DerivedConfig(networks.MemoryMosaicConfig):
    inner: int = field(init=False, repr=False)

    def __post_init__(self):
        super().__post_init__()
        self.inner = 2 * self.persistent_dim

    def build(self):
        return networks.MemoryMosaicConfig(self.vocab_size, self.layers, self.dim, self.heads, self.inner).build()


class Outer:
    class Inner(GatedKeys):
        pass

    @dataclass
    class InnerConfig(networks.MemoryMosaicConfig):
        pass
"""
"""Keys derived from those of equation (8), which the compiled decoding step must leave to them."""

CASES = {
    **{name: {name: spec} for name, spec in MINE.items()},
    "all": MINE,
    "derived": {"keys": {"class_path": "mine_derived.Turned"}},
    "stretched": {"keys": {"class_path": "mine_derived.Stretched"}},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    modules = documented_modules()
    (tmp_path / "mine_of_docs.py").write_text(modules["mine.py"], encoding="utf-8")
    (tmp_path / "mine_parallel.py").write_text(modules["mine_parallel.py"], encoding="utf-8")
    (tmp_path / "mine_derived.py").write_text(DERIVED, encoding="utf-8")
    (tmp_path / "mine_broken.py").write_text("import torch\nimport numpi\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(params=CASES.values(), ids=CASES)
def config(request):
    return MemoryMosaicConfig(**SMALL, **SPANS, **request.param)


def test_they_learn(config, build, packed):
    network = build(config)
    tokens, documents = packed(config, 2, 60, 0.05)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for step in range(12):
        loss = network(tokens, documents, tokens, **network.step_randomness(0, step))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_they_decode_as_they_read(config, build, packed):
    """At every position, in documents that begin anywhere."""
    network = build(config, torch.float64).eval()
    tokens, documents = packed(config, 2, 50, 0.06)
    with torch.no_grad():
        whole = network(tokens, documents)
    for pieces in ([1] * 50, [30, 7, 1, 1, 11]):
        found = run(network, tokens, pieces, documents.position == 0)
        assert torch.allclose(found, whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["Turned", "Stretched"])
def test_what_a_derived_class_changes_counts(name, build, packed):
    published, own = (
        build(MemoryMosaicConfig(**SMALL, **SPANS, keys=keys)).eval()
        for keys in ("gated", {"class_path": f"mine_derived.{name}"})
    )
    own.load_state_dict(published.state_dict())
    tokens, documents = packed(own.config, 1, 40, 0)
    with torch.no_grad():
        assert (own(tokens, documents) - published(tokens, documents)).abs().max() > 1e-3


def test_documents_are_alone(config, build, packed):
    network = build(config, torch.float64).eval()
    tokens, documents = packed(config, 1, 40, 0.1)
    begin = documents.lengths[0]
    with torch.no_grad():
        assert torch.allclose(network(tokens, documents)[:, begin:], network(tokens[:, begin:], _rest(documents)))


def _rest(documents):
    return type(documents).from_starts(documents.starts[:, documents.lengths[0] :])


def test_they_are_described_counted_and_saved(config, build):
    network = build(config)
    again = config_from_dict(config.to_dict())
    assert again == config
    again.build().load_state_dict(network.state_dict())
    assert parameters(config) == sum(p.numel() for p in network.parameters())
    assert forward_flops_per_token(config, 8) == sum(part.forward_flops(8) for part in module_costs(config))
    if isinstance(config.persistent, dict):
        part = {part.name: part for part in module_costs(config)}["persistent memory"]
        assert part.active == part.parameters == config.layers * 2 * config.dim * 40


def test_their_activations_are_counted():
    """A block keeps the squared-ReLU memory's input before and after the norm, and its hidden units twice."""

    def kept(persistent):
        config = MemoryMosaicConfig(**SMALL, **SPANS, persistent=persistent)
        return activation_bytes_per_token(config, 2, 4, False)

    layers, dim, hidden = SMALL["layers"], SMALL["dim"], 40
    assert kept(MINE["persistent"]) - kept("none") == layers * (4 * dim + 2 * dim + 2 * 2 * hidden)


def test_states_are_forked_and_loaded(config, build, packed):
    network = build(config, torch.float64).eval()
    tokens, _ = packed(config, 2, 40, 0)
    state = network.new_state(2)
    run(network, tokens[:, :25], [20, 5], state=state)
    loaded = network.new_state(2)
    loaded.load({name: x.clone() for name, x in state.tensors().items()})
    mark = state.mark()
    expected = run(network, tokens[:, 25:], [1] * 15, state=state)
    assert torch.equal(run(network, tokens[:, 25:], [1] * 15, state=loaded), expected)
    state.rewind(mark)
    assert torch.allclose(run(network, tokens[:, 25:], [7, 8], state=state), expected, atol=1e-9, rtol=0)


def test_a_network_of_their_own(build, packed):
    """Decodes as it reads, and is known by its module in what a checkpoint says."""
    kind = load_class("mine_parallel.ParallelConfig", NetworkConfig)
    config = kind(**SMALL)
    network = build(config, torch.float64).eval()
    assert config.to_dict()["class"] == "mine_parallel.ParallelConfig"
    assert config_from_dict(config.to_dict()) == config
    assert parameters(config) == sum(p.numel() for p in network.parameters())
    tokens, documents = packed(config, 2, 40, 0.1)
    with torch.no_grad():
        whole = network(tokens, documents)
    assert torch.allclose(run(network, tokens, [20, *[1] * 20], documents.starts), whole, atol=1e-9, rtol=0)


def test_buffers_are_kept_like_parameters(tmp_path, build):
    config = MemoryMosaicConfig(**SMALL, **SPANS, keys={"class_path": "mine_derived.Projected"})
    network, path, exported = build(config), tmp_path / "step=1.ckpt", tmp_path / "weights.safetensors"
    weights = {f"network.{name}": x for name, x in network.state_dict().items()}
    torch.save({"state_dict": weights, METADATA_KEY: network_metadata(config, None, None)}, path)
    arguments = ["--checkpoint", str(path), "--output", str(exported), "--dtype", "bfloat16"]
    assert main(["checkpoint", "consolidate", *arguments]) == 0
    for source, tolerance in ((path, 0), (exported, 0.02)):
        torch.manual_seed(1)
        loaded = config.build()
        load_weights(loaded, source)
        for name, x in network.state_dict().items():
            other = loaded.state_dict()[name]
            assert torch.allclose(other, x, rtol=tolerance, atol=tolerance)
            assert other.dtype == x.dtype
            assert x.is_floating_point() or torch.equal(other, x)


def test_a_class_within_a_class_is_found_again():
    assert load_class("mine_derived.Outer.Inner", Keys).__qualname__ == "Outer.Inner"
    config = load_class("mine_derived.Outer.InnerConfig", NetworkConfig)(**SMALL)
    assert config_from_dict(config.to_dict()) == config


def test_a_class_of_a_name_that_is_taken_and_with_a_field_that_follows_from_others():
    kind = load_class("mine_derived.DerivedConfig", NetworkConfig)
    config = kind(**SMALL)
    assert config_from_dict(config.to_dict()) == config
    published, name = MemoryMosaicConfig(**SMALL), kind.__qualname__
    kind.__qualname__ = "MemoryMosaicConfig"  # for a while: parsers of later tests would find two of this name
    more = parameters(config) - parameters(published)
    kind.__qualname__ = name
    assert more == 3 * SMALL["layers"] * SMALL["dim"] * SMALL["persistent_dim"]


@pytest.mark.parametrize("case", ["retrieval", "keys", "derived"])
def test_sublinear_reads_refuse_what_they_do_not_know(build, case):
    with pytest.raises(UserError, match="sub-linear reads"):
        build(MemoryMosaicConfig(**SMALL, **CASES[case])).new_state(sublinear=SublinearRead())


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"keys": {"class_path": "nowhere.Keys"}}, ["nowhere.Keys", "folder of nowhere.py", "PYTHONPATH"]),
        ({"keys": {"class_path": "mine_broken.Keys"}}, ["mine_broken.Keys", "mine_broken.py, line 2", "'numpi'"]),
        ({"keys": {"class_path": "mine_of_docs.Raw"}}, ["mine_of_docs.Raw", "memory.keys.Keys"]),
        ({"persistent": {"class_path": "mine_of_docs.SquaredReLU", "init_args": {"wide": 1}}}, ["wide", "init_args"]),
        ({"bandwidth": {"class": "mine_of_docs.OfTheToken"}}, ["bandwidth", "class_path"]),
        ({"values": MINE["values"], "value_scale": "exp"}, ["value_scale", "got True and exp", "init_args"]),
        ({"values": MINE["values"], "look_ahead": False}, ["look_ahead", "got False", "init_args"]),
        ({"retrieval": MINE["retrieval"], "dropout": 0.1}, ["Cauchy has no dropout of retrieval weights", "0.1"]),
    ],
)
def test_mistakes(part, words):
    with pytest.raises(UserError) as error:
        replace(MemoryMosaicConfig(**SMALL), **part).build()
    assert all(word in str(error.value) for word in words)


def test_answers_that_would_never_be_asked_for_are_refused():
    with pytest.raises(UserError, match="Halved defines answers that fused reads never ask for"):
        type("Halved", (SoftmaxRetrieval,), {"answer": lambda self, q, k, v, seen: 0.5 * v})


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_beside.py").write_text((tmp_path / "mine_parallel.py").read_text())
    (tmp_path / "a.yaml").write_text("model: {network: {class_path: mine_beside.ParallelConfig}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [place for place in sys.path if place not in ("", str(tmp_path))])
    assert main(["cost", "--config", "a.yaml", "--data.path", "none", "--trainer.devices", "1"]) == 0
    assert "attention" in capsys.readouterr().out

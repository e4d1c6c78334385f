"""model.compile: the same training, a number of graphs that neither documents nor m add to, the same checkpoints."""

import itertools

import pytest
import torch
from launch import mm
from runs import metrics
from torch._dynamo.utils import counters

from mm_lightning.checkpoint import find_checkpoint, load_network
from mm_lightning.cli import main
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig, block

SMALL = {"vocab_size": 40, "layers": 4, "dim": 16, "heads": 2, "persistent_dim": 24, "short_term_window": 8}


@pytest.fixture
def quick(monkeypatch):
    """Traced as ever, and run by torch's own operations, which takes no compiler."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend="aot_eager"))
    block._compiled.cache_clear()
    torch._dynamo.reset()
    yield
    block._compiled.cache_clear()
    torch._dynamo.reset()


def losses(config, on: bool, checkpointing: bool) -> list[float]:
    """Of three steps with other documents and another m each."""
    torch.manual_seed(0)
    network = config.build()
    network.activation_checkpointing = checkpointing
    names = list(network.state_dict())
    block.set_compiled(network, on)
    assert list(network.state_dict()) == names
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    found = []
    for step in range(3):
        tokens = torch.randint(40, (2, 33), generator=generator)
        documents = Documents.from_starts(torch.rand(2, 32, generator=generator) < 0.1)
        targets = tokens[:, 1:].contiguous()
        loss = network(tokens[:, :-1], documents, targets, **network.step_randomness(1, step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


GRAPHS = {
    "mosaic": (MemoryMosaicConfig(**SMALL, long_term_delay=(2, 9)), 2),
    "transformer": (TransformerConfig(**SMALL), 3),
    "experts": (MemoryMosaicConfig(**SMALL, long_term_delay=(2, 9), persistent="experts"), 1),
}
FAST = {("mosaic", False), ("mosaic", True), ("mosaic", "selective"), ("transformer", "selective"), ("experts", True)}


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
        for case in itertools.product(GRAPHS, (False, True, "selective"))
    ],
)
def test_blocks_share_graphs_that_documents_and_delays_do_not_add_to(quick, name, checkpointing):
    config, graphs = GRAPHS[name]
    eager = losses(config, False, checkpointing)
    counters.clear()
    assert losses(config, True, checkpointing) == pytest.approx(eager, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_evaluation_is_not_compiled(quick):
    network = MemoryMosaicConfig(**SMALL).build()
    block.set_compiled(network)
    counters.clear()
    with torch.no_grad():
        network(torch.zeros(1, 5, dtype=torch.int64))
    assert not counters["stats"]


def test_what_cannot_be(tiny, capsys):
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert main(["fit", "--config", str(tiny), "--model.compile", "true"]) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err


def train(tiny, tmp_path, name, *more):
    done = mm("fit", "--config", str(tiny), "--run", str(tmp_path / name), *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return tmp_path / name / "0"


COMPILED = ("--model.compile", "true")


def same(one, two, rel=1e-4):
    for name in ("train/loss", "validation/loss"):
        a, b = metrics(one, name), metrics(two, name)
        assert b.keys() == a.keys()
        assert list(b.values()) == pytest.approx(list(a.values()), rel=rel), name


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), *(("--model.activation_checkpointing", kind) for kind in ("true", "selective"))])
def test_a_compiled_run_learns_the_same_and_resumes_exactly(tiny, tmp_path, more):
    alone = train(tiny, tmp_path, "alone")
    compiled = train(tiny, tmp_path, "compiled", *COMPILED, *more)
    same(alone, compiled)
    weights = [load_network(folder)[0].state_dict() for folder in (alone, compiled)]
    assert list(weights[0]) == list(weights[1])
    before = metrics(compiled)
    find_checkpoint(compiled).unlink()  # of step 6: step 3 is the newest
    train(tiny, tmp_path, "compiled", *COMPILED, *more, "--resume")
    assert metrics(compiled) == before
    again = load_network(compiled)[0].state_dict()
    assert all(torch.equal(again[name], weights[1][name]) for name in again)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
def test_two_processes(tiny, tmp_path, strategy):
    devices = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.micro_batch_size", "2"]
    same(train(tiny, tmp_path, "alone"), train(tiny, tmp_path, "together", *COMPILED, *devices))


@pytest.mark.slow
def test_not_for_zero_3(tiny, tmp_path):
    strategy = ("--trainer.strategy", "deepspeed_stage_3")
    done = mm("fit", "--config", str(tiny), "--run", str(tmp_path / "run"), *COMPILED, *strategy)
    assert done.returncode != 0
    assert "model.compile is not for ZeRO-3" in done.stderr

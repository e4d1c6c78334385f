"""`mm benchmark retrieval`, as typed, on a network that knows nothing."""

import importlib.util
import json
import random

import pytest
import torch

from mm_lightning.cli import main
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.experiments.benchmark.harness import Benchmark, Options
from mm_lightning.experiments.benchmark.retrieval import Stored, fill, measure_layer, over_layers, read_tokens
from mm_lightning.memory.sublinear.key_clusters import SublinearRead
from mm_lightning.networks import MemoryMosaicConfig


@pytest.fixture
def network(monkeypatch):
    """What any checkpoint is taken for."""
    torch.manual_seed(0)
    config = MemoryMosaicConfig(vocab_size=258, layers=1, dim=8, heads=1, persistent_dim=8, inference_delay=5)
    network = config.build().eval()
    loaded = network, load_tokenizer("bytes")
    monkeypatch.setattr("mm_lightning.checkpoint.load_network", lambda path, device: loaded)
    return network


@pytest.fixture
def text(tmp_path):
    words = random.Random(0).choices(["one", "two", "three", "nine"], k=1200)
    path = tmp_path / "words.txt"
    path.write_text(" ".join(words))
    return str(path)


def test_the_table(network, text, tmp_path, capsys):
    output = tmp_path / "result.json"
    args = ["--checkpoint", "any", "--text", text, "--pairs", "4100", "--queries", "1", "--context", "500"]
    args += ["--budgets", "512", "--epsilons", "[]", "--index", "[]", "--output", str(output)]
    assert main(["benchmark", "retrieval", *args]) == 0
    assert "all layers" in capsys.readouterr().out
    rows = {(row["layer"], row["case"]): row for row in json.loads(output.read_text())["rows"]}
    assert list(dict.fromkeys(layer for layer, _ in rows)) == ["blocks.0.contextual.long", "random keys", "all layers"]
    for layer in ("blocks.0.contextual.long", "random keys", "all layers"):
        assert rows[layer, "budget 512"]["share"] == pytest.approx((512 + 4) / 4100)
        assert rows[layer, "exact"]["error"] == 0
        assert rows[layer, "exact"]["speedup"] == 1


def test_errors_of_reads_of_one_memory():
    keys = torch.nn.functional.normalize(torch.randn(1, 2, 260, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    stored = Stored(keys, keys.flip(2), lambda pairs, state: torch.full((1, 1, 2), 3.0))
    methods = {"all": SublinearRead(256, segment=64), "proven": SublinearRead(16, epsilon=0.0, segment=64)}
    methods["few"] = SublinearRead(16, segment=64)
    kinds = ["hnsw"] if importlib.util.find_spec("faiss") else []
    bench = Benchmark("retrieval", Options(repeats=3), {})
    with torch.inference_mode():
        rows = {row["case"]: row for row in measure_layer(bench, "long", stored, 256, methods, kinds, 256)}
    assert rows["all"]["error"] < 1e-5
    assert rows["proven"]["error"] < 1e-5
    assert 1e-4 < rows["few"]["error"] < rows["few"]["error_99"] < 1
    assert rows["few"]["share"] == 16 / 256
    assert len(rows["few"]["errors"]) == 3 * 2
    if kinds:  # asked for all neighbors
        assert rows["faiss hnsw"]["error"] < 0.1


def test_sums_over_layers():
    def layer(seconds, errors):
        row = {"pairs": 9, "layer": "x", "case": "", "share": 0.5}
        return [{**row, "median_seconds": s, "errors": e} for s, e in zip(seconds, errors, strict=True)]

    exact, fast = over_layers([layer([4, 1], [[0.0], [0.2]]), layer([2, 2], [[0.0], [0.4]])])
    assert (exact["median_seconds"], exact["speedup"]) == (6, 1)
    assert (fast["median_seconds"], fast["speedup"]) == (3, 2)
    assert fast["error"] == pytest.approx(0.3)
    assert exact["layer"] == "all layers"


def test_what_a_memory_is_filled_with(network, text):
    tokens = read_tokens(text, load_tokenizer("bytes"), 1500, 600, 0)
    assert tokens.shape == (3, 600)
    with torch.inference_mode():
        stored = fill(network, tokens)["blocks.0.contextual.long"]
        state = network.new_state(1)
        network(tokens[1:2], state=state)
    pairs = state.parts["blocks.0.contextual.long"].pairs.tensors()
    assert torch.allclose(stored.keys[0, :, 600:1200], pairs["keys"][0], atol=1e-6)
    assert torch.allclose(stored.values[0, :, 600:1199], pairs["values"][0, :, :-1], atol=1e-5)


def test_mistakes(network, text, capsys):
    for args, message in (
        (["--pairs", "100"], "at least 4,096"),
        (["--pairs", "5000000"], "has 5"),
        (["--dim", "8"], "does not depend on dim"),
        (["--config", "x.yaml"], "does not depend on config"),
    ):
        assert main(["benchmark", "retrieval", "--checkpoint", "any", "--text", text, *args]) == 2
        assert message in capsys.readouterr().err

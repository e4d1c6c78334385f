"""`mm benchmark retrieval`, as typed, on a network that knows nothing."""

import importlib.util
import json
import random

import pytest
import torch

from mm_lightning.cli import main
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.experiments.benchmark.retrieval import fill, read_tokens
from mm_lightning.networks import MemoryMosaicConfig


@pytest.fixture
def network(monkeypatch):
    """What any checkpoint is taken for."""
    torch.manual_seed(0)
    config = MemoryMosaicConfig(vocab_size=258, layers=2, dim=16, heads=2, persistent_dim=8, inference_delay=5)
    network = config.build().eval()
    found = network, load_tokenizer("bytes")
    monkeypatch.setattr("mm_lightning.checkpoint.load_network", lambda path, device: found)
    return network


@pytest.fixture
def text(tmp_path):
    words = random.Random(0).choices(["one", "two", "three", "nine"], k=1200)
    path = tmp_path / "words.txt"
    path.write_text(" ".join(words))
    return str(path)


def test_the_table(network, text, tmp_path, capsys):
    output = tmp_path / "result.json"
    index = '["ivf","hnsw"]' if importlib.util.find_spec("faiss") else "[]"
    args = ["--checkpoint", "any", "--text", text, "--pairs", "4100", "--queries", "2", "--context", "600"]
    args += ["--budgets", "[512,4096]", "--epsilons", "[0.0]", "--index", index, "--output", str(output)]
    assert main(["benchmark", "retrieval", *args]) == 0
    assert "all layers" in capsys.readouterr().out
    result = json.loads(output.read_text())
    assert [x["layer"] for x in result["layers"]] == [f"blocks.{i}.contextual.long" for i in (0, 1)] + ["random keys"]
    for found in result["layers"]:
        methods = found["methods"]
        assert methods["budget 512"]["share"] == pytest.approx((512 + 4) / 4100)
        for exact in ("budget 4,096", "epsilon 0"):
            assert methods[exact]["error"] < 1e-4
        assert all(row["milliseconds"] > 0 for row in methods.values())
        if "faiss hnsw" in methods:  # asked for 4096 of 4100 neighbours
            assert methods["faiss hnsw"]["error"] < 0.1


def test_what_a_memory_is_filled_with(network, text):
    tokens = read_tokens(text, load_tokenizer("bytes"), 1500, 600, 0)
    assert tokens.shape == (3, 600)
    with torch.inference_mode():
        filled = fill(network, tokens)["blocks.1.contextual.long"]
        state = network.new_state(1)
        network(tokens[1:2], state=state)
    stored = state.parts["blocks.1.contextual.long"].pairs.tensors()
    assert torch.allclose(filled.keys[0, :, 600:1200], stored["keys"][0], atol=1e-6)
    assert torch.allclose(filled.values[0, :, 600:1199], stored["values"][0, :, :-1], atol=1e-5)


def test_mistakes(network, text, capsys):
    for args, message in ((["--pairs", "100"], "at least 4,096"), (["--pairs", "5000000"], "has 5")):
        assert main(["benchmark", "retrieval", "--checkpoint", "any", "--text", text, *args]) == 2
        assert message in capsys.readouterr().err

"""`mm inspect`: the page stands alone, its numbers are the network's, and mistakes are named."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from byte_networks import CONFIGS, STATES, build, network, tokenizer  # noqa: F401

from mm_lightning.cli import main
from mm_lightning.inspection.page import pieces_of, texts_of
from mm_lightning.inspection.reads import watch_reads
from mm_lightning.inspection.trace import LEAST, STEPS, encode_weights, page_budget, unpacked
from mm_lightning.networks import GatedDeltaNetConfig

TEXT = "the cat sat on a </script> mat, the cät sat on"


def decode_weights(codes):
    """As data.js does."""
    return torch.where(codes < LEAST, 2 ** (-codes.double() / STEPS), 0)


@pytest.fixture
def run(monkeypatch, tokenizer, tmp_path):  # noqa: F811
    """Runs the command with a network in the place of a checkpoint's; returns the page's data and its text."""

    def run(model, *args):
        monkeypatch.setattr("mm_lightning.checkpoint.load_network", lambda *_: (model, tokenizer))
        output = tmp_path / "page.html"
        assert main(["inspect", "runs/x", "--output", str(output), "--device", "cpu", *map(str, args)]) == 0
        page = output.read_text(encoding="utf-8")
        return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1]), page

    return run


class Addresses(HTMLParser):
    """Collects whatever could make a browser fetch something."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [(tag, name) for name, _ in attrs if name in ("src", "href", "srcset", "action", "poster")]


def test_the_page_needs_nothing_else(run, network):  # noqa: F811
    _, page = run(network, "--prompt", TEXT)
    addresses = Addresses()
    addresses.feed(page)
    assert addresses.found == []
    assert addresses.tags.count("script") == 2  # data and program: the text's own did not end one
    assert not {"link", "img", "iframe", "base"} & set(addresses.tags)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket", page)
    assert [x for x in re.findall(r"https?://[^\s\"']+", page) if "www.w3.org/2000/svg" not in x] == []
    assert "default-src 'none'" in page


@pytest.mark.parametrize("name", [*CONFIGS, *STATES])
@pytest.mark.parametrize("pairs", [None, 4])
def test_numbers_are_the_network_s(run, tokenizer, name, pairs):  # noqa: F811
    model = build(name)
    data, _ = run(model, "--prompt", TEXT, *([] if pairs is None else ["--pairs", pairs]))
    tokens = [tokenizer.bos, *TEXT.encode()]
    assert data["tokens"] == tokens
    seen = []
    with torch.no_grad(), watch_reads(model, seen.append):
        logits = model(torch.tensor([tokens]))[0]
    time = len(tokens)
    assert [(m["layer"], m["level"]) for m in data["memories"]] == [(r.layer, r.level) for r in seen]
    for memory, read in zip(data["memories"], seen, strict=True):
        ((_, weights),) = read.weights()
        weights = weights[0]
        kept = read.span.count(torch.arange(time)).clamp(max=data["pairs"]).tolist()
        ages = unpacked(memory["ages"]).long().split(kept, 1)
        found = decode_weights(unpacked(memory["codes"])).split(kept, 1)
        for t in range(time):
            top = weights[:, t].topk(kept[t], -1).values
            assert torch.allclose(found[t], top, rtol=2e-4, atol=1e-6)
            assert torch.allclose(weights[:, t].gather(-1, t - ages[t]), top)
            readable = range(read.span.delay, read.span.delay + int(read.span.count(torch.tensor(t))))
            assert set(ages[t].flatten().tolist()) <= set(readable)
            assert len(set(ages[t][0].tolist())) == kept[t]
            if pairs is None and kept[t]:
                assert torch.allclose(found[t].sum(-1), torch.ones(3, dtype=torch.float64), atol=2e-4)
        t, h = time - 1, 1
        w = [float(x) for x in weights[h, t] if x > 0]
        entropy = -sum(x * math.log(x) for x in w)
        assert math.isclose(float(unpacked(memory["effective"])[h, t]), math.exp(entropy), rel_tol=1e-5)
        distance = sum((t - i) * float(x) for i, x in enumerate(weights[h, t]))
        assert math.isclose(float(unpacked(memory["distance"])[h, t]), distance, rel_tol=1e-5)
        if read.beta is not None:
            for key, x in (("beta", read.beta), ("gate", read.gate), ("decay", read.decay)):
                assert torch.allclose(unpacked(memory[key]), x[0].T, rtol=1e-5)
            scalars = read.memory.scalars()
            for key in {"alpha", "alpha_psi", "gamma"} & scalars.keys():  # of the maps of layers and heads
                assert memory[key] == scalars[key].tolist()
    chances = logits.softmax(-1)
    assert torch.allclose(unpacked(data["probabilities"]), chances.topk(5).values, rtol=1e-5)
    loss = unpacked(data["loss"])
    assert torch.allclose(loss[:-1], -chances[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].log(), rtol=1e-5)
    assert loss[-1].isnan()
    assert (time, data["profile"]["distances"], data["profile"]["queries"]) == (48, 36, 13)


def test_a_part_of_the_text_and_of_the_layers(run, network, tmp_path, capsys):  # noqa: F811
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(3):
        (texts / f"{n}.txt").write_text("some words, " * 4 * n)
    settings = ["--max_tokens", 12, "--layers", "[1]", "--text", texts, "--text_tokens", 40]
    file = tmp_path / "text"
    file.write_text(TEXT)
    data, _ = run(network, "--file", file, *settings)
    assert len(data["tokens"]) == 12
    assert data["cut"] == len(TEXT.encode()) + 1 - 12
    assert {m["layer"] for m in data["memories"]} == {1}
    assert "12 tokens (the first of 48), 1 of 2 layers" in capsys.readouterr().out
    profile = data["profile"]
    assert (profile["documents"], profile["distances"], profile["queries"]) == (2, 30, 22)
    assert profile["means"]["long"]["shape"] == [2, 3, 30]


def test_characters_of_several_tokens(tokenizer):  # noqa: F811
    tokens = [tokenizer.bos, *"aä€".encode()]
    texts = texts_of(tokenizer, set(tokens))
    assert texts[ord("a")] == "a"
    assert pieces_of(tokenizer, tokens, texts) == ["<|begin_of_text|>", "a", "", "ä", "", "", "€"]


def test_weights_in_16_bits():
    weights = torch.tensor([1, 0.3, 1e-3, 4e-7, 1e-9, 0], dtype=torch.float64)
    found = decode_weights(encode_weights(weights))
    assert torch.allclose(found[:4], weights[:4], rtol=1.2e-4, atol=0)
    assert found[4:].tolist() == [0, 0]


def test_as_many_pairs_as_fit(network):  # noqa: F811
    assert page_budget(network, 100).pairs == 256
    longer = page_budget(network, 5_000)
    assert longer.pairs < 256
    assert longer.bytes <= 10_000_000


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prompt", ""], ["prompt is empty"]),
        ([], ["--prompt", "--file"]),
        (["--prompt", "a", "--file", "b"], ["one of them"]),
        (["--file", "missing.txt"], ["missing.txt"]),
        (["--prompt", "a", "--layers", "[2]"], ["from 0 to 1", "got 2"]),
        (["--prompt", "a", "--pairs", "0"], ["pairs takes a whole number of at least 1"]),
        (["--prompt", "a", "--max_tokens", "1"], ["max_tokens takes a whole number of at least 2"]),
        (["--prompt", "ab" * 20_000], ["MB", "--max_tokens", "--layers"]),
        (["--prompt", "ab" * 40_000, "--layers", "[0]"], ["65,536", "--max_tokens"]),
        (["--prompt", "a", "--text", "{texts}"], ["no document", "--text_tokens"]),
        (["--prompt", "a", "--output", "{texts}"], ["exists", "--overwrite"]),
    ],
)
def test_mistakes(monkeypatch, network, tokenizer, tmp_path, capsys, args, words):  # noqa: F811
    monkeypatch.setattr("mm_lightning.checkpoint.load_network", lambda *_: (network, tokenizer))
    texts = tmp_path / "short.txt"
    texts.write_text("short")
    output = [] if "--output" in args else ["--output", str(tmp_path / "page.html")]
    assert main(["inspect", "runs/x", *output, *(arg.replace("{texts}", str(texts)) for arg in args)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in words), message
    assert not (tmp_path / "page.html").exists()


def test_no_checkpoint(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none"), "--prompt", "a", "--output", str(tmp_path / "page.html")]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err


def test_networks_that_keep_a_state_instead_of_pairs(run, network, tokenizer, monkeypatch, capsys):  # noqa: F811
    """A hybrid shows the blocks with attention; without any the command says that there is nothing to show."""
    small = {"vocab_size": tokenizer.vocab_size, "layers": 2, "dim": 24, "heads": 3, "persistent_dim": 40}
    data, _ = run(GatedDeltaNetConfig(**small, attention_every=2).build().eval(), "--prompt", TEXT)
    assert [(memory["layer"], memory["level"]) for memory in data["memories"]] == [(1, "full")]
    model = GatedDeltaNetConfig(**small).build()
    monkeypatch.setattr("mm_lightning.checkpoint.load_network", lambda *_: (model, tokenizer))
    assert main(["inspect", "runs/x", "--prompt", TEXT, "--device", "cpu"]) == 2
    assert "no memory that reads pairs" in capsys.readouterr().err

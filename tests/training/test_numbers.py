"""The numbers that a run logs, against a plain loop in float64 that reads one document after the other."""

import json
import math

import pytest
import torch
import yaml
from runs import metrics
from torch.nn import functional as F

from mm_lightning.checkpoint import load_network
from mm_lightning.cli import main
from mm_lightning.data import Manifest
from mm_lightning.data.shards import read_shard
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.training.module import LanguageModule

BOS = 256
PEAK, WARMUP, STEPS, FINAL = 0.01, 2, 6, 0.01
CLIP, DECAY, BETAS, EPSILON = 0.5, 0.1, (0.9, 0.95), 1e-8


@pytest.fixture(scope="module")
def spied(tmp_path_factory, prepared):
    """A run of 6 steps of 3 accumulated batches, killed after 3 and resumed; every step is saved and logged."""
    from tiny_run import TINY

    folder = tmp_path_factory.mktemp("numbers")
    callbacks = [
        {"class_path": "Checkpoints", "init_args": {"every_n_steps": 1, "keep": 0}},
        {"class_path": "spies.BatchSpy", "init_args": {"file": str(folder / "batches")}},
        {
            "class_path": "Evaluation",
            "init_args": {"tasks": ["loss_by_position"], "settings": {"contexts": [64], "limit": 3}},
        },
    ]
    values = {"run": str(folder / "run"), **TINY, "data": {**TINY["data"], "path": str(prepared)}}
    values["data"] |= {"global_batch_size": 6, "micro_batch_size": 2, "validation_sequences": 7}
    values["trainer"] = {**TINY["trainer"], "callbacks": callbacks, "gradient_clip_val": CLIP}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(path)]) == 0
    run = folder / "run" / "0"
    for step in (4, 5, 6):  # as if it had been killed then
        (run / "checkpoints" / f"step={step}.ckpt").unlink()
    lines = (folder / "batches").read_text().splitlines()
    (folder / "batches").write_text("".join(f"{line}\n" for line in lines if json.loads(line)[0] <= 3))
    assert main(["fit", "--config", str(path), "--resume"]) == 0
    return folder


def documents(row):
    """A row of tokens as its documents, the first of which may have begun before."""
    begins = [n for n, token in enumerate(row) if token == BOS and n] + [len(row)]
    return [row[low:high] for low, high in zip([0, *begins], begins, strict=False)]


def nll(network, rows, **random):
    """The sum over predicted tokens of rows with one token more than the context, and their number."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        for document in documents(row):
            if len(document) < 2:
                continue
            tokens = torch.tensor(document)
            total = total + F.cross_entropy(network(tokens[None, :-1], **random)[0], tokens[1:], reduction="sum")
            count += len(document) - 1
    return total, count


def checkpoint(folder, step):
    path = folder / "run" / "0" / "checkpoints" / f"step={step}.ckpt"
    return load_network(path)[0].double(), torch.load(path, weights_only=True)


def stored(prepared, split):
    """The rows of 33 tokens of a split, in order."""
    manifest, rows = Manifest.load(prepared), []
    for shard in manifest.splits[split].shards:
        tokens = read_shard(prepared / split / shard.file, manifest.dtype, shard.tokens).tolist()
        rows += [tokens[at : at + 33] for at in range(0, len(tokens) - 32, 33)]
    return rows


def rate(step):
    """Of a step, counted from 1."""
    if step <= WARMUP:
        return PEAK * step / WARMUP
    done = (step - WARMUP - 1) / (STEPS - WARMUP - 1)
    return PEAK * (FINAL + (1 - FINAL) * (1 + math.cos(math.pi * done)) / 2)


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_a_step(spied, prepared, step):
    run = spied / "run" / "0"
    network, before = checkpoint(spied, step - 1)
    batches = [json.loads(line) for line in (spied / "batches").read_text().splitlines()]
    inputs = [row for n, rows in batches if n == step for row in rows]
    assert len(inputs) == 6
    whole = {tuple(row[:-1]): row for row in stored(prepared, "train")}
    rows = [whole[tuple(row)] for row in inputs]
    network.train()
    random = network.step_randomness(1, step - 1)
    total, count = nll(network, rows, **random)
    counts = [nll(network, rows[n : n + 2], **random)[1] for n in (0, 2, 4)]
    assert len(set(counts)) > 1 or step == 4, "accumulated batches should have uneven numbers of predicted tokens"
    assert metrics(run)[step] == pytest.approx(float(total / count), rel=1e-5)
    (total / (6 * 32)).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    assert norm > CLIP, "clipping should do something"
    assert metrics(run, "train/gradient_norm")[step] == pytest.approx(norm, rel=1e-4)
    assert metrics(run, "train/learning_rate")[step] == pytest.approx(rate(step), rel=1e-9)
    assert metrics(run, "train/tokens")[step] == step * 6 * 32
    # AdamW, with decay of matrices alone
    after, _ = checkpoint(spied, step)
    names = [n for n, p in network.named_parameters() if p.ndim > 1] + [
        n for n, p in network.named_parameters() if p.ndim < 2
    ]
    moments = before["optimizer_states"][0]["state"]
    assert len(moments) == len(names)
    for number, name in enumerate(names):
        p = dict(network.named_parameters())[name].detach()
        g = gradients[name] * CLIP / norm
        m = BETAS[0] * moments[number]["exp_avg"].double() + (1 - BETAS[0]) * g
        v = BETAS[1] * moments[number]["exp_avg_sq"].double() + (1 - BETAS[1]) * g.square()
        update = (m / (1 - BETAS[0] ** step)) / ((v / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
        wanted = p * (1 - rate(step) * DECAY * (p.ndim > 1)) - rate(step) * update
        found = dict(after.named_parameters())[name]
        assert float((found - wanted).abs().max()) < 0.02 * rate(step), name


def test_counts_are_logged_as_they_are(tiny, tmp_path, monkeypatch):
    """Lightning makes float32 of numbers, which cannot count beyond 2^24."""
    restore = LanguageModule.on_train_start

    def far_on(self):
        restore(self)
        self._tokens = 123_456_789_013

    monkeypatch.setattr(LanguageModule, "on_train_start", far_on)
    assert main(["fit", "--config", str(tiny), "--trainer.max_steps", "1"]) == 0
    assert metrics(tmp_path / "run" / "0", "train/tokens") == {1: 123_456_789_013 + 256}


def test_every_step_is_logged_once(spied):
    lines = [json.loads(line) for line in (spied / "run" / "0" / "metrics.jsonl").read_text().splitlines()]
    for name in ("train/loss", "train/gradient_norm", "train/tokens", "train/tokens_per_second", "train/learning_rate"):
        assert [line["step"] for line in lines if name in line] == [1, 2, 3, 4, 5, 6], name
    assert [line["step"] for line in lines if "validation/loss" in line] == [3, 6]


@pytest.mark.parametrize("step", [3, 6])
def test_validation(spied, prepared, step):
    network, _ = checkpoint(spied, step)
    rows = stored(prepared, "validation")
    chosen = [rows[n * len(rows) // 7] for n in range(7)]  # 7 of them, evenly spaced, in batches of 2, 2, 2 and 1
    with torch.no_grad():
        total, count = nll(network.eval(), chosen)
    loss = float(total) / count
    run = spied / "run" / "0"
    assert metrics(run, "validation/loss")[step] == pytest.approx(loss, rel=1e-5)
    assert metrics(run, "validation/perplexity")[step] == pytest.approx(math.exp(loss), rel=1e-4)
    # all tokens but those that begin a document, and the documents' text
    split = Manifest.load(prepared).splits["validation"]
    stream = [
        token
        for shard in split.shards
        for token in read_shard(prepared / "validation" / shard.file, "uint16", shard.tokens).tolist()
    ]
    predicted, text = sum(token != BOS for token in stream), sum(token < BOS for token in stream)
    bits = loss / math.log(2) * predicted / text
    assert metrics(run, "validation/bits_per_byte")[step] == pytest.approx(bits, rel=1e-5)
    assert load_tokenizer(prepared).bos == BOS


def test_evaluations_in_training_are_those_of_mm_evaluate(spied, tmp_path):
    path = spied / "run" / "0" / "checkpoints" / "step=6.ckpt"
    given = ["--tasks", "loss_by_position", "--contexts", "64", "--limit", "3", "--output", str(tmp_path)]
    assert main(["evaluate", "--checkpoint", str(path), *given, "--device", "cpu"]) == 0
    (after,) = [json.loads(file.read_text()) for file in tmp_path.rglob("results.json")]
    within = json.loads((spied / "run/0/evaluations/step=6/loss_by_position/results.json").read_text())
    assert after["settings"] == within["settings"]
    assert len(after["rows"]) == len(within["rows"])
    for a, b in zip(after["rows"], within["rows"], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-5)
        assert (a["group"], a["metric"], a["count"]) == (b["group"], b["metric"], b["count"])
    logged = metrics(spied / "run" / "0", "evaluation/loss_by_position/context=64/loss")
    assert logged == {6: pytest.approx(next(r["value"] for r in after["rows"] if r["group"] == {"context": 64}))}
    assert within["network"]["tokens"] == after["network"]["training_tokens"] == 6 * 6 * 32

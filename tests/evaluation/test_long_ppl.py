"""LongPPL against plain loops: one forward pass for each token and each of its contexts."""

import csv
import json
import math

import pytest
import torch
from byte_networks import CONFIGS, build
from saved_networks import save

from mm_lightning.cli import main
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.long_ppl import LongPPL
from mm_lightning.evaluation.measurement import Row
from mm_lightning.evaluation.model import Model

TEXT = "the quick brown fox jumps over the lazy dog, and again the quick brown fox sleeps: over and over. " * 2
NAMES = ("v2", "judge")
SHORT, STRIDE, ALPHA, BETA = 20, 7, 0.02, -5.5


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT[5:])
    return [str(tmp_path / name) for name in ("a.txt", "b.txt")]


def loss_behind(model, context, token):
    with torch.inference_mode():
        return -float(model.network(torch.tensor([[model.bos, *context]]))[0, -1].log_softmax(-1)[token])


def by_plain_loops(model, judge, tokens, length):
    """Sums over key tokens and over all, and how many there are."""
    sums = [0.0, 0, 0.0, 0]
    for place in range(SHORT, length):
        start = (place - SHORT) // STRIDE * STRIDE
        own, long, short = (
            loss_behind(which, tokens[begin:place], tokens[place])
            for which, begin in ((model, 0), (judge, 0), (judge, start))
        )
        is_key = short - long > ALPHA and -long > BETA
        sums = [sums[0] + is_key * own, sums[1] + is_key, sums[2] + own, sums[3] + 1]
    return sums


@pytest.mark.parametrize("name", CONFIGS)
def test_key_tokens_are_those_of_the_definition(name, tokenizer, text):
    model = Model(build(name), tokenizer, batch_size=3, together=32)
    task = LongPPL([64, 80], 1, text, short_context=SHORT, stride=STRIDE, alpha=ALPHA, beta=BETA)
    (item,) = task.items(model)
    (record,) = task.ask(model, [item])
    tokens = item.content.tokens.tolist()
    for length in (64, 80):
        sums = by_plain_loops(model, model, tokens, length)
        assert record["sums"][str(length)] == pytest.approx(sums, abs=1e-4)
        assert 0 < sums[1] < sums[3]
    falls = [one["fall"] for one in record["key_tokens"]]
    assert falls == sorted(falls, reverse=True)
    first = record["key_tokens"][0]
    assert (first["before"] + first["token"]).encode()[-13:] == bytes(
        tokens[first["position"] - 12 : first["position"] + 1]
    )
    rows = {(row.group["context"], row.group["tokens"], row.metric): row for row in task.rows([record])}
    assert rows[80, "key", "perplexity"].value == pytest.approx(math.exp(sums[0] / sums[1]), rel=1e-4)
    assert rows[80, "all", "perplexity"].value == pytest.approx(math.exp(sums[2] / sums[3]), rel=1e-4)
    assert rows[80, "key", "share"].value == pytest.approx(sums[1] / sums[3])


def test_another_network_decides_and_the_report_has_a_section(tmp_path, text, capsys):
    judge, _ = save("transformer", tmp_path / "judge" / "checkpoints")
    path, _ = save("v2", tmp_path / "v2" / "checkpoints")
    options = ["--contexts", "64", "--short_context", str(SHORT), "--stride", str(STRIDE), "--alpha", str(ALPHA)]
    options += ["--beta", str(BETA), "--evaluator", str(tmp_path / "judge"), "--text", *text, "--device", "cpu"]
    options += ["--names", "v2", "judge", "--output", str(tmp_path / "out")]
    assert main(["evaluate", "--checkpoint", str(path), str(judge), "--tasks", "long_ppl", *options]) == 0
    assert "perplexity" in capsys.readouterr().out
    model, other = Model.load(path, "cpu"), Model.load(judge, "cpu")
    task = LongPPL([64], text=text, short_context=SHORT, stride=STRIDE, alpha=ALPHA, beta=BETA, evaluator=str(judge))
    items = task.items(model)
    record = next(task.ask(model, items))
    sums = by_plain_loops(model, other, items[0].content.tokens.tolist(), 64)
    assert record["sums"]["64"] == pytest.approx(sums, abs=1e-3)
    report = (tmp_path / "out" / "report" / "report.md").read_text()
    assert "## LongPPL" in report
    assert "One network has chosen the key tokens for all" in report
    with open(tmp_path / "out" / "report" / "tables" / "long_ppl-differences.csv") as file:
        lines = {(line["tokens"], line["metric"]): line for line in csv.DictReader(file)}
    assert lines.keys() == {("key", "loss, nats/token"), ("all", "loss, nats/token"), ("key", "share, %")}
    rows = {name: json.loads((tmp_path / f"out/{name}/long_ppl/results.json").read_text())["rows"] for name in NAMES}
    for tokens in ("key", "all"):
        values = [
            next(row["value"] for row in rows[name] if (row["group"]["tokens"], row["metric"]) == (tokens, "loss"))
            for name in NAMES
        ]
        assert float(lines[tokens, "loss, nats/token"]["judge minus v2"]) == pytest.approx(
            values[1] - values[0], abs=1e-5
        )


def test_networks_that_choose_their_own_key_tokens_are_not_compared_on_them():
    one, other = (Row({"context": 64, "tokens": tokens}, "loss", 2.0, None, 4, "nats") for tokens in ("key", "all"))
    share = Row(one.group, "share", 0.25, None, 4, "share")
    assert LongPPL().compared([one, other, share]) == [other, share]
    assert LongPPL(evaluator="judge").compared([one, other, share]) == [one, other, share]


def test_a_text_without_key_tokens(tokenizer, text):
    model = Model(build("v2"), tokenizer)
    task = LongPPL([64], 2, text, short_context=SHORT)
    records = list(task.ask(model, task.items(model)))
    assert {(row.group["tokens"], row.metric) for row in task.rows(records)} == {
        ("all", "loss"),
        ("all", "perplexity"),
        ("key", "share"),
    }


def test_short_contexts_that_leave_nothing(tokenizer, text):
    with pytest.raises(UserError, match="leave nothing of contexts of 64"):
        LongPPL([64], text=text, short_context=60).items(Model(build("v2"), load_tokenizer("bytes")))

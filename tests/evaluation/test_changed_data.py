"""`mm evaluate` on data that changed, moved or were not noted since the answers that are kept."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from saved_networks import save
from torch.nn import functional as F

from mm_lightning.checkpoint import load_network
from mm_lightning.cli import main
from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.evaluation.long_documents import digest
from mm_lightning.evaluation.loss_by_position import LossByPosition
from mm_lightning.evaluation.new_knowledge.needles import Single2

ONE, OTHER = "the cat sat on the mat. " * 20, "".join(map(chr, np.random.default_rng(0).integers(33, 120, 300)))


@pytest.fixture
def evaluate(runs, tmp_path, capsys):
    """Runs `mm evaluate` on v2; what it said."""

    def call(*more):
        given = ["--checkpoint", str(runs / "v2"), "--tasks", "loss_by_position", "--contexts", "128"]
        given += ["--device", "cpu", "--output", str(tmp_path / "out")]
        assert main(["evaluate", *given, *more]) == 0
        return capsys.readouterr().err

    return call


def true_loss(runs, text):
    network, _ = load_network(runs / "v2")
    tokens = torch.tensor([256, *text.encode()[:128]])
    with torch.no_grad():
        return float(F.cross_entropy(network(tokens[None, :-1])[0].double(), tokens[1:]))


def loss(folder):
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return next(row["value"] for row in rows if row["group"] == {"context": 128})


@pytest.mark.parametrize("finished", [True, False])
def test_changed_text_is_asked_again(finished, evaluate, runs, tmp_path):
    text, folder = tmp_path / "a.txt", tmp_path / "out" / "v2-0-step1" / "loss_by_position"
    text.write_text(ONE)
    evaluate("--text", str(text))
    assert loss(folder) == pytest.approx(true_loss(runs, ONE), abs=1e-5)
    before = loss(folder)
    if not finished:  # answers of an interrupted evaluation are not gone on with either
        (folder / "results.json").unlink()
    stamp = text.stat()
    text.write_text(OTHER)
    os.utime(text, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    said = evaluate("--text", str(text))
    assert "already" not in said
    assert said.count("its data have changed") == 1
    assert loss(folder) == pytest.approx(true_loss(runs, OTHER), abs=1e-5)
    assert loss(folder) != pytest.approx(before, abs=0.01)
    (kept,) = folder.glob("before.*.samples.jsonl")
    assert json.loads(kept.read_text())["scores"]["128"] == pytest.approx(before)
    assert "already there" in evaluate("--text", str(text))
    table = (tmp_path / "out" / "report" / "numbers.csv").read_text()
    assert f"{before}" not in table


def test_moved_renamed_and_touched_text_is_already_there(evaluate, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(ONE)
    evaluate("--text", str(tmp_path / "texts"))
    os.utime(tmp_path / "texts" / "a.txt", (1, 1))
    monkeypatch.chdir(tmp_path)
    assert "already there" in evaluate("--text", "texts/../texts/a.txt")
    (tmp_path / "texts").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "a.txt").rename(tmp_path / "elsewhere" / "b.txt")
    assert "already there" in evaluate("--text", str(tmp_path / "elsewhere"))


def test_answers_of_an_earlier_version_are_asked_again(evaluate, runs, tmp_path):
    """It noted where the text lay, and no hash of it."""
    text, folder = tmp_path / "a.txt", tmp_path / "out" / "v2-0-step1" / "loss_by_position"
    text.write_text(ONE)
    evaluate("--text", str(text))
    known = json.loads((folder / "settings.json").read_text())
    del known["identity"]["settings"]["data_hash"]
    known["identity"]["settings"]["text"] = [str(text)]
    (folder / "settings.json").write_text(json.dumps(known))
    text.write_text(OTHER)
    said = evaluate("--text", str(text))
    assert said.count("an earlier version did not note what data it was asked on: asked again") == 1
    assert loss(folder) == pytest.approx(true_loss(runs, OTHER), abs=1e-5)
    assert list(folder.glob("before.unknown.results.json"))


@pytest.fixture
def prepared(tmp_path):
    """Prepares a file into a folder, with half of it held out."""

    def call(name, seed):
        words = np.random.default_rng(seed).integers(97, 123, (40, 100))
        lines = [json.dumps({"text": "".join(map(chr, row))}) for row in words]
        (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        config = PrepareConfig([str(tmp_path / "corpus.jsonl")], tokenizer="bytes", validation_fraction=0.5)
        prepare(config, tmp_path / name, progress=False)
        return tmp_path / name

    return call


def test_the_own_data_of_a_network_prepared_anew_are_asked_again(prepared, tmp_path, capsys):
    """And networks with other data are not silently put side by side."""
    for run, data in (("a", "data"), ("b", "other")):
        save("v2", tmp_path / run / "checkpoints")
        (tmp_path / run / "config.yaml").write_text(yaml.dump({"data": {"path": str(tmp_path / data)}}))
    prepared("data", 1)
    prepared("other", 1)
    given = ["--tasks", "loss_by_position,retrieval_profile", "--contexts", "128", "--device", "cpu", "--limit", "2"]
    given = ["evaluate", "--checkpoint", str(tmp_path / "a"), str(tmp_path / "b"), *given]
    given += ["--output", str(tmp_path / "out")]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "do not compare" not in out  # the same documents in two places
    assert (tmp_path / "out" / "report" / "report.md").read_text().count("## Loss by position") == 1
    prepared("data", 2)
    assert main(given) == 0
    out, said = capsys.readouterr()
    assert said.count("its data have changed") == 2  # both tasks of a
    assert said.count("already there") == 2  # both of b
    assert "loss_by_position was asked under 2 different settings" in out
    assert "loss_by_position (2 of 2, do not compare)" in " ".join(out.split())
    assert (tmp_path / "out" / "report" / "report.md").read_text().count("## Loss by position") == 2
    values = [loss(tmp_path / "out" / f"{run}-step1" / "loss_by_position") for run in "ab"]
    assert values[0] != values[1]
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "report")]) == 0
    assert "loss_by_position was asked under 2 different settings" in capsys.readouterr().out


def test_hashes_of_data(prepared, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("ab")
    (texts / "b.txt").write_text("c")
    both = digest([str(texts)], None)
    assert both == digest([str(texts / "a.txt"), f"{texts}/../texts/b.txt"], None)
    assert both != digest([str(texts / "b.txt"), str(texts / "a.txt")], None)  # another order, other sequences
    (texts / "a.txt").write_text("a")
    (texts / "b.txt").write_text("bc")
    assert digest([str(texts)], None) != both
    assert digest([str(prepared("data", 1))], None) == digest([str(prepared("same", 1))], None)
    assert digest([str(prepared("data", 2))], None) != digest([str(tmp_path / "same")], None)
    with pytest.raises(Exception, match=r"its hash is .*, not data_hash 0"):
        LossByPosition(text=[str(texts)], data_hash="0").settings_for(None)


def test_changed_essays_are_other_needles(tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.")
    before = Single2(essays=str(tmp_path)).settings_for(None)
    (tmp_path / "a.txt").write_text("One. Six.")
    after = Single2(essays=str(Path(tmp_path) / ".")).settings_for(None)
    assert {name for name in before if before[name] != after[name]} == {"data_hash"}

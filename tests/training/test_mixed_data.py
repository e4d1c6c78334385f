"""Everything around training on a mixture of data sets."""

import json
import re
import shutil

import pytest
import yaml
from runs import metrics

from mm_lightning.checkpoint import find_checkpoint, load_network, read_metadata
from mm_lightning.cli import main
from mm_lightning.data import Manifest, load_tokenizer
from mm_lightning.evaluation.long_documents import of_run
from mm_lightning.inference.model_card import model_card
from mm_lightning.training.module import LanguageModule


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A small second folder."""
    folder = tmp_path_factory.mktemp("other")
    for n in range(8):
        (folder / f"{n}.txt").write_text(" ".join(f"{k * (n + 2)}." for k in range(60)))
    arguments = ["--output", str(folder / "other"), "--validation_fraction", "0.3", "--workers", "1"]
    assert main(["data", "prepare", str(folder), *arguments]) == 0
    return folder / "other"


@pytest.fixture
def config(tiny, prepared, other):
    """The tiny config with three quarters of the one and a quarter of the other."""
    values = yaml.safe_load(tiny.read_text())
    values["data"] |= {"path": {str(prepared): 3, str(other): 1}, "validation_sequences": 4}
    values["trainer"]["callbacks"].append({"class_path": "BadStepGuard", "init_args": {"sigma": 0}})
    values["trainer"]["callbacks"].append({"class_path": "Summary"})
    tiny.write_text(yaml.safe_dump(values))
    return str(tiny)


def test_a_run_and_what_is_read_from_it(config, tmp_path, prepared, other, monkeypatch, capsys):
    step = LanguageModule.training_step

    def spoilt(self, *batch):
        return step(self, *batch) * (float("nan") if self.global_step == 3 else 1)

    monkeypatch.setattr(LanguageModule, "training_step", spoilt)
    assert main(["fit", "--config", config]) == 0
    output = capsys.readouterr().out
    folder = tmp_path / "run" / "0"
    counts = {path: Manifest.load(path).splits["train"].sequences(33) for path in (prepared, other)}
    assert f"data               75.0% {prepared}: {counts[prepared]} sequences" in output
    assert f"data               25.0% {other}: {counts[other]} sequences" in output

    # the whole is the mean by weight, of loss and of the unigram baseline
    names = ("validation/loss", "validation/loss/prepared", "validation/loss/other")
    whole, one, two = (metrics(folder, name)[6] for name in names)
    assert whole == pytest.approx(0.75 * one + 0.25 * two)
    assert f"  loss/prepared {one:.4f}" in output
    assert f"  loss/other {two:.4f}" in output
    unigram = [Manifest.load(path).splits["validation"].unigram_entropy for path in (prepared, other)]
    assert re.search(rf"unigram baseline +{0.75 * unigram[0] + 0.25 * unigram[1]:.3f} ", output)
    assert re.search(rf"on other +{two:.3f} .*", output)

    # the bad step's record is what follows from config and data
    kept = shown(folder, 4, capsys)
    assert f": {other}, chunk-0-0.bin" in kept
    assert "the data have changed since" not in kept
    shutil.rmtree(folder / "bad_steps")
    assert shown(folder, 4, capsys) == kept
    moved = shutil.copytree(other, tmp_path / "moved")
    there = shown(folder, 4, capsys, "--data", f"[{moved}, {prepared}]")  # as the config has them
    assert there == kept.replace(str(other), str(moved))
    assert main(["data", "show", str(folder), "--step", "4", "--data", str(prepared)]) == 2
    assert "--data names 1 folders, the run has 2" in capsys.readouterr().err

    # what other commands make of the run
    found = json.loads((folder / "environment.json").read_text())["data"]
    assert {each["path"]: each["share"] for each in found} == {str(prepared): "3/4", str(other): "1/4"}
    assert all(each["fingerprint"] == Manifest.load(each["path"]).fingerprint for each in found)
    assert main(["validate", "--config", str(folder / "config.yaml")]) == 0
    assert f"loss {whole:.4f}" in (output := capsys.readouterr().out)
    assert f"loss/other {two:.4f}" in output
    assert main(["predict", "--config", str(folder / "config.yaml")]) == 0
    documents = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for name, expected in (("prepared", one), ("other", two)):
        mine = [document for document in documents if document["set"] == name]
        predicted = sum(document["predicted"] for document in mine)
        assert sum(d["loss"] * d["predicted"] for d in mine) / predicted == pytest.approx(expected, rel=1e-4)
    checkpoint = find_checkpoint(str(folder))
    held_out = sum(Manifest.load(path).splits["validation"].documents for path in (prepared, other))
    assert len(of_run(checkpoint, load_tokenizer(prepared)).parts) == held_out

    card = model_card(checkpoint, read_metadata(checkpoint), load_network(checkpoint)[0], True)
    assert "| 25.0% of the training sequences |" in card
    assert all(Manifest.load(path).fingerprint in card for path in (prepared, other))

    # another mixture is told, and one folder may take its place
    capsys.readouterr()
    more = ["--resume", "--trainer.max_steps", "7"]
    assert main(["fit", "--config", config, *more, f"--data.path={json.dumps({str(prepared): 1, str(other): 2})}"]) == 0
    assert "data sets or their weights have changed" in capsys.readouterr().out
    assert main(["fit", "--config", config, "--data.path", str(prepared), "--trainer.max_steps", "2"]) == 0
    assert "validation/loss/other" not in (tmp_path / "run" / "1" / "metrics.jsonl").read_text()


def shown(folder, step, capsys, *more):
    """What `mm data show` says of all sequences of a step."""
    capsys.readouterr()
    assert main(["data", "show", str(folder), "--step", str(step), "--sequences", "8", *more]) == 0
    output = capsys.readouterr().out
    return output[output.index("\nsequence") : output.index("8 of 8 sequences")]


def test_a_plan_reads_each_set(config, prepared, other, capsys):
    assert main(["fit", "--config", config, "--plan", "2", "--trainer.devices", "2"]) == 0
    output = capsys.readouterr().out
    count = Manifest.load(other).splits["train"].sequences(33)
    assert f"{other}: {count} training sequences of 32, read {6 * 8 / 4 / count:.2f} times" in output
    assert f"75.0% {prepared}" in output


def test_a_folder_written_twice_is_told(config, tmp_path, prepared, capsys):
    twice = tmp_path / "twice.yaml"
    twice.write_text(f"base: {config}\ndata:\n  path:\n    {prepared}: 1\n    {prepared}: 2\n")
    assert main(["fit", "--config", str(twice)]) == 2
    assert f"{prepared} comes twice" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert main(["fit", "--config", config, f"--data.path={json.dumps({str(prepared): -1})}"]) == 2
    assert f"data.path: {prepared} takes a number above 0, got -1.0" in capsys.readouterr().err

"""The tokens that a run counts are those that it was trained on, whatever batch or context each session had."""

import json
import shutil

import pytest
import torch
import yaml
from bad_steps import POISON, config
from launch import mm
from runs import metrics
from tiny_run import TINY

from mm_lightning.checkpoint import METADATA_KEY
from mm_lightning.checkpoint.trained_tokens import tokens_at
from mm_lightning.cli import main
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.evaluation.origin import origin
from mm_lightning.experiments.read_study import read_study
from mm_lightning.training.data_order import data_order_at, record_resume, record_rollback

OTHER = ["--data.global_batch_size", "12", "--data.micro_batch_size", "2", "--data.context_length", "16"]
"""192 tokens a step in 6 accumulated batches, where the tiny run has 256 in 2."""


@pytest.fixture(scope="module")
def spied(tmp_path_factory, prepared):
    """A run of 3 steps, resumed for 2 with another batch and context, and for 2 with the first ones."""
    folder = tmp_path_factory.mktemp("spied")
    values = {"run": str(folder / "run"), **TINY, "data": {**TINY["data"], "path": str(prepared)}}
    callbacks = [{"class_path": "Checkpoints", "init_args": {"every_n_steps": 1, "keep": 0}}]
    callbacks += [{"class_path": "spies.BatchSpy", "init_args": {"file": str(folder / "batches")}}]
    values["trainer"] = {**TINY["trainer"], "log_every_n_steps": 2, "val_check_interval": 100, "callbacks": callbacks}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    fit = ["fit", "--config", str(folder / "tiny.yaml")]
    assert main([*fit, "--trainer.max_steps", "3"]) == 0
    assert main([*fit, "--resume", "--trainer.max_steps", "5", *OTHER]) == 0
    assert main([*fit, "--resume", "--trainer.max_steps", "7"]) == 0
    return folder


COUNTED = {1: 256, 2: 512, 3: 768, 4: 960, 5: 1152, 6: 1408, 7: 1664}


def test_sessions_of_different_steps_add_up(spied):
    batches = [json.loads(line) for line in (spied / "batches").read_text().splitlines()]
    by_hand = {step: sum(len(row) for n, rows in batches if n <= step for row in rows) for step in COUNTED}
    assert by_hand == COUNTED
    run = spied / "run" / "0"
    assert metrics(run, "train/tokens") == {step: COUNTED[step] for step in (2, 4, 6)}
    for step, tokens in COUNTED.items():
        checkpoint = run / "checkpoints" / f"step={step}.ckpt"
        assert torch.load(checkpoint, weights_only=True)[METADATA_KEY]["tokens"] == tokens
        assert origin(checkpoint)["training_tokens"] == tokens
    assert json.loads((run / "finished.json").read_text())["tokens"] == 1664
    (found,) = read_study([spied / "run"]).runs
    assert found.tokens == 1664
    assert found.tokens_at(4) == 960


def test_each_step_is_shown_with_the_batch_it_had(spied, prepared, capsys):
    batches = [json.loads(line) for line in (spied / "batches").read_text().splitlines()]
    tokenizer = load_tokenizer(prepared)
    for step in COUNTED:
        rows = [row for n, some in batches if n == step for row in some]
        capsys.readouterr()
        assert main(["data", "show", str(spied / "run"), "--step", str(step), "--sequences", "100"]) == 0
        out = capsys.readouterr().out
        assert f"{len(rows)} of {len(rows)} sequences of step {step}," in out
        at = 0
        for row in rows:  # in this order
            at = out.index(tokenizer.decode(row, special=True), at)


def test_checkpoints_of_earlier_versions_had_steps_of_one_size(spied, tmp_path):
    """Their batch is known, from the checkpoint."""
    run = tmp_path / "run" / "0"
    shutil.copytree(spied / "run" / "0", run, ignore=shutil.ignore_patterns("step=[4-7].ckpt"))
    path = run / "checkpoints" / "step=3.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint[METADATA_KEY]["tokens"]
    torch.save(checkpoint, path)
    fit = ["fit", "--config", str(spied / "tiny.yaml"), "--run", str(tmp_path / "run"), "--resume"]
    assert main([*fit, "--trainer.max_steps", "4", *OTHER]) == 0
    assert metrics(run, "train/tokens") == {2: 512, 4: 960}
    assert origin(path)["training_tokens"] == 736  # half way between the lines of metrics.jsonl: all that is known


def test_going_back_takes_the_count_back(tiny, tmp_path, monkeypatch):

    from mm_lightning.training.module import LanguageModule

    monkeypatch.setattr(LanguageModule, "training_step", LanguageModule.training_step)
    space = {}
    exec(POISON, space)
    space["poison"](5)
    assert main(["fit", "--config", config(tiny, tmp_path, every=2, steps=8, on_bad_step="rollback")]) == 0
    run = tmp_path / "run" / "0"
    assert (run / "rollbacks.jsonl").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["train/tokens"]) for line in lines if "train/tokens" in line]
    assert found == [(step, 256 * step) for step in range(1, 9)]


@pytest.mark.slow
def test_two_processes_and_then_one(tiny, tmp_path):
    fit = ["fit", "--config", str(tiny)]
    two = mm(*fit, "--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "3")
    assert two.returncode == 0, two.stderr[-2000:]
    one = ["--trainer.devices", "1", "--trainer.strategy", "auto", "--trainer.max_steps", "5"]
    assert main([*fit, "--resume", *one, *OTHER]) == 0
    assert metrics(tmp_path / "run" / "0", "train/tokens") == {n: COUNTED[n] for n in range(1, 6)}


def test_tokens_between_counts_and_behind_them():
    assert tokens_at(5, {}) is None
    assert [tokens_at(step, {10: 100}) for step in (0, 5, 10, 20)] == [0, 50, 100, 200]
    counts = {10: 100, 20: 400, 30: 500}
    assert [tokens_at(step, counts) for step in (1, 10, 15, 20, 30, 40)] == [10, 100, 250, 400, 500, 600]


def test_the_order_of_steps_is_noted_where_a_resume_changes_it(tmp_path):
    one = {"data": {"a": 1}, "context_length": 8, "global_batch_size": 10, "seed": 1}
    two, three = {**one, "global_batch_size": 4}, {**one, "seed": 2}
    record_resume(tmp_path, 3, 30, one, one)  # nothing changes, nothing is written
    assert not list(tmp_path.iterdir())
    record_rollback(tmp_path, 2, 40, one, left=4)  # went back from step 4
    record_resume(tmp_path, 5, 70, one, two)
    record_resume(tmp_path, 7, 78, two, three)
    firsts = [data_order_at(tmp_path, step, three) for step in range(1, 10)]
    assert [about["first"] for about in firsts] == [0, 10, 40, 50, 60, 70, 74, 78, 88]
    places = [{name: value for name, value in about.items() if name != "first"} for about in firsts]
    assert places == [one] * 5 + [two] * 2 + [three] * 2
    with open(tmp_path / "rollbacks.jsonl", "a") as file:
        file.write('{"step": 8, "fir')  # a process was killed
    assert data_order_at(tmp_path, 9, three)["first"] == 88
    # an older checkpoint is gone on with: what was noted of later steps is not true any more
    record_resume(tmp_path, 1, 10, three, one)
    assert [data_order_at(tmp_path, step, one)["first"] for step in (1, 2, 3, 9)] == [0, 10, 20, 80]

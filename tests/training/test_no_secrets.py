"""What is secret in the environment or in a URL is in no file of a run folder and not on the screen."""

import sys

from mm_lightning.cli import main


def test_secrets_are_not_kept(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "s3cret-environment")
    url = "s3://me:s3cret-password@nowhere/prepared?token=s3cret-query"
    options = ["fit", "--config", str(tiny), "--trainer.max_steps", "1", "--model.initial_weights", url]
    monkeypatch.setattr(sys, "argv", ["mm", *options])
    assert main(options) == 2
    said = capsys.readouterr()
    assert "there is no checkpoint or run folder s3:/***@nowhere" in said.err.replace("://", ":/")
    monkeypatch.setattr("mm_lightning.training.module.find_checkpoint", lambda path: tmp_path / path.split("/")[-1])
    monkeypatch.setattr("mm_lightning.training.module.load_weights", lambda *args: None)
    assert main(options) == 0
    said = capsys.readouterr()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "metrics.jsonl", "step=1.ckpt"} <= {path.name for path in files}
    for path in files:
        assert b"s3cret" not in path.read_bytes(), path
    assert "s3cret" not in said.out + said.err

"""A signal before the first step: while data are prepared, a network is built, a checkpoint is read."""

import json
import os
import shutil
import signal

import pytest
import yaml

from mm_lightning.cli import main
from mm_lightning.data import prepare as room
from mm_lightning.data import tokenize_units
from mm_lightning.training import cli
from mm_lightning.training.cli import TrainingCLI


def sending(method, number, when=1):
    """The method, which sends this process a signal when it is called for the n-th time."""
    calls = []

    def called(*args, **kwargs):
        calls.append(0)
        if len(calls) == when:
            os.kill(os.getpid(), number)
        return method(*args, **kwargs)

    return called


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def preparing(tiny, tmp_path, prepared, monkeypatch):
    """A config that prepares its data, in many units of work."""
    monkeypatch.setattr(room, "_UNIT_BYTES", 500)
    values = yaml.safe_load(tiny.read_text())
    settings = {"sources": [str(prepared.parent / "*.txt")], "validation_fraction": 0.3, "workers": 1}
    values["data"] |= {"path": str(tmp_path / "data"), "prepare": settings}
    tiny.write_text(yaml.safe_dump(values))
    return tiny


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_while_data_are_prepared(preparing, tmp_path, monkeypatch, capfd, number):
    with monkeypatch.context() as patch:
        patch.setattr(tokenize_units, "tokenize_unit", sending(tokenize_units.tokenize_unit, number, 3))
        assert main(["fit", "--config", str(preparing)]) == (130 if number == signal.SIGINT else 85)
    said = capfd.readouterr().err
    assert f"preparing was interrupted: 2 finished units of work are kept in {tmp_path / 'data'}" in said
    assert said.endswith("mm: interrupted\n" if number == signal.SIGINT else "the same command goes on\n")
    mark = json.loads((tmp_path / "run" / "preempted.json").read_text())
    name = "ctrl-C" if number == signal.SIGINT else number.name
    assert (mark["signal"], mark["step"], mark["checkpoint"]) == (name, 0, None)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["preempted.json"]  # and no run folder

    if number == signal.SIGTERM:
        assert main(["fit", "--config", str(preparing)]) == 0
        assert "going on: 2 of " in capfd.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["0"]
        again = shutil.copytree(tmp_path / "data", tmp_path / "again")
        shutil.rmtree(tmp_path / "data")
        assert main(["fit", "--config", str(preparing)]) == 0
        assert files(again) == files(tmp_path / "data")


@pytest.mark.parametrize("place", ["_instantiate_trainer", "before_fit"])
def test_while_a_run_is_set_up(tiny, tmp_path, monkeypatch, capfd, place):
    monkeypatch.setattr(TrainingCLI, place, sending(getattr(TrainingCLI, place), signal.SIGUSR1))
    assert main(["fit", "--config", str(tiny)]) == 85
    assert capfd.readouterr().err.endswith("mm: SIGUSR1: ended before the first step; the same command goes on\n")
    assert not (tmp_path / "run" / "0").exists()


def test_while_a_run_is_resumed(tiny, tmp_path, monkeypatch):
    assert main(["fit", "--config", str(tiny), "--trainer.max_steps", "3"]) == 0
    run = tmp_path / "run" / "0"
    before = files(run)
    with monkeypatch.context() as patch:
        patch.setattr(cli, "check_resumable", sending(cli.check_resumable, signal.SIGTERM))
        assert main(["fit", "--config", str(tiny), "--resume"]) == 85
    after = files(run)
    mark = json.loads(after.pop("preempted.json"))
    assert (mark["signal"], mark["step"], mark["checkpoint"]) == ("SIGTERM", 3, "step=3.ckpt")
    assert after == before
    assert main(["fit", "--config", str(tiny), "--resume", "--trainer.max_steps", "4"]) == 0
    assert not (run / "preempted.json").exists()

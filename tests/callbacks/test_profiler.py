"""The Profiler's traces hold the steps that were asked for."""

import gzip
import json
from pathlib import Path

import pytest
import yaml
from launch import mm
from runs import metrics

from mm_lightning.cli import main


@pytest.fixture
def profiled(tiny, tmp_path):
    """The config of the tiny run with a Profiler."""

    def profiled(**options) -> Path:
        values = yaml.safe_load(tiny.read_text())
        values["trainer"]["callbacks"] = [{"class_path": "Profiler", "init_args": options}]
        path = tmp_path / "profiled.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return profiled


def traced(path: Path) -> tuple[set[str], set[str]]:
    """Names of the steps and of the operations in a trace."""
    names = {event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    return {name for name in names if name.startswith("ProfilerStep")}, names


def test_a_trace_holds_the_steps_and_changes_nothing(finished_once, profiled, tmp_path, capsys):
    config = profiled(first=3, steps=2)
    assert main(["fit", "--config", str(config), "--run", str(tmp_path / "seen")]) == 0
    (trace,) = (tmp_path / "seen/0/profile").iterdir()
    assert trace.name == "steps-3-4_rank-0.pt.trace.json.gz"
    assert str(trace) in capsys.readouterr().out
    steps, names = traced(trace)
    assert len(steps) == 2
    assert {"aten::mm", "aten::_fused_adamw_"} <= names
    assert metrics(tmp_path / "seen/0") == metrics(finished_once)


def test_the_first_step_and_an_end_in_the_middle(profiled, tmp_path):
    config = profiled(first=1, steps=9, memory=False)
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "2", "--run", str(tmp_path / "run")]) == 0
    (trace,) = (tmp_path / "run/0/profile").iterdir()
    assert trace.name == "steps-1-2_rank-0.pt.trace.json.gz"
    assert len(traced(trace)[0]) >= 2


def test_a_step_that_never_comes(profiled, tmp_path, capsys):
    config = profiled(first=9)
    assert main(["fit", "--config", str(config), "--trainer.max_steps", "2", "--run", str(tmp_path / "run")]) == 0
    assert "Profiler: step 9 is not among the steps 1 to 2: no trace" in capsys.readouterr().out


def test_mistakes(profiled, capsys):
    assert main(["fit", "--config", str(profiled(steps=0))]) == 2
    assert "trainer.callbacks.Profiler.steps takes a whole number of at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [False, True])
def test_two_processes(profiled, tmp_path, everyone):
    config = profiled(first=2, steps=1, every_process=everyone)
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.micro_batch_size", "2"]
    done = mm("fit", "--config", str(config), "--run", str(tmp_path / "run"), *devices)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = (0, 1) if everyone else (0,)
    names = {f"steps-2-2_rank-{rank}.pt.trace.json.gz" for rank in ranks}
    found = list((tmp_path / "run/0/profile").iterdir())
    assert {path.name for path in found} == names
    assert all(len(traced(path)[0]) == 1 for path in found)

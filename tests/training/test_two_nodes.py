"""Two nodes train as one process does, and a node that is lost ends the run on the other, in time and in words."""

import json
import time
from pathlib import Path

import pytest
from nodes import Namespaces, loopback
from runs import metrics

from mm_lightning.cli import main

pytestmark = pytest.mark.slow
TWO = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--data.micro_batch_size", "2"]


@pytest.fixture
def place():
    """Two namespaces where they are allowed, else loopback."""
    try:
        namespaces = Namespaces()
        found = namespaces.__enter__()
    except OSError:
        yield loopback()
        return
    yield found
    namespaces.__exit__()


@pytest.fixture
def namespaces():
    try:
        namespaces = Namespaces()
        found = namespaces.__enter__()
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield found
    namespaces.__exit__()


def text(tmp_path, rank: int) -> str:
    return (tmp_path / f"{rank}.log").read_text()


def begin(place, launcher, tiny, tmp_path, *more) -> list:
    arguments = ["fit", "--config", str(tiny), "--run", str(tmp_path / "together"), *TWO, *more]
    return [place.start(rank, launcher, arguments, tmp_path / f"{rank}.log") for rank in (0, 1)]


def end(processes) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def assert_same(tiny, tmp_path, together: Path) -> None:
    assert main(["fit", "--config", str(tiny), "--run", str(tmp_path / "alone")]) == 0
    for name in ("train/loss", "train/gradient_norm", "validation/loss"):
        one, two = metrics(tmp_path / "alone" / "0", name), metrics(together, name)
        assert two.keys() == one.keys()
        assert list(two.values()) == pytest.approx(list(one.values()), rel=2e-5), name


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
@pytest.mark.parametrize("launcher", ["torchrun", "slurm"])
def test_two_nodes_equal_one_process(launcher, strategy, place, tiny, tmp_path):
    processes = begin(place, launcher, tiny, tmp_path, "--trainer.strategy", strategy)
    codes = [process.wait(250) for process in processes]
    assert codes == [0, 0], text(tmp_path, 0)[-3000:] + text(tmp_path, 1)[-3000:]
    assert "step 6/6  loss" in text(tmp_path, 0)
    assert "step 6/6  loss" not in text(tmp_path, 1)
    assert [p.name for p in (tmp_path / "together").iterdir()] == ["0"]
    assert_same(tiny, tmp_path, tmp_path / "together" / "0")


def test_two_nodes_on_loopback(tiny, tmp_path):
    processes = begin(loopback(), "torchrun", tiny, tmp_path, "--trainer.strategy", "ddp")
    assert [process.wait(250) for process in processes] == [0, 0], text(tmp_path, 0)[-3000:]
    assert_same(tiny, tmp_path, tmp_path / "together" / "0")


LONG = ["--trainer.max_steps", "100000", "--trainer.val_check_interval", "100000", "--trainer.callbacks", "[]"]


def train_for_a_while(processes, tmp_path) -> None:
    file = tmp_path / "together" / "0" / "metrics.jsonl"
    for _ in range(1200):
        if file.is_file() and len(file.read_text().splitlines()) > 20:
            return
        assert [process.poll() for process in processes] == [None, None], text(tmp_path, 0) + text(tmp_path, 1)
        time.sleep(0.1)
    raise AssertionError("training did not begin")


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
def test_a_node_that_dies(strategy, place, tiny, tmp_path):
    processes = begin(place, "slurm", tiny, tmp_path, "--trainer.strategy", strategy, *LONG)
    try:
        train_for_a_while(processes, tmp_path)
        processes[1].kill()
        assert processes[0].wait(60) == 2  # long before communication_timeout: the connection was closed
    finally:
        end(processes)
    last = text(tmp_path, 0).splitlines()[-1]
    assert last.startswith("mm: lost contact with another process")
    assert "--resume" in last


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
def test_a_cable_that_is_cut(strategy, namespaces, tiny, tmp_path):
    more = ["--trainer.strategy", strategy, "--communication_timeout", "10", *LONG]
    processes = begin(namespaces, "slurm", tiny, tmp_path, *more)
    try:
        train_for_a_while(processes, tmp_path)
        namespaces.cut()
        assert [process.wait(90) for process in processes] == [2, 2]
    finally:
        end(processes)
    for rank in (0, 1):
        assert "lost contact with another process" in text(tmp_path, rank).splitlines()[-1]
        assert "communication_timeout (10 s)" in text(tmp_path, rank)


def test_a_node_that_never_comes(tiny, tmp_path):
    place = loopback()
    more = ["--trainer.strategy", "ddp", "--communication_timeout", "5"]
    arguments = ["fit", "--config", str(tiny), "--run", str(tmp_path / "together"), *TWO, *more]
    processes = [place.start(0, "slurm", arguments, tmp_path / "0.log")]
    try:
        assert processes[0].wait(120) == 2
    finally:
        end(processes)
    assert "lost contact with another process" in text(tmp_path, 0)
    assert not list((tmp_path / "together").glob("*/config.yaml"))
    assert json.dumps(text(tmp_path, 0)).count("Traceback") == 0

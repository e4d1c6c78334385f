"""A disk that is full for a while: a run goes on, says so once for each thing, and ends with all that it can write."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from runs import metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mm_lightning.checkpoint import find_damage
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.outputs import append, write_text
from mm_lightning.training.data_order import BAD_STEPS
from mm_lightning.training.loggers import TensorBoard
from mm_lightning.training.module import LanguageModule


def refuse(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> None:
    with open(disk / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def config(tiny: Path, on_failure: str, *more: str) -> None:
    values = yaml.safe_load(tiny.read_text())
    saving = {"every_n_steps": 2, "keep": 1, "best": "validation/loss", "on_failure": on_failure}
    callbacks = [{"class_path": "Checkpoints", "init_args": saving}, *more]
    values["trainer"] |= {"max_steps": 8, "val_check_interval": 2, "callbacks": callbacks}
    tiny.write_text(yaml.safe_dump(values))


def at_steps(monkeypatch, actions: dict, bad: tuple[int, ...] = ()) -> None:
    """Do something when the first batch after so many steps comes; let the loss of steps be wrong."""
    step = LanguageModule.training_step

    def training_step(self, *args):
        actions.pop(self.global_step, lambda: None)()
        loss = step(self, *args)
        if self.global_step + 1 in bad:
            self._step_loss[-1] = self._step_loss[-1] * torch.nan
            return loss * torch.nan
        return loss

    monkeypatch.setattr(LanguageModule, "training_step", training_step)


EVALUATION = {
    "class_path": "Evaluation",
    "init_args": {"tasks": ["loss_by_position"], "every_n_steps": 2, "settings": {"limit": 2, "contexts": 64}},
}


def times(said: str, thing: str) -> int:
    """How often it is said that a thing cannot be written."""
    return sum(f"/{thing}" in line for line in said.splitlines() if "cannot write" in line or "no space left" in line)


def whole_run(run: Path) -> None:
    assert list(metrics(run)) == list(range(1, 9))
    assert find_damage(run / "checkpoints" / "step=8.ckpt") is None
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 8
    assert json.loads((run / "environment.json").read_text())["command"]
    assert json.loads((run / "finished.json").read_text())["step"] == 8
    assert json.loads((run / "checkpoints" / "best.json").read_text())["step"] in (6, 8)
    assert (run / "events.out.tfevents.0.hparams").is_file()
    board = EventAccumulator(str(run))
    board.Reload()
    assert [point.step for point in board.Scalars("train/loss")] == list(range(1, 9))
    assert not list(run.rglob("*.tmp"))


def test_a_start_on_a_full_disk(tiny, monkeypatch, capsys, disk):
    config(tiny, "continue")
    at_steps(monkeypatch, {6: (disk / "ballast").unlink})
    fill(disk)
    assert main(["fit", "--config", str(tiny), "--run", str(disk / "run")]) == 0
    said = capsys.readouterr().out
    for thing in (
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "heartbeats",
        "checkpoints",
        "events.out.tfevents.1",
    ):
        assert times(said, thing) == 1, thing
    whole_run(disk / "run" / "0")


def test_a_disk_that_is_full_for_a_while(tiny, monkeypatch, capsys, disk):
    """In the meantime a step is bad, and evaluations are due."""
    config(tiny, "continue", EVALUATION)
    at_steps(monkeypatch, {3: lambda: fill(disk), 6: (disk / "ballast").unlink}, bad=(4, 7))
    assert main(["fit", "--config", str(tiny), "--run", str(disk / "run")]) == 0
    run, said = disk / "run" / "0", capsys.readouterr().out
    for thing in ("metrics.jsonl", "checkpoints", "events.out", f"{BAD_STEPS}/step=4", "evaluations/step=4"):
        assert times(said, thing) == 1, thing
    assert times(said, "evaluations/step=6") == times(said, f"{BAD_STEPS}/step=7") == 0
    whole_run(run)
    assert "its batch could not be saved" in said
    assert [path.parent.name for path in (run / BAD_STEPS).glob("*/step.json")] == ["step=7"]
    kept = sorted(path.parts[-3] for path in (run / "evaluations").glob("*/*/results.json"))
    assert kept == ["step=2", "step=8"]
    assert main(["data", "show", str(run)]) == 0
    assert "1 bad steps saved" in capsys.readouterr().out


def test_a_full_disk_ends_a_run_that_is_to_stop_with_one_line(tiny, monkeypatch, capsys, disk):
    config(tiny, "stop")
    at_steps(monkeypatch, {3: lambda: fill(disk)})
    assert main(["fit", "--config", str(tiny), "--run", str(disk / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no space left to write the checkpoint" in error
    assert find_damage(disk / "run" / "0" / "checkpoints" / "step=2.ckpt") is None
    with pytest.raises(OSError, match="No space left"):
        append(disk / "run" / "0" / "metrics.jsonl", b"x" * 9000)
    assert list(metrics(disk / "run" / "0")) == [1, 2, 3]  # all lines are whole


def test_a_start_that_is_to_stop_ends_with_one_line(tiny, capsys, disk):
    config(tiny, "stop")
    fill(disk)
    assert main(["fit", "--config", str(tiny), "--run", str(disk / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "config.yaml: No space left on device" in error
    assert "on_failure: continue" in error


def test_a_signal_on_a_full_disk(tiny, monkeypatch, capsys, disk):
    """Nothing is saved, and the status says so; what was saved before is there."""
    config(tiny, "continue")
    at_steps(monkeypatch, {3: lambda: (fill(disk), os.kill(os.getpid(), signal.SIGTERM))})
    assert main(["fit", "--config", str(tiny), "--run", str(disk / "run")]) == 2
    error = capsys.readouterr().err
    assert "no space left to write the checkpoint" in error.splitlines()[-1]
    assert not (disk / "run" / "0" / "preempted.json").exists()
    assert find_damage(disk / "run" / "0" / "checkpoints" / "step=2.ckpt") is None


TRAIN = """
import sys
from mm_lightning.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_no_temporary_file_outside_the_run_folder(tiny, tmp_path, monkeypatch):
    """Whatever asks for the folder of temporary files while a run trains, saves and is told to end, is refused."""
    import tempfile

    config(tiny, "stop", {"class_path": "Profiler", "init_args": {"first": 2, "steps": 1}})

    def full():
        for name in ("mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile", "TemporaryDirectory"):
            make = getattr(tempfile, name)
            monkeypatch.setattr(tempfile, name, lambda *a, make=make, **o: make(*a, **o) if o.get("dir") else refuse())

    at_steps(monkeypatch, {1: full, 3: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert main(["fit", "--config", str(tiny)]) == 85
    run = tmp_path / "run" / "0"
    assert find_damage(run / "checkpoints" / "step=4.ckpt") is None
    assert [path.name for path in (run / "profile").iterdir()] == ["steps-2-2_rank-0.pt.trace.json.gz"]
    monkeypatch.setattr(tempfile, "tempdir", None)
    for command in (["verify", str(run)], ["consolidate", str(run), "--output", str(tmp_path / "w.safetensors")]):
        assert main(["checkpoint", *command]) == 0
    assert main(["generate", "--checkpoint", str(run), "--prompt", "1", "--max_new_tokens", "2"]) == 0
    assert main(["export", "--checkpoint", str(run), "--output", str(tmp_path / "exported")]) == 0


@pytest.mark.slow
def test_a_full_folder_of_temporary_files(tiny, tmp_path, disk):
    """A process of its own, whose TMPDIR and log lie on the full disk, and which is told to end."""
    fill(disk)
    config(tiny, "stop")
    environment = {**os.environ, "TMPDIR": str(disk)}
    command = [sys.executable, "-c", TRAIN, "fit", "--config", str(tiny), "--trainer.max_steps", "10000"]
    with open(disk / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        checkpoints = tmp_path / "run" / "0" / "checkpoints"
        while process.poll() is None and not list(checkpoints.glob("step=*.ckpt")):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 85
    assert main(["checkpoint", "verify", str(tmp_path / "run" / "0")]) == 0


def test_each_thing_is_said_once_until_it_is_written_again(tmp_path, capsys):
    folder = RunFolder(tmp_path, tmp_path)
    file = tmp_path / "x.json"
    with pytest.raises(UserError, match=r"cannot write .*x.json: No space left on device. .*on_failure: continue"):
        folder.write(file, refuse)
    assert not folder.write(file, refuse, "it waits")
    folder.on_failure = "continue"
    assert not folder.write(file, refuse)
    assert not folder.write(tmp_path / "kept" / "1", refuse)
    assert not folder.write(tmp_path / "kept" / "2", refuse)
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == [str(file), str(tmp_path / "kept/1")]
    assert folder.write(file, lambda: write_text(file, "x"))
    assert not folder.write(file, refuse)
    assert f"cannot write {file} (No space left on device): training goes on without it" in capsys.readouterr().out


def test_what_waits_is_written_with_the_next_thing_that_can_be(tmp_path):
    folder = RunFolder(tmp_path, tmp_path)
    folder.on_failure = "continue"
    written, tries = [], []

    def late():
        tries.append(len(tries))
        if len(tries) < 3:
            refuse()
        written.append("late")

    assert not folder.write(tmp_path / "config.yaml", late, retry=True)
    for _ in range(4):
        assert folder.write(tmp_path / "metrics.jsonl", lambda: written.append("line"))
    assert written == ["line", "late", "line", "line", "line"]


def test_nothing_takes_the_place_of_a_run_folder_that_is_gone(tmp_path):
    run = tmp_path / "0"
    folder = RunFolder(tmp_path, run)
    folder.on_failure = "continue"
    assert not folder.write(run / "x" / "y", lambda: (run / "x").mkdir(parents=True))
    assert not run.exists()


def test_events_wait_in_memory_and_records_stay_whole(tmp_path, monkeypatch):
    logger = TensorBoard(RunFolder(tmp_path, tmp_path))
    logger.log_metrics({"x": 1.0}, 1)
    logger.save()
    with monkeypatch.context() as patch:
        patch.setattr("mm_lightning.training.event_file.append", refuse)
        for step in range(2, 5):
            logger.log_metrics({"x": float(step)}, step)
            logger.save()
    logger.log_metrics({"x": 5.0}, 5)
    logger.finalize("success")
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert [(point.step, point.value) for point in board.Scalars("x")] == [(n, n) for n in range(1, 6)]
    assert [path.name[:20] for path in tmp_path.iterdir()] == ["events.out.tfevents."]

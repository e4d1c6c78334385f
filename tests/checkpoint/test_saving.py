"""When checkpoints are saved, which stay, and what happens when one cannot be written."""

import errno
import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from runs import metrics

from mm_lightning.callbacks import Checkpoints, checkpoints
from mm_lightning.checkpoint import find_checkpoint, find_damage, trainer_io, writing
from mm_lightning.checkpoint.checksums import ChecksumFile
from mm_lightning.checkpoint.trainer_io import AtomicCheckpointIO
from mm_lightning.checkpoint.writing import snapshot
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.training.module import LanguageModule


def fit(tiny, *more: str, steps: int = 8, **settings) -> int:
    values = yaml.safe_load(tiny.read_text())
    values["trainer"] |= {"max_steps": steps, "val_check_interval": 2}
    values["trainer"]["callbacks"] = [{"class_path": "Checkpoints", "init_args": settings}]
    tiny.write_text(yaml.safe_dump(values))
    return main(["fit", "--config", str(tiny), *more])


def saved(folder) -> list[int]:
    names = os.listdir(folder / "checkpoints")
    return sorted(int(name[5:-5]) for name in names if name.startswith("step="))


def test_what_stays_and_an_asynchronous_run_goes_on_exactly(tiny, tmp_path):
    # the first validation has the largest loss
    settings = {"every_n_steps": 1, "keep": 2, "keep_every_n_steps": 4, "best": "validation/loss", "best_mode": "max"}
    assert fit(tiny, **settings) == 0
    assert fit(tiny, **settings, asynchronous=True) == 0
    folders = [tmp_path / "run" / name for name in "01"]
    for folder in folders:
        assert saved(folder) == [2, 4, 7, 8]
        best = json.loads((folder / "checkpoints" / "best.json").read_text())
        assert best == {"step": 2, "metric": "validation/loss", "value": metrics(folder, "validation/loss")[2]}
    states = [torch.load(folder / "checkpoints" / "step=7.ckpt", weights_only=True) for folder in folders]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    loss = metrics(folders[1])
    assert loss == metrics(folders[0])
    for step in (7, 8):
        (folders[1] / "checkpoints" / f"step={step}.ckpt").unlink()
    assert fit(tiny, "--resume", str(folders[1]), **settings, asynchronous=True) == 0
    assert metrics(folders[1]) == loss
    assert saved(folders[1]) == [2, 4, 7, 8]


def test_saving_by_the_clock(tiny, tmp_path, monkeypatch):
    minutes = iter(range(1000))
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(minutes)))
    assert fit(tiny, every_n_steps=0, keep=0, every_n_minutes=3) == 0
    # each look at the clock takes a minute, and so does each save
    assert saved(tmp_path / "run" / "0") == [3, 6, 8]


def fail_at(monkeypatch, *steps: int):
    """The disk is full while these steps are written."""
    save, tried = torch.save, []

    def full(content, file, **options):
        on_disk = not isinstance(file, io.BytesIO)
        if on_disk and isinstance(content, dict) and content.get("global_step") in steps:
            tried.append(content["global_step"])
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file, **options)

    monkeypatch.setattr(torch, "save", full)
    return tried


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_stops_training(tiny, tmp_path, monkeypatch, capsys, asynchronous):
    fail_at(monkeypatch, 4)
    assert fit(tiny, every_n_steps=2, asynchronous=asynchronous) == 2
    error = capsys.readouterr().err
    assert error.count("no space left to write the checkpoint") == 1
    assert "Earlier checkpoints are untouched" in error
    folder = tmp_path / "run" / "0"
    assert os.listdir(folder / "checkpoints") == ["step=2.ckpt"]
    assert find_damage(folder / "checkpoints" / "step=2.ckpt") is None


def test_a_full_disk_is_waited_out(tiny, tmp_path, monkeypatch, capsys):
    tried = fail_at(monkeypatch, 3, 4, 5)
    assert fit(tiny, every_n_steps=1, keep=1, on_failure="continue") == 0
    assert tried == [3, 4, 5]
    folder = tmp_path / "run" / "0"
    assert capsys.readouterr().out.count("training goes on without a new checkpoint: no space left") == 1
    assert os.listdir(folder / "checkpoints") == ["step=8.ckpt"]
    assert list(metrics(folder)) == list(range(1, 9))


def test_the_last_step_has_to_be_saved(tiny, tmp_path, monkeypatch, capsys):
    tried = fail_at(monkeypatch, 8)
    assert fit(tiny, every_n_steps=4, on_failure="continue", asynchronous=True) == 2
    assert tried == [8, 8]
    assert saved(tmp_path / "run" / "0") == [4]


def test_at_most_one_is_being_written(tmp_path, monkeypatch):
    writing_now, most, begun = [], [], threading.Event()

    def slow(checkpoint, target):
        writing_now.append(target)
        most.append(len(writing_now))
        begun.wait(0.05)
        writing_now.remove(target)

    monkeypatch.setattr(trainer_io, "write", slow)
    io = AtomicCheckpointIO()
    io.asynchronous = True
    for step in range(4):
        io.save_checkpoint({}, tmp_path / f"{step}.ckpt")
    assert io.finish() is None
    assert most == [1, 1, 1, 1]


def test_a_snapshot_stays_as_it_was_and_shares_what_was_shared():
    weight = torch.arange(6.0).view(2, 3)
    state = {"a": weight, "tied": weight, "part": weight[1], "list": [1, {"b": 2}], "scalar": torch.tensor(3)}
    copied = snapshot(state)
    weight += 1
    state["list"][1]["b"] = 5
    assert copied["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copied["part"].tolist() == [3, 4, 5]
    assert copied["list"] == [1, {"b": 2}]
    assert copied["a"].data_ptr() == copied["tied"].data_ptr()
    assert copied["scalar"].item() == 3


ERRORS = [KeyError("x"), MemoryError(), ValueError("odd"), pickle.PicklingError("no"), SystemExit(3), OSError(5, "I/O")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_no_error_of_the_thread_that_writes_is_lost(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    io = AtomicCheckpointIO()
    io.asynchronous = True
    io.save_checkpoint({"x": 1}, tmp_path / "step=1.ckpt")
    assert io.finish() is None
    with monkeypatch.context() as patch:
        patch.setattr(ChecksumFile, "append_checksum", fail)
        io.save_checkpoint({"x": 1}, tmp_path / "step=2.ckpt")
        io._join()
    words = error.args[1] if isinstance(error, OSError) else type(error).__name__
    with pytest.raises(UserError, match=f"cannot write the checkpoint .*step=2.ckpt: {words}"):
        io.save_checkpoint({"x": 1}, tmp_path / "step=3.ckpt")
    assert os.listdir(tmp_path) == ["step=1.ckpt"]
    monkeypatch.setattr(ChecksumFile, "append_checksum", fail)
    io.save_checkpoint({"x": 1}, tmp_path / "step=4.ckpt")
    with pytest.raises(UserError, match=r"step=4\.ckpt"):
        io.teardown()  # of a trainer whose callbacks have not asked


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_of_any_class_ends_the_run(tiny, tmp_path, monkeypatch, capsys, asynchronous):
    seal, sealed = ChecksumFile.append_checksum, []

    def fail(self):
        sealed.append(self)
        if len(sealed) > 1:
            raise KeyError("a mistake")
        seal(self)

    monkeypatch.setattr(ChecksumFile, "append_checksum", fail)
    assert fit(tiny, every_n_steps=2, asynchronous=asynchronous) == 2
    assert "step=4.ckpt: KeyError: 'a mistake'. Earlier checkpoints are untouched" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run" / "0" / "checkpoints") == ["step=2.ckpt"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_written_is_loaded_before_it_gets_its_name(tmp_path, monkeypatch, asynchronous):
    """A file system that loses what it was given."""
    io = AtomicCheckpointIO()
    io.asynchronous, io.defer_errors = asynchronous, True
    seal = ChecksumFile.append_checksum

    def lose(self):
        seal(self)
        os.truncate(self.file.fileno(), 200)

    monkeypatch.setattr(ChecksumFile, "append_checksum", lose)
    io.save_checkpoint({"x": torch.ones(300)}, tmp_path / "step=1.ckpt")
    assert "what was written cannot be loaded again" in str(io.finish())
    assert os.listdir(tmp_path) == []


def test_permission_and_a_vanished_folder(tmp_path):
    io = AtomicCheckpointIO()
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(
        UserError, match=r"cannot write the checkpoint .*File exists.*Earlier checkpoints are untouched"
    ):
        io.save_checkpoint({"x": 1}, tmp_path / "checkpoints" / "step=1.ckpt")


def test_mistakes_in_settings(tiny, capsys):
    with pytest.raises(UserError, match=r"every_n_minutes takes a number of at least 0 .*, got -1"):
        Checkpoints(every_n_minutes=-1)
    assert fit(tiny, steps=2, best="validation/los") == 2
    assert "best is 'validation/los', metrics are" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [[], ["--trainer.strategy", "deepspeed_stage_2", "--trainer.devices", "2"]])
def test_a_limit_on_the_size_of_files(tiny, tmp_path, strategy):
    """The operating system itself refuses to write: the error is one line, and nothing partial keeps a name."""
    fit(tiny, steps=2, every_n_steps=1)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    more = ["--run", str(tmp_path / "limited"), "--data.micro_batch_size", "2", *strategy]
    command = [sys.executable, "-m", "mm_lightning.cli", "fit", "--config", str(tiny), *more]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0
    assert "no space left to write the checkpoint" in done.stderr
    assert not list((tmp_path / "limited" / "0" / "checkpoints").glob("*.ckpt"))


def at_step(monkeypatch, actions: dict):
    """Does something when the first batch after so many steps comes."""
    step = LanguageModule.training_step

    def training_step(self, *args):
        actions.pop(self.global_step, lambda: None)()
        return step(self, *args)

    monkeypatch.setattr(LanguageModule, "training_step", training_step)


def deny(patch, number: int):
    """No file can be made (EACCES), or none be named (EROFS), in a folder of checkpoints."""

    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    if number == errno.EACCES:
        patch.setattr(writing, "open", refuse, raising=False)
    else:
        patch.setattr(writing, "os", SimpleNamespace(**{**vars(os), "replace": refuse}))


@pytest.mark.parametrize(("number", "asynchronous"), [(errno.EACCES, False), (errno.EROFS, True)])
def test_permission_lost(tiny, tmp_path, monkeypatch, capsys, number, asynchronous):
    folder = tmp_path / "run" / "0" / "checkpoints"
    before = []
    with monkeypatch.context() as patch:
        # step 4 is written once step 5 has begun, also by a thread, which step 6 waits for
        at_step(patch, {5: lambda: (before.append(written(folder / "step=4.ckpt")), deny(patch, number))})
        settings = {"every_n_steps": 2, "keep": 1, "asynchronous": asynchronous}
        assert fit(tiny, **settings) == 2
    error = capsys.readouterr().err
    assert error.count("cannot write the checkpoint") == 1
    assert f"step=6.ckpt: {os.strerror(number)}. Earlier checkpoints are untouched" in error
    assert os.listdir(folder) == ["step=4.ckpt"]
    assert (folder / "step=4.ckpt").read_bytes() == before[0]


def written(path) -> bytes:
    """A file that a thread may still be writing."""
    while not path.exists():
        time.sleep(0.01)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("vanished", "asynchronous", "on_failure"),
    [
        ("checkpoints", False, "continue"),
        (".", True, "continue"),
        ("checkpoints", True, "stop"),
        (".", False, "stop"),
    ],
)
def test_a_path_that_vanishes(tiny, tmp_path, monkeypatch, capsys, vanished, asynchronous, on_failure):
    """From step 3 to 6 the run folder is not there, or a file lies in the place of its checkpoints."""
    run, aside = tmp_path / "run" / "0", tmp_path / "aside"
    place, rescued = run / vanished, aside / "." / ("checkpoints" if vanished == "." else ".")

    def vanish():
        os.rename(place, aside)
        if vanished == "checkpoints":
            place.write_text("in the way")

    def come_back():
        assert os.listdir(rescued) == ["step=2.ckpt"]
        place.unlink(missing_ok=True)
        os.rename(aside, place)

    at_step(monkeypatch, {3: vanish, 6: come_back})
    status = fit(tiny, every_n_steps=2, asynchronous=asynchronous, keep=0, on_failure=on_failure)
    told = capsys.readouterr()
    if on_failure == "stop":
        assert status == 2
        assert told.err.count("\n") == 1
        assert "cannot write the checkpoint" in told.err
        assert find_damage(rescued / "step=2.ckpt") is None
        return
    assert status == 0
    assert told.out.count("training goes on without a new checkpoint: cannot write the checkpoint") == 1
    assert saved(run) == [2, 8]
    assert find_damage(run / "checkpoints" / "step=2.ckpt") is None
    assert list(metrics(run)) == list(range(1, 9))
    assert told.out.count("its lines are kept in memory until that is possible") == (vanished == ".")


def test_only_what_the_run_has_saved_is_deleted(tiny, tmp_path):
    """A file that somebody put beside the checkpoints stays, whatever its name and whatever `keep` says."""
    checkpoints = tmp_path / "run" / "0" / "checkpoints"
    foreign = ["milestone.ckpt", "step=1-copy.ckpt", "my-step=2.ckpt", "step=02.ckpt", "best.ckpt", "x.ckpt.partial"]
    foreign += ["step=2.universal", "notes.partial", "step=1.ckpt.bak", "step=-1.ckpt", "step=\u0661.ckpt"]
    assert fit(tiny, steps=2, every_n_steps=1, keep=0) == 0
    for name in foreign:
        shutil.copy(checkpoints / "step=1.ckpt", checkpoints / name)
    (checkpoints / "latest.ckpt").symlink_to("step=1.ckpt")  # which leads nowhere once that is deleted
    for name in ("step=9.ckpt.partial", "step=1.ckpt.old.partial"):
        (checkpoints / name).write_bytes(b"cut off")
    assert fit(tiny, "--resume", str(tmp_path / "run" / "0"), steps=6, every_n_steps=1, keep=2) == 0
    assert sorted(os.listdir(checkpoints)) == sorted([*foreign, "latest.ckpt", "step=5.ckpt", "step=6.ckpt"])
    for name in foreign:
        assert (checkpoints / name).stat().st_size > 1000, name
    assert find_checkpoint(tmp_path / "run" / "0").name == "step=6.ckpt"

"""Two runs never train in one folder."""

import errno
import fcntl
import json
import os
import signal

import pytest

from mm_lightning.checkpoint import run_lock
from mm_lightning.checkpoint.run_lock import LOCK, lock_run
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.training.module import LanguageModule


def test_a_second_fit_is_refused_and_touches_nothing(tiny, tmp_path, monkeypatch, capsys):
    """While a run is in its fifth step, another one resumes it; later, the same is allowed."""
    folder = tmp_path / "run" / "0"
    step, said = LanguageModule.training_step, []

    def with_another(self, *args):
        if self.global_step == 4 and not said:
            leftover = folder / "checkpoints" / "step=9.ckpt.partial"
            leftover.write_bytes(b"being written")
            said.append(main(["fit", "--config", str(tiny), "--resume"]))
            said.append(leftover.exists())
            leftover.unlink()
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModule, "training_step", with_another)
        assert main(["fit", "--config", str(tiny)]) == 0
    assert said == [2, True]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mm: ")]
    assert len(lines) == 1
    assert f"process {os.getpid()} on " in lines[0]
    assert f"is training in {folder}" in lines[0]
    assert main(["fit", "--config", str(tiny), "--resume", "--trainer.max_steps", "7"]) == 0


def test_kill_frees_it(tmp_path):
    ready, done = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            lock = lock_run(tmp_path)
            os.write(done, b"!")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"!"
        with pytest.raises(UserError, match=f"process {holder} on .* is training in {tmp_path}"):
            lock_run(tmp_path)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    lock = lock_run(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    with pytest.raises(UserError):
        lock_run(tmp_path)
    lock.close()
    lock_run(tmp_path)


def test_a_machine_that_died_is_waited_for(tmp_path, monkeypatch, capsys):
    """A server of files frees a lock of another machine only after a while."""
    other = lock_run(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps({"process": 7, "host": "elsewhere"}))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            other.close()

    monkeypatch.setattr(run_lock.time, "sleep", sleep)
    with lock_run(tmp_path):
        assert len(slept) == 3
        assert capsys.readouterr().out.count("waiting up to 120 s for process 7 on elsewhere") == 1
        (tmp_path / LOCK).write_text(json.dumps({"process": 7, "host": "elsewhere"}))
        with pytest.raises(UserError, match="process 7 on elsewhere"):
            lock_run(tmp_path, timeout=0)


def test_file_systems_without_locks(tmp_path, monkeypatch, capsys):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock_run(tmp_path)
    assert "cannot be locked (No locks available): let no second mm fit --resume run in it" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot write to the run folder"):
        lock_run(tmp_path / "nothing")

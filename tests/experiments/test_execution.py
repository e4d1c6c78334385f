"""Carrying out a sweep, with small scripts in place of `mm fit`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch

from mm_lightning.errors import UserError
from mm_lightning.experiments import launchers
from mm_lightning.experiments.execution import execute
from mm_lightning.experiments.launchers import LocalProcesses, Slurm, Work, threads_each

FINISH = """
import json, os, pathlib, sys, time
folder = pathlib.Path({folder!r}); run = folder / str(len([p for p in folder.iterdir() if p.name.isdigit()]))
run.mkdir()
(run / "metrics.jsonl").write_text('{{"step": 5, "train/loss": 2.5, "validation/loss": 3.25}}\\n')
{more}
(run / "finished.json").write_text('{{"step": 5, "seconds": 1}}')
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Makes a run whose training is a script."""
    scripts = {}
    monkeypatch.setattr(Work, "command", lambda self: [sys.executable, "-c", scripts[self.folder]])

    def work(name, more="", script=FINISH):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        scripts[folder] = script.format(folder=str(folder), more=more)
        return Work(folder, 5)

    return work


def test_runs_go_side_by_side_and_a_failure_stops_nobody(work, capsys):
    works = {
        "a": work("a"),
        "b": work("b", more="print('the reason'); sys.exit(3)"),
        "c": work("c", more="time.sleep(0.3)"),
        "d": work("d", more="sys.exit(0)"),  # ended, but not finished
    }
    outcome = execute(works, LocalProcesses(2), 0.02)
    assert sorted(outcome.finished) == ["a", "c"]
    assert sorted(outcome.failed) == ["b", "d"]
    printed = capsys.readouterr().out
    assert "FAILED b (exit status 3)" in printed
    assert works["b"].failure.read_text() == "3\n"
    assert "    the reason" in printed
    assert "done  a  validation loss 3.2500" in printed


def test_what_is_finished_is_not_repeated(work):
    works = {"a": work("a"), "b": work("b", more="sys.exit(1)")}
    assert execute(works, LocalProcesses(1), 0.02).failed == ["b"]
    work("b")
    assert works["b"].failure.exists()
    assert execute(works, LocalProcesses(1), 0.02).finished == ["a", "b"]
    assert [len(list(w.folder.glob("[0-9]"))) for w in works.values()] == [1, 2]
    assert not works["b"].failure.exists()


def test_each_of_several_runs_has_its_share_of_the_cores(work):
    one = work("a", more="(run / 'threads').write_text(os.environ.get('OMP_NUM_THREADS', ''))")
    execute({"a": one}, LocalProcesses(2), 0.02)
    assert (one.run_folder / "threads").read_text() == str(threads_each(2))


def test_an_interrupt_ends_the_runs(work, capsys):
    works = {"a": work("a", more="time.sleep(60)"), "b": work("b")}
    timer = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    launcher = LocalProcesses(1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(works, launcher, 0.02)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on" in capsys.readouterr().out
    assert launcher._places[0].poll() is not None
    assert not works["b"].run_folder
    assert not works["a"].finished()


def test_a_run_left_over_from_a_killed_sweep_is_left_alone(work, capsys):
    one = work("a", more="time.sleep(60)")
    process = LocalProcesses(1).start(one)
    try:
        outcome = execute({"a": one, "b": work("b")}, LocalProcesses(1), 0.02)
        assert (outcome.failed, outcome.finished) == (["a"], ["b"])
        assert f"still being trained by process {process._process.pid}" in capsys.readouterr().out
    finally:
        os.killpg(process._process.pid, signal.SIGKILL)
        process.wait()


def test_what_is_known_of_a_run(tmp_path):
    run = Work(tmp_path, 10)
    assert (run.run_folder, run.latest(), run.finished()) == (None, {}, False)
    folder = tmp_path / "3"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 4, "train/loss": 2}\n{"step": 8, "validation/loss": 1}\n{"step": 9')
    assert run.latest() == {"step": 8, "train/loss": 2, "validation/loss": 1}
    assert "--resume" not in run.command()
    for step in (4, 10):
        torch.save({"step": step}, folder / "checkpoints" / f"step={step}.ckpt")
    # at the last step nothing is left to do but the validation that was missed
    assert run.command()[-2:] == ["--resume", str(folder / "checkpoints" / "step=4.ckpt")]
    (folder / "finished.json").write_text(json.dumps({"step": 9, "seconds": 1}))
    assert not run.finished()
    # a callback ended a run that was to have so many steps
    (folder / "finished.json").write_text(json.dumps({"step": 9, "max_steps": 10, "seconds": 1}))
    assert run.finished()
    (folder / "finished.json").write_text(json.dumps({"step": 10, "seconds": 1}))
    assert run.finished()


SBATCH = """#!{python}
import pathlib, subprocess, sys
here = pathlib.Path({folder!r})
number = 100 + len(list(here.glob("job-*")))
(here / f"job-{{number}}").write_text("R")
line = next(x for x in open(sys.argv[-1]) if x.startswith("srun"))
words = line.replace("%j", str(number)).replace("%t", "0").split()
start = next(n for n, word in enumerate(words) if pathlib.Path(word).name.startswith("python"))
environment = {{**__import__("os").environ, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": str(number),
               "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
               "SLURM_NTASKS": "1", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "here"}}
log = open(here / "task.log", "ab")
subprocess.Popen(words[start:], env=environment, stdout=log, stderr=log, start_new_session=True)
print("Submitted batch job", number)
"""


def test_slurm_jobs(work, tmp_path, monkeypatch, capsys):
    """Against stand-ins for sbatch, srun and sacct: jobs are queued once, watched, and found again."""
    pytest.importorskip("submitit")
    tools = tmp_path / "bin"
    tools.mkdir()
    sacct = "#!/bin/sh\necho 'JobID|State|NodeList'\nfor j in 100 101; do echo \"$j|RUNNING|here\"; done\n"
    for name, text in {
        "sbatch": SBATCH.format(python=sys.executable, folder=str(tools)),
        "srun": "#!/bin/sh\n",
        "sacct": sacct,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    one = work("a")
    # the job runs elsewhere: the script in place of `mm fit` is put where its own Work looks for a command
    monkeypatch.setattr(launchers, "TrainingJob", lambda work: partial(subprocess.call, work.command()))
    launcher = Slurm(tmp_path / "slurm", {"timeout_min": 5})
    first = launcher.start(one)
    again = Slurm(tmp_path / "slurm", {}).start(one)
    assert again.job.job_id == first.job.job_id == "100"
    deadline = time.monotonic() + 30
    while first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert first.poll() == 0, (tools / "task.log").read_text()
    assert one.finished()
    with pytest.raises(UserError, match="slurm: "):
        Slurm(tmp_path / "slurm", {"gpus": 2})


def test_slurm_is_asked_for_where_there_is_none(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        Slurm(tmp_path, {})

"""A run that gets a signal saves, says so, and goes on later as if nothing had been."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
from runs import metrics

from mm_lightning.callbacks.preemption import Preemption
from mm_lightning.checkpoint import find_checkpoint
from mm_lightning.cli import main, slurm_job
from mm_lightning.training.module import LanguageModule


def send(patch, number, hook, when):
    """Sends this process a signal when a method of the module is called for the n-th time."""
    method, calls = getattr(LanguageModule, hook), []

    def called(self, *args, **kwargs):
        calls.append(0)
        if len(calls) == when:
            os.kill(os.getpid(), number)
        return method(self, *args, **kwargs)

    patch.setattr(LanguageModule, hook, called)


@pytest.mark.parametrize(
    ("number", "hook", "when", "step"),
    [
        (signal.SIGTERM, "setup", 1, 1),  # before the first step
        (
            signal.SIGUSR1,
            "training_step",
            5,
            3,
        ),  # in the first of two accumulated batches; validation is due after them
        (signal.SIGINT, "validation_step", 1, 4),  # in the validation after step 3
    ],
)
def test_a_signal_saves_and_the_run_goes_on(
    tiny, tmp_path, monkeypatch, capfd, finished_once, number, hook, when, step
):
    whole = {name: metrics(finished_once, name) for name in ("train/loss", "validation/loss")}
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with monkeypatch.context() as patch:
        send(patch, number, hook, when)
        status = main(["fit", "--config", str(tiny)])
    folder = tmp_path / "run" / "0"
    assert status == (130 if number == signal.SIGINT else 85)
    assert find_checkpoint(folder).name == f"step={step}.ckpt"
    mark = json.loads((folder / "preempted.json").read_text())
    name = "ctrl-C" if number == signal.SIGINT else number.name
    assert (mark["signal"], mark["step"], mark["checkpoint"]) == (name, step, f"step={step}.ckpt")
    assert not (folder / "finished.json").exists()
    output = capfd.readouterr()
    assert f"{name}: saved after step {step}; --resume goes on from {folder}" in output.out
    assert "once more to exit at once" in output.err
    assert list(metrics(folder)) == list(range(1, step + 1))
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before

    assert main(["fit", "--config", str(tiny), "--resume"]) == 0
    assert {name: metrics(folder, name) for name in whole} == whole  # bit for bit
    assert (folder / "metrics.jsonl").read_text().count("train/loss") == 6  # each step once
    assert not (folder / "preempted.json").exists()
    assert (folder / "finished.json").exists()


def test_the_last_step_ends_a_run_as_always(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        send(patch, signal.SIGTERM, "training_step", 12)
        assert main(["fit", "--config", str(tiny)]) == 0
    assert not (tmp_path / "run" / "0" / "preempted.json").exists()
    assert (tmp_path / "run" / "0" / "finished.json").exists()


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGTERM, "requeue 12_3\n"), (signal.SIGINT, "")])
def test_slurm_is_asked_to_queue_the_job_again(tiny, tmp_path, monkeypatch, capfd, number, asked):
    log = tmp_path / "asked"
    log.touch()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for variable, value in {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(variable, value)
    send(monkeypatch, number, "training_step", 1)
    assert main(["fit", "--config", str(tiny)]) in (85, 130)
    assert log.read_text() == asked
    assert ("Slurm job 12_3 is queued again" in capfd.readouterr().out) == bool(asked)


def test_submitit_queues_its_jobs_itself(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    assert slurm_job() == "15"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert slurm_job() is None


def test_a_second_signal_ends_the_process(monkeypatch):
    """One that comes within a second is the same: a terminal and torchrun both pass on ctrl-C."""
    ended, killed, clock = [], [], [10.0]
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    listener = Preemption()
    listener._launcher = type("Launcher", (), {"kill": lambda self, number: killed.append(number)})()
    for at, wanted in [(10.0, []), (10.9, []), (11.1, [143])]:
        clock[0] = at
        listener._notice(signal.SIGTERM, None)
        assert ended == wanted
    assert killed == [signal.SIGKILL]


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_closed_terminal_is_told_to_end_but_not_under_nohup(tmp_path, before):
    loop = SimpleNamespace(epoch_loop=SimpleNamespace())
    strategy = SimpleNamespace(launcher=None)
    trainer = SimpleNamespace(
        _signal_connector=SimpleNamespace(), fit_loop=loop, strategy=strategy, is_global_zero=False
    )
    module = SimpleNamespace(run_folder=SimpleNamespace(path=tmp_path))
    listener = Preemption()
    old = signal.signal(signal.SIGHUP, before)
    try:
        listener.setup(trainer, module, "fit")
        handler = signal.getsignal(signal.SIGHUP)
        listener.teardown(trainer, module, "fit")
        assert (handler == signal.SIG_IGN) == (before == signal.SIG_IGN)
        assert handler != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, old)


# Real processes


ENDLESS = ["--trainer.max_steps", "100000", "--trainer.val_check_interval", "100000"]


class Run:
    """`mm fit` in a process group of its own."""

    def __init__(self, tiny, folder, *more, launcher=(), code=None):
        program = ["-c", code] if code else ["-m", "mm_lightning.cli"]
        overlay = folder.with_suffix(".yaml")  # torchrun would take --run for an option of its own
        overlay.write_text(f"run: {folder}\n")
        arguments = ["fit", "--config", str(tiny), "--config", str(overlay), *ENDLESS, *more]
        self.folder = folder / "0"
        self.output = folder.with_suffix(".txt")
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *program, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # even if tests run under nohup
            )

    def wait_for(self, text):
        """Returns when it has printed a text."""
        end = time.monotonic() + 240
        while text not in self.output.read_text():
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.05)

    def processes(self):
        """The process ids of its workers that train: itself, and those it started as such."""
        listed = subprocess.run(["ps", "-o", "pid=,args=", "-g", str(self.process.pid)], capture_output=True, text=True)
        rows = [row.split(maxsplit=1) for row in listed.stdout.splitlines()]
        return [int(number) for number, command in rows if " fit --config" in command and "torch" not in command]

    def end(self):
        """Its exit status; nothing of it is left."""
        try:
            status = self.process.wait(240)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        for _ in range(200):
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return status
            time.sleep(0.1)
        raise AssertionError("a process is left over")


def check_resumable(tiny, run, *more):
    """The marked step is the newest checkpoint, and two more steps can be trained."""
    mark = json.loads((run.folder / "preempted.json").read_text())
    assert find_checkpoint(run.folder).name == f"step={mark['step']}.ckpt"
    assert max(metrics(run.folder)) == mark["step"]
    steps = ["--trainer.max_steps", str(mark["step"] + 2)]
    arguments = ["fit", "--config", str(tiny), "--run", str(run.folder.parent), "--resume", *more, *steps]
    again = [sys.executable, "-m", "mm_lightning.cli", *arguments]
    done = subprocess.run(again, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(metrics(run.folder)) == list(range(1, mark["step"] + 3))
    return mark


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_loader_workers_live_until_all_is_saved(tiny, tmp_path, number):
    run = Run(tiny, tmp_path / "run", "--data.num_workers", "2")
    run.wait_for("step      3/")
    os.killpg(run.process.pid, number)  # as Slurm and terminals do
    assert run.end() == (130 if number == signal.SIGINT else 85), run.output.read_text()
    check_resumable(tiny, run, "--data.num_workers", "2")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_leaves_no_loader_workers(tiny, tmp_path):
    run = Run(tiny, tmp_path / "run", "--data.num_workers", "2")
    run.wait_for("step      3/")
    run.process.kill()
    assert run.end() == -signal.SIGKILL


STUCK = """
import sys, time
from mm_lightning.cli import main
from mm_lightning.training.module import LanguageModule
step = LanguageModule.training_step
def slow(self, *args):
    if self.global_step == 1:
        print("stuck", flush=True)
        time.sleep(200)
    return step(self, *args)
LanguageModule.training_step = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_signal_does_not_wait(tiny, tmp_path):
    run = Run(tiny, tmp_path / "run", "--data.num_workers", "2", code=STUCK)
    run.wait_for("stuck")
    begin = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    run.wait_for("once more")
    time.sleep(1.2)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143
    assert time.monotonic() - begin < 150  # the step alone takes longer
    assert not (run.folder / "preempted.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
@pytest.mark.parametrize("whom", ["first", "other", "all"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_two_processes_save_together(tiny, tmp_path, strategy, whom, workers):
    devices = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.micro_batch_size", "2"]
    devices += ["--data.num_workers", workers]
    run = Run(tiny, tmp_path / "run", *devices)
    run.wait_for("step      3/")
    if whom == "all":
        os.killpg(run.process.pid, signal.SIGUSR1)
    else:
        others = [number for number in run.processes() if number != run.process.pid]
        assert len(others) == 1
        os.kill(run.process.pid if whom == "first" else others[0], signal.SIGTERM)
    assert run.end() == 85, run.output.read_text()
    check_resumable(tiny, run, *devices)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun_saves_before_it_ends(tiny, tmp_path):
    """torchrun passes SIGTERM on, and makes every exit status 1."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.micro_batch_size", "2"]
    run = Run(tiny, tmp_path / "run", *devices, launcher=launcher)
    run.wait_for("step      3/")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 1, run.output.read_text()
    assert check_resumable(tiny, run, *devices)["signal"] == "SIGTERM"

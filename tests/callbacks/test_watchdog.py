"""A run that hangs ends by itself and says where."""

import faulthandler
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from resuming import Case, together

from mm_lightning.callbacks import stuck_process
from mm_lightning.callbacks.watchdog import EXIT_STATUS, Watchdog
from mm_lightning.training.commands import run_training


class Ended(Exception):
    pass


def watched(minutes: float, rank: int) -> list:
    sleeper = {"class_path": "resuming.Sleeper", "init_args": {"rank": rank, "step": 2}}
    return [{"class_path": "Watchdog", "init_args": {"minutes": minutes}}, sleeper]


def test_a_run_that_stands_still_is_ended(tiny, tmp_path, monkeypatch, capfd):
    """In one process, whose end is only noted; its limit falls to a moment when it stands still."""
    ended = threading.Event()
    statuses, watchdogs = [], []
    start_monitor = Watchdog._start_monitor

    def note(watchdog):
        watchdogs.append(watchdog)
        watchdog.interval = 0.05
        start_monitor(watchdog)

    def end(status):
        statuses.append(status)
        ended.set()

    def wake(seconds):
        watchdogs[0].limit = 0.25
        assert ended.wait(60)
        raise Ended

    monkeypatch.setattr(Watchdog, "_start_monitor", note)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(time, "sleep", wake)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    with pytest.raises(Ended):
        run_training("fit", ["--config", str(tiny), f"--trainer.callbacks={json.dumps(watched(1, 0))}"])
    said = capfd.readouterr().err
    assert statuses[0] == EXIT_STATUS
    assert re.search(
        r"rank 0 made no progress for \d+ s after step 2, at the end of a batch or waiting for data:", said
    )
    assert "in wake" in said  # the stack
    assert "is behind: after step 2, at the end of a batch" in said
    assert not (tmp_path / "run" / "0" / "heartbeats").exists()


class Script:
    """Stands for the event that ends a watch: each wait takes the next of some times, and does something meanwhile."""

    def __init__(self, monkeypatch, watchdog, *waits):
        self.now, self.waits, self.watchdog = 0.0, list(waits), watchdog
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def wait(self, seconds):
        if not self.waits:
            return True
        passed, beats = self.waits.pop(0)
        self.now += passed
        self.watchdog._beats += beats
        return False


@pytest.mark.parametrize(
    ("waits", "ends"),
    [
        ([(15, 0)] * 4, False),
        ([(15, 0)] * 5, True),  # after 75 of 60 s
        ([(15, 0)] * 3 + [(15, 1)] + [(15, 0)] * 4, False),
        ([(15, 0), (90, 0), (15, 0)], False),  # stopped for 1.5 times the limit
        ([(100_000, 0), (15, 0), (15, 0)], False),
        ([(15, 1), (100_000, 0), (15, 1), (100_000, 0), (15, 1)], False),
        ([(15, 0), (100_000, 0), (15, 0), (15, 0), (15, 0)], True),  # and hangs afterwards
    ],
)
def test_a_process_that_was_stopped_does_not_hang(monkeypatch, waits, ends):
    watchdog = Watchdog(minutes=1)
    given_up = []
    watchdog._stopped = Script(monkeypatch, watchdog, *waits)
    watchdog._monitor = SimpleNamespace(stdin=io.BytesIO())
    monkeypatch.setattr(watchdog, "_write", lambda still: None)
    monkeypatch.setattr(watchdog, "_end_run", given_up.append)
    watchdog._watch()
    assert bool(given_up) == ends


def test_the_end_is_told_where_no_heartbeat_could_be_written(monkeypatch, tmp_path, capsys):
    """A full disk, for one."""
    watchdog = Watchdog(minutes=1)
    watchdog._rank, watchdog._ranks, watchdog._folder = 1, 2, tmp_path / "gone" / "heartbeats"
    watchdog._stopped = threading.Event()
    watchdog._stopped.set()
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda file: None)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    watchdog._end_run(70)
    assert ended == [EXIT_STATUS]
    assert "rank 1 on " in (said := capsys.readouterr().err)
    assert "no heartbeat of ranks [0]" in said


OUTSIDE = """
import ctypes, faulthandler, os, signal, subprocess, sys, time
dump = int(signal.SIGRTMAX)
faulthandler.register(dump, all_threads=True)
words = [sys.executable, "-I", "-S", sys.argv[1], str(os.getpid()), "0.75", "0.125", str(dump)]
child = subprocess.Popen(words, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
print(child.pid, flush=True)
def stuck_here():
    while True:  # a signal ends a sleep
        ctypes.PyDLL(None).sleep(60)  # with the interpreter's lock, so that no thread of Python's runs
for _ in range(10):  # longer than the limit
    child.stdin.write(b".")
    time.sleep(0.1)
if sys.argv[2] == "stuck":
    stuck_here()
"""


@pytest.fixture(scope="module")
def outside():
    """A process that gets stuck and one that is stopped for a while, side by side: each and what watches it."""
    watched = {}
    for how in ("stuck", "stopped"):
        arguments = [sys.executable, "-c", OUTSIDE, stuck_process.__file__, how]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watched[how] = process, int(process.stdout.readline())
    stopped, _ = watched["stopped"]
    stopped.send_signal(signal.SIGSTOP)
    time.sleep(2)  # more than twice the limit
    stopped.send_signal(signal.SIGCONT)
    yield watched
    for process, _ in watched.values():
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and real-time signals")
@pytest.mark.parametrize("how", ["stuck", "stopped"])
def test_a_process_is_watched_from_outside(outside, how):
    process, child = outside[how]
    _, said = process.communicate(timeout=60)
    if how == "stopped":
        assert (process.returncode, said) == (0, "")
    else:
        assert process.returncode == -signal.SIGKILL
        assert f"process {process.pid} is stuck outside Python and is ended" in said
        assert "in stuck_here" in said  # its stack
    for _ in range(100):  # the watching process ends with it
        if not os.path.exists(f"/proc/{child}"):
            return
        time.sleep(0.1)
    raise AssertionError("the watching process is left over")


STOPPED = """
import ctypes, os, sys
from mm_lightning.cli import main
from mm_lightning.training.module import LanguageModule
step = LanguageModule.training_step
def training_step(self, *args):
    if self.global_step == 3 and os.environ["HOW"] == "stuck":
        ctypes.PyDLL(None).sleep(600)
    return step(self, *args)
LanguageModule.training_step = training_step
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["stuck", "stopped"])
def test_a_real_run(tiny, tmp_path, how):
    watchdog = [{"class_path": "Watchdog", "init_args": {"minutes": 0.2}}]
    steps = 100_000 if how == "stopped" else 10
    arguments = ["fit", "--config", str(tiny), f"--trainer.callbacks={json.dumps(watchdog)}"]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, *arguments, "--trainer.max_steps", str(steps), "--data.num_workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HOW": how, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    if how == "stopped":
        metrics = tmp_path / "run" / "0" / "metrics.jsonl"
        while process.poll() is None and (not metrics.is_file() or metrics.stat().st_size < 2000):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(32)  # more than 1.5 times the limit of 12 s and the 10 s that are given beyond it
        before = metrics.stat().st_size
        os.killpg(process.pid, signal.SIGCONT)
        while process.poll() is None and metrics.stat().st_size <= before + 2000:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == (85 if how == "stopped" else -signal.SIGKILL), said
    assert ("stuck outside Python" in said) == (how == "stuck")
    assert how == "stopped" or "in training_step" in said


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_process_that_is_behind_is_named(tiny, tmp_path):
    settings = {"trainer.strategy": "ddp", "data.micro_batch_size": 2}
    case = Case("sleeps", settings, more=watched(0.4, 1))
    assert together(str(tiny), tmp_path, [(case, 0, None)]) == [EXIT_STATUS] * 2
    logs = [(tmp_path / f"rank{rank}.log").read_text() for rank in range(2)]
    for log in logs:
        assert "no progress for 0.4 minutes (Watchdog): rank 1 on " in log
    assert re.search(r"rank 0 made no progress for \d+ s after step 2, ", logs[0])
    assert f"{os.sep}distributed{os.sep}" in logs[0]
    assert re.search(r"rank 1 made no progress for \d+ s after step 2, at the end of a batch", logs[1])
    assert "in on_train_batch_end" in logs[1]

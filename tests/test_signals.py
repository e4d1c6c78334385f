"""Signals end commands as ctrl-C does; they are listened to in the main thread, and nowhere else."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_lightning.cli import main
from mm_lightning.inference.chat import calling_on_ctrl_c
from mm_lightning.signals import Ended, ending, listen, noticed, restore


def test_in_the_main_thread_and_back():
    seen = []
    before = signal.getsignal(signal.SIGUSR1)
    handlers = listen([signal.SIGUSR1], lambda number, frame: seen.append(number))
    signal.raise_signal(signal.SIGUSR1)
    restore(handlers)
    assert seen == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_in_another_thread_they_stay_as_they_are():
    before = signal.getsignal(signal.SIGINT)

    def talk() -> bool:
        with calling_on_ctrl_c(lambda: None):
            return signal.getsignal(signal.SIGINT) is before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(talk).result()
        assert pool.submit(listen, [signal.SIGINT], print).result() == {}
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
@pytest.mark.parametrize(("command", "status"), [(["fit"], 85), (["fit", "--plan", "8"], 0), (["evaluate"], 0)])
def test_a_signal_ends_any_command_as_ctrl_c_does(monkeypatch, capfd, number, command, status):
    cleaned = []

    def work(args):
        try:
            os.kill(os.getpid(), number)
            raise AssertionError
        except KeyboardInterrupt:
            cleaned.append(1)
            raise

    monkeypatch.setattr("mm_lightning.cli.dispatch", work)
    before = signal.getsignal(number)
    assert main(command) == (status or 128 + number)
    assert cleaned
    assert signal.getsignal(number) is before
    said = "ended before the first step; the same command goes on" if status else "ended"
    assert capfd.readouterr().err == f"mm: {number.name}: {said}\n"


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_the_process_at_once(monkeypatch):
    ended, clock = [], [10.0]
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr("mm_lightning.signals.time.monotonic", lambda: clock[0])
    with ending():
        assert not noticed()
        with pytest.raises(Ended):
            signal.raise_signal(signal.SIGTERM)
        assert noticed() == signal.SIGTERM  # also where Python has dropped what was raised
        for at, wanted in ((10.9, []), (11.1, [143])):
            clock[0] = at
            signal.raise_signal(signal.SIGTERM)
            assert ended == wanted
    assert not noticed()


@pytest.mark.parametrize(
    ("environment", "number", "status", "asked"),
    [
        ({}, signal.SIGTERM, 85, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, signal.SIGTERM, 85, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, signal.SIGUSR1, 85, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, signal.SIGUSR1, 85, False),
        ({"LOCAL_RANK": "1"}, signal.SIGUSR1, 0, False),  # a child of Lightning's: its parent decides
        ({"SUBMITIT_EXECUTOR": "slurm"}, signal.SIGUSR2, 85, False),
    ],
)
def test_the_first_process_queues_the_job_again(monkeypatch, capfd, environment, number, status, asked):
    jobs, sent = [], []
    monkeypatch.setattr("mm_lightning.signals.requeue", lambda job: jobs.append(job) or f"{job} queued")
    monkeypatch.setattr("mm_lightning.cli.dispatch", lambda args: signal.raise_signal(number))
    monkeypatch.setattr(os, "getppid", lambda: -7)
    monkeypatch.setattr(os, "kill", lambda *to: sent.append(to))
    for name, value in {"SLURM_JOB_ID": "15", **environment}.items():
        monkeypatch.setenv(name, value)
    assert main(["fit"]) == status
    assert jobs == ["15"] * asked
    assert ("mm: 15 queued" in capfd.readouterr().err) == asked
    assert sent == [(-7, number)] * (status == 0)


def test_a_chat_ends_too(monkeypatch):
    """Where ctrl-C only ends an answer."""
    from mm_lightning.inference import chat

    monkeypatch.setattr("builtins.input", lambda _: signal.raise_signal(signal.SIGTERM))
    with ending(), pytest.raises(Ended):
        chat.read_turns(None)


STUCK = """
import ctypes, sys, threading
from mm_lightning import cli, signals
signals.STUCK = 0.3
def wait(args):
    signals.when_stuck.append(lambda told: print("others of", told, flush=True))
    threading.Timer(0.5, lambda: print("waiting", flush=True)).start()
    mutex = (ctypes.c_char * 64)()
    for _ in range(2):  # the second time waits for ever, and no signal interrupts it
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
cli.dispatch = wait
sys.exit(cli.main(["fit"]))
"""


def test_a_main_thread_that_waits_in_native_code_is_ended_from_another():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 85
    assert out == "others of SIGUSR1\n"
    assert err == "mm: SIGUSR1: ended before the first step; the same command goes on\n"

"""A run that hangs ends by itself and says where."""

import json
import os
import sys
import threading
import time

import pytest
from resuming import Case, together

from mm_lightning.callbacks.watchdog import EXIT_STATUS
from mm_lightning.training.cli import run_training


class Ended(Exception):
    pass


def watched(minutes: float, rank: int) -> list:
    sleeper = {"class_path": "resuming.Sleeper", "init_args": {"rank": rank, "step": 2}}
    return [{"class_path": "Watchdog", "init_args": {"minutes": minutes}}, sleeper]


def test_a_run_that_stands_still_is_ended(tiny, tmp_path, monkeypatch, capfd):
    """In one process, whose end is only noted."""
    ended = threading.Event()
    statuses = []

    def end(status):
        statuses.append(status)
        ended.set()

    def wake(seconds):
        assert ended.wait(60)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(time, "sleep", wake)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    with pytest.raises(Ended):
        run_training("fit", ["--config", str(tiny), f"--trainer.callbacks={json.dumps(watched(0.02, 0))}"])
    said = capfd.readouterr().err
    assert statuses[0] == EXIT_STATUS
    assert "rank 0 stands after step 2, at the end of a batch or waiting for data, for " in said
    assert "in wake" in said  # the stack
    assert "is behind: after step 2, at the end of a batch" in said
    assert not (tmp_path / "run" / "0" / "heartbeats").exists()


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_process_that_is_behind_is_named(tiny, tmp_path):
    settings = {"trainer.strategy": "ddp", "data.micro_batch_size": 2}
    case = Case("sleeps", settings, more=watched(0.4, 1))
    assert together(str(tiny), tmp_path, [(case, 0, None)]) == [EXIT_STATUS] * 2
    logs = [(tmp_path / f"rank{rank}.log").read_text() for rank in range(2)]
    for log in logs:
        assert "no progress for 0.4 minutes (Watchdog): rank 1 on " in log
    assert "rank 0 stands after step 2, " in logs[0]
    assert f"{os.sep}distributed{os.sep}" in logs[0]
    assert "rank 1 stands after step 2, at the end of a batch" in logs[1]
    assert "in on_train_batch_end" in logs[1]

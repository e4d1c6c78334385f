"""Lines that tell how a command proceeds."""

import os
import subprocess
import sys

import pytest
from lightning.pytorch.utilities import rank_zero_only

from mm_lightning.console import clock, is_first_process, say


@pytest.mark.parametrize(("stderr", "streams"), [(False, ("token=***\n", "")), (True, ("", "token=***\n"))])
def test_a_line_is_printed_without_secrets(capsys, stderr, streams):
    say("token=hf_abcdefghijklmnopqrstuvwxyz012345", stderr=stderr)
    assert capsys.readouterr() == streams


@pytest.mark.interfaces
def test_with_lightning_its_count_of_processes_decides(capsys, monkeypatch):
    assert is_first_process()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert not is_first_process()
    say("from the second")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("rank", "printed"), [("0", "x\n"), ("1", "")])
def test_without_lightning_the_environment_decides(rank, printed):
    code = "from mm_lightning.console import say; say('x'); import sys; assert 'lightning' not in sys.modules"
    environment = {**os.environ, "RANK": rank}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == printed


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3725, "1:02:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text

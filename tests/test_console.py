"""What a command shows while it works: lines, progress bars, tables."""

import io
import os
import re
import subprocess
import sys

import pytest
from lightning.pytorch.utilities import rank_zero_only

from mm_lightning import console
from mm_lightning.console import Progress, clock, is_first_process, print_table, say


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


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_and_lines_above_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(sys, "stdout", piped := io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    with Progress("reading", 3000) as bar:
        bar.advance(1000)
        say("goes to the pipe")
        say("goes above", stderr=True)
        with bar.part("inner", None) as inner:
            inner.advance(5)
    assert piped.getvalue() == "goes to the pipe\n"
    assert "goes above\n" in terminal.getvalue()
    assert re.search(r"reading [^[]*\x1b.*\x1b\[0m  33% 1,000/3,000 ", terminal.getvalue())
    assert terminal.getvalue().endswith("\x1b[2K")  # nothing of it is left


def test_a_pipe_gets_a_line_a_minute(capsys, monkeypatch):
    with Progress("reading", 4000) as bar:
        bar.advance(1000)
        assert capsys.readouterr().err == ""
        now = console.time.monotonic()
        monkeypatch.setattr(console.time, "monotonic", lambda: now + 61)
        bar.advance(1000)
        bar.advance(1000)
        assert capsys.readouterr() == ("", "reading: 50% 2,000/4,000\n")


def test_other_processes_and_quiet_commands_show_neither_bars_nor_tables(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", -1.0)
    with Progress("reading", 2, shown=False) as bar, bar.part("inner", 2) as inner:
        bar.advance()
        inner.advance()
    monkeypatch.setattr(console, "is_first_process", lambda: False)
    with Progress("reading", 2) as bar:
        bar.advance()
    print_table(["a"], [["b"]])
    assert capsys.readouterr() == ("", "")


def test_a_table_in_a_file_keeps_long_cells_whole(capsys):
    print_table(["name", "loss"], [["x" * 500, "1.5"], None, ["all", "[bold]2"]], title="run: a", caption="of two")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "run: a"
    assert lines[-1] == "of two"
    assert ["x" * 500, "1.5"] in [line.split() for line in lines]
    assert any(line.endswith("  [bold]2") for line in lines)


def test_a_narrow_terminal_hides_no_column(monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    heads = ["name", *(f"column {n}" for n in range(9))]
    print_table(heads, [["row " * 30, *(f"{123456 + n:,}" for n in range(9))]])
    printed = terminal.getvalue()
    assert [f"{123456 + n:,}" in printed for n in range(9)] == [True] * 9
    assert printed.count("row") == 3 * 30  # the names again in each of three tables


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3725, "1:02:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text

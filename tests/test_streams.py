"""Commands whose standard output or error goes away."""

import os
import signal
import subprocess
import sys

import pytest

from mm_lightning.cli import prints_its_result
from mm_lightning.streams import NOTE

WORK = """
import sys
from pathlib import Path
from mm_lightning import cli, streams

def work(args):
    streams.note_in(Path(sys.argv[2]))
    import logging, subprocess
    logging.warning("warned")
    for n in range(3):
        print("line", n, flush=True)
        print("error", n, file=sys.stderr, flush=True)
    sys.stdout.buffer.write(b"bytes")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", "print('child', flush=True)"], check=True)
    print("left in the buffer")
    Path(sys.argv[2], "done").touch()

cli.dispatch = work
sys.exit(cli.main(sys.argv[1:2]))
"""


def run(tmp_path, command, out=None, err=None, code=WORK, closed=""):
    """The exit status of a command, with what it printed to standard error where that is a pipe that is read."""
    arguments = [sys.executable, "-c", code, command, str(tmp_path)]
    if closed:
        arguments = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *arguments]
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        arguments, stdout=out, stderr=err or subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, timeout=60
    )
    return done.returncode, (done.stderr or b"").decode()


@pytest.fixture
def without_reader():
    """The end of a pipe that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    yield writes
    os.close(writes)


def test_work_goes_on_without_output(tmp_path, without_reader):
    status, said = run(tmp_path, "fit", out=without_reader)
    assert status == 0
    assert (tmp_path / "done").exists()
    assert said.count("standard output: Broken pipe: going on without it") == 1
    assert "Exception ignored" not in said
    assert [f"error {n}" in said for n in range(3)] == [True] * 3
    assert (tmp_path / NOTE).read_text().count("standard output: Broken pipe") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_both_streams_lost(tmp_path, without_reader, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    assert run(tmp_path, "fit", out=without_reader, err=without_reader)[0] == 0
    assert (tmp_path / "done").exists()
    note = (tmp_path / NOTE).read_text()
    assert (note.count("standard output"), note.count("standard error")) == (1, 1)


def test_closed_streams(tmp_path):
    """Files that are opened later do not get the numbers of the standard streams."""
    code = WORK.replace("def work(args):", "def work(args):\n    assert open(sys.executable).fileno() > 2")
    assert run(tmp_path, "fit", code=code, closed="<&- >&- 2>&-")[0] == 0
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_the_output(tmp_path):
    with open("/dev/full", "wb") as full:
        status, said = run(tmp_path, "fit", out=full)
        assert status == 0
        assert (tmp_path / "done").exists()
        assert "standard output: No space left on device: going on without it" in said
        status, said = run(tmp_path, "--help", out=full)
    assert status == 2
    assert "standard output: No space left on device: what it has is cut short" in said


def test_a_file_gets_again_what_fits(tmp_path):
    """A full disk is one for a while: here the limit on the size of files is raised again."""
    raised = """
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, hard):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        print("limit", limit, flush=True)
    """
    code = WORK.replace("    import logging, subprocess\n", raised.lstrip("\n") + "    import logging, subprocess\n")
    with open(tmp_path / "log.txt", "wb") as log:
        assert run(tmp_path, "fit", out=log, code=code)[0] == 0
    said = (tmp_path / "log.txt").read_text()
    assert "limit 0" not in said
    assert "line 0\n" in said
    assert said.endswith("left in the buffer\n")


def test_what_is_only_printed_ends_with_its_reader(tmp_path, without_reader):
    status, said = run(tmp_path, "--help", out=without_reader)
    assert status == 128 + signal.SIGPIPE
    assert said.splitlines() == ["WARNING:root:warned"]
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("", True),
        ("--version", True),
        ("fit --help", True),
        ("fit --config a.yaml --print_config", True),
        ("fit --config a.yaml --plan=8", True),
        ("generate --checkpoint a", True),
        ("checkpoint list a", True),
        ("checkpoint convert a", False),
        ("fit --config a.yaml", False),
        ("evaluate --checkpoint a", False),
        ("data prepare a", False),
        ("sweep a.yaml", False),
        ("benchmark step", False),
    ],
)
def test_commands_that_end_with_their_reader(command, printed):
    assert prints_its_result(command.split()) == printed

"""Command lines with nonsense in them, made from the parsers of all commands: each ends in one line, never a traceback.

`FUZZ_LINES=2000 pytest -n 0 -m slow tests/test_command_fuzz.py` tries more of them.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_lines import bases, furnish, lines, spoiled, state, try_line
from tiny_run import TINY

from mm_lightning.cli import COMMANDS, TRAINING, main
from mm_lightning.shipped import configs_folder

COUNT = int(os.environ.get("FUZZ_LINES", "100"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with prepared data, a config of a tiny run and that run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").mkdir()
    for n in range(24):
        (folder / "text" / f"{n}.txt").write_text(" ".join(str(k * (n + 1)) for k in range(60 + 5 * n)))
    made = ["--output", str(folder / "data"), "--validation_fraction", "0.3", "--progress", "false", "--workers", "1"]
    assert main(["data", "prepare", str(folder / "text"), *made]) == 0
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "path": str(folder / "data")}}))
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--run", str(folder / "runs")]) == 0
    return folder


class Sandbox:
    """A folder that is made anew after every command line that has changed it."""

    def __init__(self, folder: Path, trained: Path):
        self.folder, self.trained = folder, trained
        self.fill()

    def fill(self) -> None:
        if self.folder.exists():
            (self.folder / "closed").chmod(0o700)
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        furnish(self.folder, self.trained / "runs" / "0", self.trained / "data", self.trained / "tiny.yaml")
        self.state = state(self.folder)

    def run(self, args: list[str]) -> str:
        ended = try_line(args, self.folder)
        if state(self.folder) != self.state:
            self.fill()
        return f"mm {args!r}: {ended.wrong}\n{ended.err[-500:]}" if ended.wrong else ""


@pytest.fixture
def sandbox(tmp_path, trained):
    box = Sandbox(tmp_path / "box", trained)
    yield box
    (box.folder / "closed").chmod(0o700)


def test_there_is_a_small_line_for_every_command():
    assert set(bases()) == {*COMMANDS, *TRAINING}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_nonsense_ends_in_one_line(seed, sandbox):
    wrong = [problem for args in lines(seed, COUNT) if (problem := sandbox.run(args))]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_spoiled_config_ends_in_one_line(seed, sandbox):
    dice = random.Random(seed)
    shipped = [path.read_text() for path in sorted(configs_folder().glob("*.yaml"))]
    wrong = []
    for _ in range(COUNT):
        text = dice.choice([*shipped, (sandbox.folder / "tiny.yaml").read_text()])
        (sandbox.folder / "bad.yaml").write_bytes(spoiled(text, dice))
        command = dice.choice([["cost"], ["cost"], ["fit", "--plan", "1", "--run", "out"]])
        sandbox.state = state(sandbox.folder)
        if problem := sandbox.run([*command, "--config", "bad.yaml"]):
            wrong.append(f"{problem}\n{(sandbox.folder / 'bad.yaml').read_bytes()[:300]!r}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nonsense_in_a_process_of_its_own(sandbox):
    for args in [line for line in lines(5, 300) if line[0] != "benchmark"][::25]:
        words = [word.encode(errors="surrogateescape") for word in args]
        done = subprocess.run(
            [sys.executable, "-m", "mm_lightning.cli", *words],
            cwd=sandbox.folder,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode in (0, 2), (args, done.stderr)
        assert b"Traceback" not in done.stderr, args
        if done.returncode == 2:
            assert len(done.stderr.splitlines()) == 1, (args, done.stderr)

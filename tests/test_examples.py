"""The scripts of docs/examples run on a network as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

from mm_lightning.cli import main

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def test_look_inside(tiny, tmp_path):
    assert main(["fit", "--config", str(tiny)]) == 0
    command = [sys.executable, str(EXAMPLES / "look_inside.py"), str(tmp_path / "run"), "0 1 2 3 4 5 6 7 8 9"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert out.returncode == 0, out.stderr
    assert "20 tokens, levels ['long', 'short']" in out.stdout
    assert out.stdout.count("layer 1") == 2  # one line a level
    assert (tmp_path / "retrieval_profile.png").stat().st_size > 1000

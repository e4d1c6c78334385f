"""The scripts of docs/examples run on a network as a user would run them."""

import runpy
from pathlib import Path

import pytest
from saved_networks import save_run

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def test_look_inside(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("agg")
    script, run = str(EXAMPLES / "look_inside.py"), save_run(tmp_path / "run", "v2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [script, str(run), "0 1 2 3 4 5 6 7 8 9"])
    runpy.run_path(script, run_name="__main__")
    out = capsys.readouterr().out
    assert "20 tokens, levels ['long', 'short']" in out
    assert out.count("layer 1") == 2  # one line a level
    assert (tmp_path / "retrieval_profile.png").stat().st_size > 1000

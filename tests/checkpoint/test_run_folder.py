"""Numbers of run folders."""

import pytest

from mm_lightning.checkpoint.environment import describe_environment
from mm_lightning.checkpoint.run_folder import RunFolder


def test_fresh_runs_take_the_next_number(tmp_path):
    assert RunFolder(tmp_path / "r").path == tmp_path / "r" / "0"
    (tmp_path / "r" / "9").mkdir()
    (tmp_path / "r" / "notes").mkdir()
    folder = RunFolder(tmp_path / "r")
    assert folder.path == tmp_path / "r" / "10" == folder.path


def test_a_folder_in_which_nothing_happened_is_removed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.path.mkdir(exist_ok=True)
    folder.remove_unused()
    assert not folder.path.exists()


@pytest.mark.parametrize("left", ["metrics.jsonl", "bad_steps/step=1/step.json", "preempted.json", "mine.txt"])
def test_a_folder_in_which_something_happened_stays(tmp_path, left):
    used = RunFolder(tmp_path)
    for name in ("config.yaml", ".lock", "events.out.tfevents.0.hparams", left):
        (used.path / name).parent.mkdir(parents=True, exist_ok=True)
        (used.path / name).write_text("")
    used.remove_unused()
    assert (used.path / left).exists()


def test_the_environment_names_versions_and_hardware():
    found = describe_environment()
    assert found["packages"]["mm-lightning"]
    assert found["cpu"]["memory_bytes"] > 0
    assert found["code"] is None or len(found["code"]["commit"]) == 40

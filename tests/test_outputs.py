"""Files that are to be written, looked at before there is anything to write; and written whole."""

import json
import os

import pytest

from mm_lightning.errors import UserError
from mm_lightning.outputs import check_output, opened, write_json, write_text


def test_a_file_that_can_be_written(tmp_path):
    target = check_output(tmp_path / "new" / "folder" / "a.txt")
    assert not target.parent.exists()
    with opened(target) as file:
        file.write("hello")
    assert check_output(target).read_text() == "hello"


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("hello")
    with pytest.raises(UserError, match="is a folder: name a file"):
        check_output(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*b\.txt: .*a\.txt is a file, not a folder"):
        check_output(file / "new" / "b.txt")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission"):
        check_output(file)
    assert file.read_text() == "hello"


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_json(file, {"a": "é"})
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "é"}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(file, "half")
    assert json.loads(file.read_text(encoding="utf-8")) == {"a": "é"}


@pytest.mark.parametrize(
    "command",
    [
        "generate x --prompt a",
        "inspect x --prompt a",
        "remember x --text TEXT",
        "benchmark step",
        "benchmark decode",
        "benchmark retrieval x",
    ],
)
def test_commands_look_before_they_work(command, tmp_path, capsys, monkeypatch):
    from mm_lightning.cli import main

    monkeypatch.setattr("mm_lightning.training.checkpoint.load_network", lambda *_: pytest.fail("work was begun"))
    text = tmp_path / "a.txt"
    text.write_text("hello")
    words = command.replace("TEXT", str(text)).split()
    assert main([*words, "--output", str(text / "new"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == f"mm: cannot write {text / 'new'}: {text} is a file, not a folder\n"

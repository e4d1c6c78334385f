"""Files that are to be written, looked at before there is anything to write; and written whole."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mm_lightning.cli import COMMANDS, load, main
from mm_lightning.errors import UserError
from mm_lightning.function_command import function_parser
from mm_lightning.outputs import (
    CHECKPOINT,
    MEMORY,
    SAFETENSORS,
    TEXT,
    FolderKind,
    check_folder,
    check_output,
    opened,
    staged,
    write_json,
    write_text,
)


def test_a_file_that_can_be_written(tmp_path):
    target = check_output(tmp_path / "new" / "folder" / "a.txt")
    assert not target.place.parent.exists()
    with opened(target) as file:
        file.write("hello")
    assert check_output(target.place, overwrite=True).place.read_text() == "hello"


def test_files_that_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("hello")
    with pytest.raises(UserError, match="is a folder: name a file"):
        check_output(tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*b\.txt: .*a\.txt is a file, not a folder"):
        check_output(file / "new" / "b.txt")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="no permission"):
        check_output(file, overwrite=True)
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


KIND = FolderKind("a thing", "mark", ("*.txt", "in/*"))


@pytest.mark.parametrize(
    ("content", "kind", "allowed"),
    [
        ("text", TEXT, True),
        ("", CHECKPOINT, True),
        ("zip", TEXT, False),
        ("weights", TEXT, False),
        ("weights", MEMORY, False),
        ("weights", SAFETENSORS, True),
        ("memory", SAFETENSORS, False),
        ("memory", MEMORY, True),
        ("text", CHECKPOINT, False),
        ("binary", TEXT, False),
    ],
)
def test_a_file_is_replaced_if_asked_to_and_by_its_kind_alone(tmp_path, content, kind, allowed):
    target = tmp_path / "a"
    if content == "zip":
        torch.save({}, target)
    elif content in ("weights", "memory"):
        about = {"format": "mm-lightning memory"} if content == "memory" else {"format": "pt"}
        save_file({"x": torch.zeros(3)}, target, about)
    else:
        target.write_bytes(b"\0\1" if content == "binary" else content.encode())
    before = target.read_bytes()
    with pytest.raises(UserError, match="exists: give another --output, or --overwrite"):
        check_output(target, kind=kind)
    if allowed:
        assert check_output(target, overwrite=True, kind=kind).overwrite
    else:
        with pytest.raises(UserError, match=f"and {kind} would take its place"):
            check_output(target, overwrite=True, kind=kind)
    assert target.read_bytes() == before


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "environment.json", "evaluation.jsonl"])
def test_what_a_training_has_written_of_itself_stays(tmp_path, name):
    """They are text files, as answers are: with --overwrite, answers took their place."""
    (tmp_path / "checkpoints").mkdir()
    for there in (tmp_path / name, tmp_path / "predictions.jsonl"):
        there.write_text("{}\n")
    with pytest.raises(UserError, match="is what a training has written of itself"):
        check_output(tmp_path / name, overwrite=True)
    assert check_output(tmp_path / "predictions.jsonl", overwrite=True).overwrite
    (tmp_path / "checkpoints").rmdir()
    assert name == "metrics.jsonl" or check_output(tmp_path / name, overwrite=True).overwrite


def test_what_a_command_reads_is_never_its_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link", tmp_path / "a"):
        with pytest.raises(UserError, match="is what the command reads"):
            check_output(name, overwrite=True, inputs=[None, "nowhere", "a"])
    with pytest.raises(UserError, match="--output is empty"):
        check_output("")
    with pytest.raises(UserError, match="File name too long"):
        check_output("a" * 256)


def test_folders_are_replaced_if_all_in_them_is_of_the_kind(tmp_path):
    folder = tmp_path / "folder"
    check_folder(folder, KIND)
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "sub").rmdir()
    check_folder(folder, KIND)
    (folder / "a.txt").touch()
    with pytest.raises(UserError, match=r"exists and is not a thing, .* \(it has no mark\)"):
        check_folder(folder, KIND, overwrite=True)
    (folder / "mark").touch()
    with pytest.raises(UserError, match="exists: give another --output, or --overwrite"):
        check_folder(folder, KIND)
    check_folder(folder, KIND, overwrite=True)
    (folder / "mine.md").touch()
    with pytest.raises(UserError, match=r"it also holds mine\.md"):
        check_folder(folder, KIND, overwrite=True)
    (tmp_path / "link").symlink_to(folder / "mine.md")
    with pytest.raises(UserError, match="is a file: name a folder"):
        check_folder(tmp_path / "link", KIND, overwrite=True)


@pytest.mark.parametrize("shared", [False, True])
def test_the_old_folder_is_there_until_the_new_one_is_whole(tmp_path, shared):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("mark", "old.txt", *(["mine.md"] if shared else [])):
        (folder / name).write_text("before")
    neighbors = ["folder.partial", "folder.tmp"]
    for name in neighbors:
        (tmp_path / name).write_text("mine")
    target = check_folder(folder, dataclasses.replace(KIND, shared=shared), overwrite=True)
    with contextlib.suppress(KeyboardInterrupt), staged(target) as part:
        part.mkdir()
        (part / "new.txt").write_text("half")
        raise KeyboardInterrupt
    assert sorted(os.listdir(tmp_path)) == ["folder", *neighbors]
    assert (folder / "old.txt").read_text() == "before"
    with staged(target) as part:
        part.mkdir()
        (part / "mark").write_text("after")
        assert (folder / "mark").read_text() == "before"
    assert sorted(os.listdir(folder)) == (["mark", "mine.md"] if shared else ["mark"])
    assert (folder / "mark").read_text() == "after"
    assert sorted(os.listdir(tmp_path)) == ["folder", *neighbors]


def test_names_beside_are_fresh_and_failures_leave_nothing(tmp_path):
    place = tmp_path / "new" / "a.txt"
    with contextlib.suppress(ZeroDivisionError), opened(check_output(place)) as file:
        file.write("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with contextlib.suppress(ZeroDivisionError), opened(check_output(place), keep=True) as file:
        file.write("half")
        raise ZeroDivisionError
    (kept,) = (tmp_path / "new").iterdir()
    assert kept.read_text() == "half"
    kept.rename(tmp_path / "new" / "a.txt.tmp")  # a name of the user's
    with opened(check_output(place)) as one, opened(check_output(tmp_path / "new" / "b.txt")) as two:
        one.write("1")
        two.write("2")
    write_text(place, "3")
    files = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert files == {"a.txt": "3", "b.txt": "2", "a.txt.tmp": "half"}


def test_two_commands_that_write_one_place_lose_nothing(tmp_path):
    place = tmp_path / "a.txt"

    def both():
        with opened(check_output(place)) as first:
            first.write("first")
            with opened(check_output(place)) as second:
                second.write("second")

    with pytest.raises(UserError, match="was written by something else in the meantime") as error:
        both()
    assert place.read_text() == "second"
    assert Path(str(error.value).split()[-1]).read_text() == "first"


def test_a_link_stays_one_and_the_permissions_stay(tmp_path):
    place, link = tmp_path / "a.txt", tmp_path / "link"
    place.write_text("before")
    place.chmod(0o640)
    link.symlink_to(place)
    with opened(check_output(link, overwrite=True)) as file:
        file.write("after")
    assert link.is_symlink()
    assert place.read_text() == "after"
    assert place.stat().st_mode & 0o777 == 0o640
    (tmp_path / "new.txt").touch()
    write_text(tmp_path / "other.txt", "x")
    assert (tmp_path / "other.txt").stat().st_mode == (tmp_path / "new.txt").stat().st_mode


def test_devices_are_written_to_as_they_are(tmp_path):
    with opened(check_output(os.devnull)) as file:
        file.write("x")
    assert not Path(os.devnull).is_file()


RESUMES = {"data prepare", "data generate", "data regbench", "data facts", "data mqar", "sweep"}
"""Commands that go on in an existing output folder, and refuse one of anything else: they replace nothing."""


def test_every_command_with_an_output_has_the_option():
    without = set()
    for name, (target, _) in COMMANDS.items():
        defaults = function_parser(name, load(target)).get_defaults()
        if "output" in defaults and "overwrite" not in defaults:
            without.add(name)
        elif "output" in defaults:
            assert defaults.overwrite is False
    assert without == RESUMES


@pytest.mark.parametrize(
    "command",
    [
        "generate --checkpoint HERE --prompt a",
        "inspect --checkpoint HERE --prompt a",
        "remember --checkpoint HERE --text TEXT",
        *(f"benchmark {name}" for name in ("step", "decode")),
        "benchmark retrieval HERE",
        "checkpoint consolidate HERE",
        "tokenizer train TEXT",
    ],
)
def test_commands_refuse_what_is_there_before_they_work(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mm_lightning.checkpoint.load_network", lambda *_: pytest.fail("work was begun"))
    for module in ("mm_lightning.checkpoint", "mm_lightning.checkpoint.checkpoint_commands"):
        monkeypatch.setattr(f"{module}.find_checkpoint", lambda *_: pytest.fail("work was begun"))
    text, there = tmp_path / "a.txt", tmp_path / "there.safetensors"
    text.write_text("hello")
    there.write_text("mine")
    names = {"TEXT": str(text), "HERE": str(tmp_path)}
    words = [names.get(word, word) for word in command.split()]
    assert main([*words, "--output", str(there)]) == 2
    assert capsys.readouterr().err == f"mm: {there} exists: give another --output, or --overwrite\n"
    assert there.read_text() == "mine"


@pytest.mark.parametrize("command", ["export --checkpoint HERE", "import --source HERE", "report HERE"])
def test_commands_refuse_folders_of_others(command, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    for option in ([], ["--overwrite"]):
        assert main([*command.replace("HERE", str(tmp_path)).split(), "--output", str(folder), *option]) == 2
        assert f"mm: {folder} exists and is not" in capsys.readouterr().err
    assert os.listdir(folder) == ["notes"]


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
    monkeypatch.setattr("mm_lightning.checkpoint.load_network", lambda *_: pytest.fail("work was begun"))
    text = tmp_path / "a.txt"
    text.write_text("hello")
    words = command.replace("TEXT", str(text)).split()
    assert main([*words, "--output", str(text / "new"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == f"mm: cannot write {text / 'new'}: {text} is a file, not a folder\n"

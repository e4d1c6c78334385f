"""Command lines that once ended in a traceback, in several lines, or left something behind; found by the fuzz."""

import errno

import pytest

from mm_lightning import cli
from mm_lightning.cli import main

DEEP = "[" * 400


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data", "verify", "nowhere", "--checksums", DEEP], "--checksums takes true or false"),
        (["checkpoint", "compare", "a", "b", f"--tolerance={DEEP}"], "--tolerance takes a number"),
        (["fit", "--config", "quickstart", f"--trainer.profiler={DEEP}"], "profiler"),
        (["data", "prepare", "~nobody-here/x", "--output", "out"], "--sources takes a name in a home folder"),
        (["data", "prepare", ".", "--output", ""], "--output takes the name of a file or folder, got ''"),
        (["data", "inspect", "x" * 300], "--path takes a name that files can have"),
        (["data", "prepare", ".", "--output", "out", "--separator", "\udcff"], "--separator takes a text in UTF-8"),
        (["export", "nowhere", "--output", "a\udc80b"], "--output takes a name in UTF-8"),
        (["checkpoint", "consolidate", "nowhere", "--output", "a\udc80b"], "--output takes a name in UTF-8"),
        (["benchmark", "step", "--config", "nowhere", "--repeats", "9" * 30], "--repeats takes a whole number"),
        (["launch", "--config", "quickstart", "--nodes"], "--nodes needs a value"),
        (["launch", "--config", "quickstart", "--nodes", "x"], "--nodes takes a whole number, got 'x'"),
        (["launch", "--config", "quickstart", "--dry_run=1"], "--dry_run"),
        (["launch", "--config", "quickstart", "--gpu_memory=-"], "--gpu_memory takes a number, got '-'"),
        (["cost", "--config", "quickstart", "--context=x"], "--context takes a whole number, got 'x'"),
        (["cost", "--config", "quickstart", "--json=x"], "--json"),
        (["fit", "--config", "quickstart", "--run", " "], "run takes the name of a file or folder, got ' '"),
        (["fit", "--config", "quickstart", "--resume", ""], "resume takes the name of a file or folder, got ''"),
        (["fit", "--config", "quickstart", "--resume="], "resume takes the name of a file or folder, got ''"),
        (["fit", "--config", "quickstart", "--ckpt_path="], "--ckpt_path takes the name of a file or folder, got ''"),
        (["fit", "--config", "quickstart", "--model.initial_weights="], "initial_weights takes the name of a file"),
        (["fit", "--config", " "], "--config takes the name of a file or folder, got ' '"),
        (["validate", "--ckpt_path", ""], "--ckpt_path takes the name of a file or folder, got ''"),
        (
            ["fit", "--config", "quickstart", "--trainer.callbacks+=BadStepGuard", "--trainer.callbacks.sigma=.nan"],
            "sigma",
        ),
    ],
)
def test_ends_in_one_line(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert words in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["resume: ''", "run: ' '", "model: {initial_weights: ''}", "data: {path: ''}"])
def test_an_empty_name_in_a_config(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(f"base: quickstart\n{text}\n")
    assert main(["fit", "--config", "a.yaml"]) == 2
    assert "takes the name of a file or folder, got '" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_file_that_is_no_text_for_a_section(tmp_path, capsys):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert main(["fit", "--config", "quickstart", "--model", str(tmp_path / "binary")]) == 2
    message = capsys.readouterr().err
    assert "not UTF-8 text" in message
    assert message.count("\n") == 1


def test_a_value_that_looks_like_a_url_is_not_opened(capsys):
    assert main(["fit", "--config", "quickstart", "--trainer.callbacks=abfs://a"]) == 2
    message = capsys.readouterr().err
    assert "abfs://a" in message
    assert message.count("\n") == 1


def test_a_value_of_any_length_is_said_in_a_short_line(capsys):
    assert main(["generate", "nowhere", "--device", "x" * 5000]) == 2
    assert main(["generate", "nowhere", "--samples", "x" * 5000]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 2
    assert len(message) < 1000


def test_what_is_refused_leaves_no_lock(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    sizes = ["--train_sequences", "2", "--test_sequences", "2", "--progress", "false"]
    assert main(["data", "regbench", "--output", ".", *sizes]) == 2
    (tmp_path / "sweep.yaml").write_text("base: quickstart\naxes: {model.learning_rate: [0.1, -1]}\n")
    assert main(["sweep", "sweep.yaml", "--output", "out"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "sweep.yaml"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "secret/file"), "mm: secret/file: Permission denied\n"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "loop"), "mm: loop: Too many levels"),
        (MemoryError("Unable to allocate 8 TiB for an array"), "Take less at once"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "Take less at once"),
    ],
)
def test_what_the_system_refuses_is_one_line(error, words, monkeypatch, capsys):
    def refuse(*_):
        raise error

    monkeypatch.setattr(cli, "dispatch", refuse)
    assert main(["data"]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left", "x"), RuntimeError("something else")])
def test_other_errors_are_not_hidden(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "dispatch", fail)
    with pytest.raises(type(error)):
        main(["data"])

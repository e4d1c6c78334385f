"""The front door: help, version, unknown commands, and the import of nothing heavy."""

import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mm_lightning.checkpoint import METADATA_KEY, network_metadata, tokenizer_metadata
from mm_lightning.checkpoint.writing import write
from mm_lightning.cli import COMMANDS, TRAINING, find_command, load, main
from mm_lightning.data import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.function_command import places
from mm_lightning.networks import MemoryMosaicConfig


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in [*COMMANDS, *TRAINING]:
        assert f"  {name} " in text
    assert "mm fit --config configs/quickstart.yaml" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from mm_lightning.cli import main; main(['--help']);"
        "heavy = {'torch', 'lightning', 'jsonargparse', 'litdata', 'numpy'} & set(sys.modules); sys.exit(len(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


USING = """
import sys, torch
before = set(sys.modules)
import mm_lightning.networks
print({{name.split(".")[0] for name in {{*sys.modules}} - before}} - sys.stdlib_module_names)
from mm_lightning.cli import main
given = ["--checkpoint", {run!r}, "--device", "cpu"]
commands = [
    ["generate", "--prompt", "ab", "--max_new_tokens", "2"],
    ["remember", "--text", {text!r}, "--output", {output!r} + "/memory"],
    ["inspect", "--prompt", "abc", "--output", {output!r} + "/page.html"],
    ["evaluate", "--tasks", "loss_by_position", "--text", {text!r}, "--contexts", "64", "--output", {output!r}],
]
assert [main([*command, *given]) for command in commands] == [0, 0, 0, 0]
heavy = ["lightning", "torchmetrics", "deepspeed", "litdata", "transformers", "torchvision", "torch._dynamo"]
print([name for name in heavy if name in sys.modules and name not in before])
"""


def test_using_a_network_imports_nothing_of_its_training(tmp_path):
    """And networks import torch and nothing heavier."""
    config = MemoryMosaicConfig(vocab_size=258, layers=1, dim=8, heads=1)
    tokenizer = tokenizer_metadata(load_tokenizer("bytes"))
    weights = {f"network.{name}": x for name, x in config.build().state_dict().items()}
    about = network_metadata(config, tokenizer, 16)
    write({"state_dict": weights, METADATA_KEY: about}, tmp_path / "run" / "checkpoints" / "step=1.ckpt")
    (tmp_path / "text.txt").write_text("What is read once is remembered. " * 3)
    code = USING.format(run=str(tmp_path / "run"), text=str(tmp_path / "text.txt"), output=str(tmp_path / "out"))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = found.stdout.splitlines()
    assert (lines[:1], lines[-1:]) == (["{'mm_lightning'}"], ["[]"]), found.stderr


def test_run_by_its_path_it_imports_packages_not_files_beside_it(monkeypatch):
    file = inspect.getsourcefile(main)
    monkeypatch.syspath_prepend(os.path.dirname(file))
    monkeypatch.setattr(sys, "argv", [file, "--version"])
    with pytest.raises(SystemExit):
        runpy.run_path(file, run_name="__main__")
    assert os.path.dirname(file) not in sys.path


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mm-lightning ")


def test_commands_of_two_words():
    assert find_command(["data", "inspect", "x"]) == ("data inspect", ["x"])
    assert find_command(["fit", "--config", "x"]) == ("fit", ["--config", "x"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fti"], ["fti", "mm fit"]),
        (["data"], ["mm data prepare", "mm data verify"]),
        (["data", "prepar"], ["mm data prepare"]),
        (["data", "my_texts/"], ["one more word", "mm data prepare"]),
        (["zzz"], ["zzz", "--help"]),
        (["train"], ["mm fit"]),
        (["pretrain", "quickstart"], ["mm fit"]),
        (["eval"], ["mm evaluate"]),
        (["download", "x"], ["mm data fetch"]),
    ],
)
def test_unknown_commands(args, words, capsys):
    assert main(args) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in words)


def test_help_of_a_group_is_a_table(capsys):
    assert main(["benchmark", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.index("time ") for line in lines}) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_is_documented(name):
    function = load(COMMANDS[name][0])
    assert function.__doc__
    assert "Args:" in function.__doc__ or name in ("cost", "launch")


def test_unknown_option(capsys):
    assert main(["generate", "--checkpoint", "x", "--promt", "y"]) == 2
    assert capsys.readouterr().err == "mm: mm generate has no option --promt: did you mean --prompt?\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cost --config quickstart --contex 256", ["mm cost has no option --contex", "--context"]),
        ("launch --config quickstart --node=2", ["mm launch has no option --node:", "--nodes"]),
        ("data prepare --input x --output y", ["no option --input", "--sources"]),
        ("remember --checkpoint x --file y", ["no option --file", "--text"]),
        ("fit quickstart", ["quickstart belongs to no option", "--config quickstart"]),
        ("fit --config quickstart trainer.max_steps=5", ["did you mean --trainer.max_steps=5"]),
        ("fit --config quickstart 5", ["5 belongs to no option", "--config"]),
        ("fit --config quickstart --trainer.device 2", ["--trainer.devices"]),
        ("fit --config quickstart --model.network TransformerConf", ["model.network: there", "TransformerConfig"]),
        ("fit --config quickstart --model.network MemoryMosaic", ["did you mean MemoryMosaicConfig"]),
        ("fit --config quickstart --model.network GPT", ["there are ", "MemoryMosaicConfig, TransformerConfig"]),
        ("fit --config quickstart --trainer.callbacks Checkpoits", ["did you mean Checkpoints"]),
        ("fit --config quickstart --trainer.logger Wandb", ["did you mean WandbLogger"]),
    ],
)
def test_a_mistake_names_what_was_probably_meant(line, words, capsys):
    assert main(line.split()) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in words), message


def test_a_misspelled_run_folder_names_the_one_beside_it(tmp_path, capsys):
    (tmp_path / "quickstart" / "0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "quickstart" / "0" / "checkpoints" / "step=1.ckpt").touch()
    assert main(["chat", str(tmp_path)]) == 2
    assert f"name a run in it, {tmp_path / 'quickstart'}" in capsys.readouterr().err
    for command in (["generate"], ["checkpoint", "list"], ["data", "show"]):
        assert main([*command, str(tmp_path / "quickstrat")]) == 2
        assert f"did you mean {tmp_path / 'quickstart'}?" in capsys.readouterr().err


def test_a_folder_beside_runs_that_cannot_be_read_is_passed_over(tmp_path, capsys, monkeypatch):
    (tmp_path / "locked").mkdir()
    (tmp_path / "quickstart" / "0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "quickstart" / "0" / "checkpoints" / "step=1.ckpt").touch()
    iterdir, listdir = Path.iterdir, os.listdir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", lambda path: refuse(path) or iterdir(path))
    monkeypatch.setattr(os, "listdir", lambda path=".": refuse(path) or listdir(path))
    assert main(["chat", str(tmp_path)]) == 2
    assert f"name a run in it, {tmp_path / 'quickstart'}" in capsys.readouterr().err
    assert main(["chat", str(tmp_path / "locked" / "quickstart")]) == 2
    assert "there is no checkpoint or run folder" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_cannot_be_shown_are_replaced(encoding, tmp_path):
    """A path in the message on standard error, a help text with a long dash on standard output."""
    code = "import sys; from mm_lightning import cli; cli.usage = lambda: 'caf\\u00e9 \\u2713 \\U0001f600'; "
    code += "cli.main(['--help']); sys.exit(cli.main(['\\u2713']))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 2
    expected = {"ascii": b"caf? ? ?", "latin-1": b"caf\xe9 ? ?", "cp1252": b"caf\xe9 ? ?"}[encoding]
    assert done.stdout.strip() == expected
    assert done.stderr.startswith(b"mm: there is no command '?'")


def test_what_is_typed_in_another_encoding_is_read():
    code = "import sys; from mm_lightning.cli import replace_unprintable; replace_unprintable(); print(repr(input()))"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], input=b"caf\xe9\n", capture_output=True, env=environment)
    assert done.stdout.decode().strip() == "'caf\ufffd'"


def test_interrupt(monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("mm_lightning.cli.dispatch", stop)
    assert main([]) == 130
    assert capsys.readouterr().err == "mm: interrupted\n"


def test_a_user_error_is_one_line(monkeypatch, capsys):
    def fail(args):
        raise UserError("first\n  second")

    monkeypatch.setattr("mm_lightning.cli.dispatch", fail)
    assert main([]) == 2
    assert capsys.readouterr().err == "mm: first second\n"


def test_a_full_gpu_is_one_line(monkeypatch, capsys):
    from torch import OutOfMemoryError

    def fail(args):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.50 GiB free. Of the rest")

    monkeypatch.setattr("mm_lightning.cli.dispatch", fail)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mm: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.50 GiB free. Take less")
    assert said.count("\n") == 1


WITHOUT = ("cost", "launch", *(f"benchmark {name}" for name in ("step", "decode")))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITHOUT])
def test_a_command_without_arguments_says_what_it_needs(name, capsys):
    assert main(name.split()) == 2
    assert "required" in capsys.readouterr().err


def test_a_launcher_names_ranks_to_commands_that_have_one(monkeypatch):
    def one(rank: int = 0, world_size: int = 1):
        """A command of several processes."""

    monkeypatch.setenv("RANK", "3")
    assert places(one, ["--world_size", "4"]) == ["--world_size", "4", "--rank=3"]
    assert places(one, ["--rank=2"]) == ["--rank=2"]
    assert places(lambda other: None, []) == []


@pytest.mark.parametrize(("rank", "parents", "lines"), [("0", [1], 1), ("1", [7, 7, 1], 0), ("1", [7], 1)])
def test_processes_of_a_machine_say_a_mistake_once(monkeypatch, capsys, rank, parents, lines):
    """The others wait whether the first one, their parent, ends too; a mistake of their own they say themselves."""
    left = list(parents)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("os.getppid", lambda: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("signal.signal", lambda *args: None)
    assert main(["nonsense"]) == 2
    assert capsys.readouterr().err.count("mm: ") == lines

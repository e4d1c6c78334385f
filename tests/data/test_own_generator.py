"""The generator of docs/extending.md, in a module beside the working directory: as good as a built-in one."""

import sys
from pathlib import Path

import pytest
import yaml
from documented_modules import documented_modules
from tiny_run import TINY

from mm_lightning.cli import main
from mm_lightning.data.inspect import read_shard
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.data.verify import verify

QUICKSTART = ["--config", str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")]
GENERATE = ["data", "generate", "my_data.Sums", "--output", "sums", "--context_length", "32", "--progress", "false"]


@pytest.fixture(autouse=True)
def beside(tmp_path, monkeypatch):
    """The working directory with the module, which is forgotten afterwards."""
    (tmp_path / "my_data.py").write_text(documented_modules()["my_data.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_data", None)


def texts(folder, split):
    made, tokenizer = Manifest.load(folder), load_tokenizer(folder)
    (shard,) = made.splits[split].shards
    tokens = read_shard(folder / split / shard.file, made.dtype, shard.tokens)
    return "".join(tokenizer.decode([n]) for n in tokens if n < 256).splitlines()


def test_its_folder_is_made_once(tmp_path, capsys):
    assert main([*GENERATE, "--sums", "40", "--digits", "1"]) == 0
    folder = tmp_path / "sums"
    assert not verify(folder)
    for split, count in (("train", 40), ("validation", 100)):
        lines = [line.split() for line in texts(folder, split)]
        assert len(lines) == count
        assert all(int(one) + int(other) == int(total) < 20 for one, _, other, _, total in lines)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert main([*GENERATE, "--sums", "40", "--digits", "1"]) == 0
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*GENERATE, "--sums", "41", "--digits", "1"]) == 2
    assert "sums 40, not 41" in capsys.readouterr().err


def test_its_fields_are_options(capsys):
    assert main(["data", "generate", "my_data.Sums", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "options of the generator: --sums SUMS how many there are for training. (default: 1000)" in shown
    assert main(["data", "generate", "facts", "--help"]) == main(["data", "facts", "--help"]) == 0
    assert capsys.readouterr().out.count("--test_documents") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sum", "3"], "did you mean --sums?"),
        (["--sums", "many"], "--sums takes a whole number, got many"),
        (["--context_length", "8", "--digits", "9"], "more than a row of 9: give a longer context_length"),
        (["--sums", "0"], "no texts for train"),
        (["--generator", "my_data.Random"], "my_data.Random is not derived from mm_lightning.data.generator.Generator"),
        (["--generator", "nowhere.Sums"], "run mm in the folder of nowhere.py"),
        (["--generator", "regbnch"], "did you mean regbench?"),
    ],
)
def test_mistakes_are_one_line(capsys, options, words):
    command = [*GENERATE[:2], *GENERATE[3:]] if "--generator" in options else GENERATE
    assert main([*command, *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert words in message


def test_a_run_makes_its_data_itself(tmp_path, capsys):
    spec = {"class_path": "my_data.Sums", "init_args": {"sums": 60}}
    data = {**TINY["data"], "path": str(tmp_path / "sums"), "generate": spec}
    config = tmp_path / "sums.yaml"
    config.write_text(yaml.safe_dump({**TINY, "run": str(tmp_path / "run"), "data": data}))
    options = ["--config", str(config), "--trainer.max_steps", "2"]
    assert main(["fit", *options, "--data.generate.init_args.digits", "1"]) == 0
    assert Manifest.load(tmp_path / "sums").settings["digits"] == 1
    (saved,) = (tmp_path / "run").rglob("config.yaml")
    made = yaml.safe_load(saved.read_text())["data"]["generate"]
    assert made == {"class_path": "my_data.Sums", "init_args": {"sums": 60, "digits": 1, "seed": 0}}
    capsys.readouterr()
    assert main(["fit", *options, "--data.generate.init_args.sums", "many"]) == 2
    assert "data.generate" in capsys.readouterr().err

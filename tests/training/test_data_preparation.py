"""Which data folder a config's preparation fills."""

import json
from pathlib import Path

import pytest

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.training.parse_fit import parse_fit

QUICKSTART = ["--config", "configs/quickstart.yaml"]
SOURCES = ["--data.prepare.sources", "[python-stdlib]"]


@pytest.fixture
def overlay(tmp_path):
    def write(data):
        (tmp_path / "mine.yaml").write_text(json.dumps({"base": "quickstart", "data": data}))
        return ["--config", str(tmp_path / "mine.yaml")]

    return write


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data.path", "~/.cache/mm-lightning/python-stdlib"],
        ["--data.path", str(Path("~/.cache/mm-lightning/python-stdlib").expanduser())],
        ["--data.prepare.tokenizer", "bytes"],
    ],
)
def test_the_path_of_the_config_is_prepared(options):
    assert parse_fit([*QUICKSTART, *options]).data.prepare.sources == ["python-stdlib"]


@pytest.mark.parametrize(
    "options",
    [
        ["--data.path", "mine"],
        ["--data.path=mine"],
        ["--data", '{"path": "mine"}'],
        ["--data.path", '{"a": 1, "b": 2}'],
    ],
)
def test_another_path_is_not(options, overlay):
    assert parse_fit([*QUICKSTART, *options]).data.prepare is None
    assert parse_fit([*QUICKSTART, *options, "--data.prepare", "null"]).data.prepare is None
    assert parse_fit(["--config", "configs/facts.yaml", *options]).data.generate is None
    assert parse_fit([*overlay({"prepare": {"sources": ["a"]}}), *options]).data.prepare is None


def test_the_path_of_another_file_is_not(overlay):
    assert parse_fit(overlay({"path": "mine"})).data.prepare is None
    assert parse_fit(overlay({"path": "mine", "prepare": {"sources": ["a"]}})).data.prepare.sources == ["a"]
    assert parse_fit(overlay({"prepare": {"tokenizer": "bytes"}})).data.prepare.tokenizer == "bytes"


def test_unless_it_is_named_again():
    named = parse_fit([*QUICKSTART, *SOURCES, "--data.path", "mine"]).data.prepare
    assert (named.sources, named.vocab_size) == (["python-stdlib"], 2048)
    whole = ["--data.path", "mine", '--data.prepare={"sources": ["a"]}']
    assert parse_fit([*QUICKSTART, *whole]).data.prepare.sources == ["a"]
    facts = ["--config", "configs/facts.yaml", "--data.path", "mine", "--data.generate.init_args.documents", "7"]
    assert parse_fit(facts).data.generate.init_args.documents == 7
    with pytest.raises(UserError, match=r"data\.prepare\.vocab_size is given for data\.path mine, but not what"):
        parse_fit([*QUICKSTART, "--data.path", "mine", "--data.prepare.vocab_size", "300"])


def test_a_folder_of_the_user_is_neither_filled_nor_to_be_deleted(tmp_path, capsys):
    for folder in (tmp_path / "new", tmp_path):
        assert main(["fit", *QUICKSTART, "--data.path", str(folder), "--run", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert f"no prepared data in {folder}: run `mm data prepare SOURCES --output {folder}`" in said
        assert "delete" not in said
        assert not list(tmp_path.rglob("manifest.json"))
        assert not (tmp_path / "new").exists()


def test_a_vocabulary_grows_with_data_that_are_named_after_it(tmp_path, capsys):
    text, data, small = tmp_path / "a.txt", str(tmp_path / "data"), tmp_path / "small.yaml"
    text.write_text("some words " * 100)
    assert main(["data", "prepare", str(text), "--output", data]) == 0  # of bytes: 258 tokens
    network = {"class_path": "MemoryMosaicConfig", "init_args": {"vocab_size": 100}}
    small.write_text(json.dumps({"base": "quickstart", "model": {"network": network}}))

    def vocabulary(*options):
        return parse_fit(["--config", str(small), *options]).model.network.vocab_size

    capsys.readouterr()
    assert vocabulary("--data.path", data) == 258
    printed = capsys.readouterr()
    assert "258 tokens" in printed.err
    assert not printed.out
    assert vocabulary("--data.path", json.dumps({data: 1})) == 258
    assert vocabulary("--data.path", data, "--model.network.vocab_size", "300") == 300
    assert vocabulary("--data.path", data, "--model.network.init_args.vocab_size=200") == 200
    assert vocabulary("--data.path", data, "--model.initial_weights", "mine.ckpt") == 100
    assert vocabulary() == 100
    assert parse_fit([*QUICKSTART, "--data.path", data]).model.network.vocab_size == 2048

"""Configs that build on others, overlays, and the order of options."""

import dataclasses
import re

import pytest
import yaml

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.networks import MemoryMosaicConfig
from mm_lightning.training.config_files import SECRETS_VARIABLE, export_secrets, read_chain, split_configs
from mm_lightning.training.parse_fit import parse_fit, resolve_fit
from mm_lightning.yaml_text import dump_yaml, load_yaml, write_yaml


def test_bases_come_first_and_relative_to_their_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("x: 1")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nx: 2")
    (tmp_path / "sub" / "c.yaml").write_text("base: [../a.yaml, ../b.yaml]\nx: 3")
    chain = read_chain(tmp_path / "sub" / "c.yaml")
    assert [file.values["x"] for file in chain] == [1, 1, 2, 3]


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "\x00"])
def test_what_is_no_config(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml"):
        read_chain(tmp_path / "a.yaml")


def test_configs_are_taken_out_in_order():
    args = ["--x", "1", "--config", "a", "--y=2", "--config=b", "-c", "c"]
    assert split_configs(args) == (["a", "b", "c"], ["--x", "1", "--y=2"])


def printed(capsys, *args: str) -> dict:
    assert main(["fit", *args, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_overlays_and_overrides(tiny, tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {network: {init_args: {dim: 32}}, learning_rate: 0.5}")
    found = printed(
        capsys, "--model.learning_rate", "0.25", "--config", str(tiny), "--config", str(overlay), "--run=elsewhere"
    )
    assert found["model"]["learning_rate"] == 0.25  # an option wins also where it stands before
    assert found["model"]["network"]["init_args"]["dim"] == 32
    assert found["model"]["network"]["init_args"]["short_term_window"] == 8
    assert found["run"] == "elsewhere"
    assert found["trainer"]["max_steps"] == 6


def test_another_class_keeps_what_both_know(tiny, capsys):
    found = printed(capsys, "--config", str(tiny), "--model.network", "TransformerConfig")["model"]["network"]
    assert found["class_path"].endswith("TransformerConfig")
    assert found["init_args"]["dim"] == 16
    assert "look_ahead" not in found["init_args"]


def test_the_home_folder_is_found_wherever_a_config_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("run: ~/runs\ndata: {path: ~/text}\ntrainer: {default_root_dir: ~/x}\n")
    (tmp_path / "sub" / "b.yaml").write_text("base: ~/a.yaml\nmodel: {initial_weights: ~/w.ckpt}\n")
    assert len(read_chain("~/sub/b.yaml")) == 2
    config = parse_fit(["--config=quickstart", "--config=~/sub/b.yaml"])
    assert config.run == str(tmp_path / "runs")
    assert config.trainer.default_root_dir == str(tmp_path / "x")
    assert config.data.path == "~/text"  # the data module finds it, and config.yaml stays portable
    assert config.model.initial_weights == str(tmp_path / "w.ckpt")


def test_the_home_folder_in_options_of_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_fit(["--config", "quickstart", "--run=~/runs"]).run == str(tmp_path / "runs")


def test_help_leads_with_options_that_exist_and_names_the_rest(capsys):
    """The options are those of the parser; the full listing has them all."""
    assert main(["fit", "--help"]) == 0
    short = capsys.readouterr().out
    named = set(re.findall(r"--[a-z_.]+[a-z]", short)) - {"--help", "--config", "--print_config"}
    assert 20 < len(named) < 40
    assert all(words in short for words in ("--help all", "--print_config", "--model.network.help MemoryMosaicConfig"))
    assert len(short.splitlines()) < 60
    assert main(["fit", "--help", "all"]) == 0
    whole = capsys.readouterr().out
    assert [option for option in named if not re.search(rf"{re.escape(option)}\b", whole)] == []
    assert main(["validate", "-h"]) == 0
    assert not {"--resume", "--plan", "--model.learning_rate"} & set(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", re.findall(r"[a-z_]+", "layers dim heads vocab_size persistent_dim short_term_window"))
def test_help_names_switches_of_the_network(name):
    assert name in {field.name for field in dataclasses.fields(MemoryMosaicConfig)}


def test_a_sweeps_runs_get_the_secrets_that_their_configs_hide(tmp_path, monkeypatch):
    config = {"run": "x", "data": {"path": "d", "prepare": {"sources": ["http://me:pa55@h/x", "b"]}}}
    config["trainer"] = {"logger": [{"class_path": "L", "init_args": {"api_key": "k3y"}}]}
    file = tmp_path / "config.yaml"
    write_yaml(file, config)
    assert not {"pa55", "k3y"} & set(re.findall(r"\w+", file.read_text()))
    hidden = read_chain(file)[0].values
    assert hidden["data"]["prepare"]["sources"] == ["http://***@h/x", "b"]
    monkeypatch.setenv(SECRETS_VARIABLE, "{}")
    export_secrets([config, config])
    assert read_chain(file)[0].values == config
    file.write_text("data: {path: d, prepare: {sources: [a]}}\n")  # nothing is hidden there
    assert read_chain(file)[0].values["data"]["prepare"]["sources"] == ["a"]
    other = {"data": {"prepare": {"sources": ["http://me:0ther@h/x", "b"]}}}
    with pytest.raises(UserError, match=r"the runs differ in data\.prepare\.sources, which holds a secret"):
        export_secrets([config, other])


def test_the_resolved_config_is_what_its_file_gives(tmp_path):
    overlay = tmp_path / "more.yaml"
    callbacks = [{"class_path": "Timer", "init_args": {"duration": {"hours": 1}}}, {"class_path": "Throughput"}]
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}, "model": {"betas": [0.9, 0.98]}}))
    _, values = resolve_fit(["--config", "quickstart", "--config", str(overlay), "--config", "overlays/watch"])
    assert values["model"]["betas"] == [0.9, 0.98]
    assert load_yaml(dump_yaml(values), "the config") == values


def test_keys_that_are_numbers_are_texts(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    for text, message in (("5: 1", "unknown config key 5 "), ("model: {3: 4}", r"unknown config key model\.3 ")):
        overlay.write_text(text)
        with pytest.raises(UserError, match=message):
            parse_fit(["--config", "quickstart", "--config", str(overlay)])
    overlay.write_text("data: {path: {5: 1}}")
    assert parse_fit(["--config", "quickstart", "--config", str(overlay)]).data.path == {"5": 1}

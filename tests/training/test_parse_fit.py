"""Command lines of one process share a parser, which keeps nothing of them."""

import copy
import json

import pytest

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.training import cli
from mm_lightning.training.parse_fit import parse_fit, resolve_fit

QUICKSTART = ["--config", "quickstart"]


@pytest.fixture
def fresh(monkeypatch):
    """What a process resolves first, with a parser that has parsed nothing before."""
    monkeypatch.setattr(cli, "_parsers", {})
    return copy.deepcopy(resolve_fit(QUICKSTART)[1])


def others(folder) -> list[list[str]]:
    callbacks = [{"class_path": "Watchdog", "init_args": {"minutes": 3}}]
    data = json.dumps({"a": 1, "b": 2})
    return [
        [*QUICKSTART, "--config", "sweeps/transformer", "--model.network.layers", "3", "--trainer.strategy", "ddp"],
        [*QUICKSTART, f"--trainer.callbacks={json.dumps(callbacks)}", "--data.path", data, "--seed_everything", "3"],
        [*QUICKSTART, "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(folder), "--run", str(folder)],
    ]


def test_a_command_line_leaves_nothing_to_the_next(fresh, tmp_path):
    (parser,) = cli._parsers.values()
    for words in others(tmp_path):
        config, values = resolve_fit(words)
        assert values != fresh
        for section in (config.trainer, config.model, config.data):  # whoever is given a config may change it
            for value in vars(section).values():
                if isinstance(value, (list, dict)):
                    value.clear()
        with pytest.raises(UserError):
            parse_fit([*words, "--trainer.max_steps=few"])
        assert resolve_fit(QUICKSTART)[1] == fresh
    assert list(cli._parsers.values()) == [parser]


def test_a_mistake_leaves_nothing_to_the_next(fresh, capsys):
    for wrong in ("--trainer.max_stps=3", "--model.network=Nothing"):
        with pytest.raises(UserError):
            parse_fit([*QUICKSTART, "--model.learning_rate", "0.5", "--print_config", wrong])
        assert resolve_fit(QUICKSTART)[1] == fresh
    for word in ("--print_config", "--help"):
        assert main(["fit", *QUICKSTART, word]) == 0
        assert "learning_rate" in capsys.readouterr().out
        assert resolve_fit(QUICKSTART)[1] == fresh
        assert not capsys.readouterr().out


def test_a_part_whose_module_is_missing_is_named_where_an_option_replaces_it(tmp_path):
    overlay, other = tmp_path / "overlay.yaml", '{"class_path": "nowhere.B", "init_args": {"offset": 2}}'
    part = "{class_path: nowhere.A, init_args: {offset: 1}}"
    overlay.write_text(f"model: {{network: {{class_path: MemoryMosaicConfig, init_args: {{bandwidth: {part}}}}}}}")
    with pytest.raises(UserError, match=r"there is no class nowhere\.A, which .*overlay.yaml names in line 1"):
        parse_fit([*QUICKSTART, "--config", str(overlay), "--model.network.bandwidth", other])

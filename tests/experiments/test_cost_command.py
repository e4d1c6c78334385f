"""`mm cost`, as typed."""

import json
from pathlib import Path

import pytest

from mm_lightning.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"


def cost(capsys, *args):
    assert main(["cost", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("config", "more", "billions", "gigaflops"),
    [
        ("8b", [], 9.9, 18.9),
        ("8b", ["--model.network.levels", "[short]"], 8.3, 15.6),
        ("8b_transformer", [], 8.8, 16.7),
    ],
)
def test_cost_gives_the_papers_table(config, more, billions, gigaflops, capsys):
    found = cost(capsys, "--config", str(CONFIGS / f"{config}.yaml"), "--context", "256", *more)
    assert round(found["parameters"] / 1e9, 1) == billions
    assert round(found["forward_flops_per_token"] / 1e9, 1) == gigaflops
    assert sum(part["parameters"] for part in found["parts"]) == found["parameters"]


def test_cost_follows_strategy_and_nodes(capsys):
    found = cost(capsys, "--config", str(CONFIGS / "8b.yaml"), "--trainer.num_nodes", "2", "--trainer.devices", "4")
    assert found["layout"]["devices"] == 8
    assert found["layout"]["zero_stage"] == 3
    assert found["bytes_per_device"]["weights"] == found["parameters"] * 2 // 8
    assert found["total_bytes_per_device"] == sum(found["bytes_per_device"].values())


def test_cost_in_tables(capsys):
    assert main(["cost", "--config", str(CONFIGS / "quickstart.yaml")]) == 0
    text = capsys.readouterr().out
    assert "1.517 M" in text
    assert "long-term memory" in text


def test_cost_without_a_config(capsys):
    assert main(["cost"]) == 2
    assert "mm cost --config" in capsys.readouterr().err

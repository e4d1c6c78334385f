"""Every shipped config: parsed by the real parser, its network built, and a shrunken copy trained for a step."""

from pathlib import Path

import pytest
import torch
import yaml

from mm_lightning.cli import main
from mm_lightning.networks import MemoryMosaicConfig, TransformerConfig
from mm_lightning.networks.cost import parameters

FOLDER = Path(__file__).parent.parent / "configs"
# recipe.yaml is the part that the others share
RUNS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "recipe")
MILLIONS = {
    # counted by hand: 2 V d + L (6 d^2 + 3 d f) of a mosaic or L (4 d^2 + 3 d f) of a transformer
    "quickstart": (2 * 2048 * 128 + 4 * (6 * 128**2 + 3 * 128 * 384)) / 1e6,
    "small": (2 * 128256 * 2048 + 24 * (6 * 2048**2 + 3 * 2048 * 6144)) / 1e6,
    "8b": (2 * 128256 * 4096 + 32 * (6 * 4096**2 + 3 * 4096 * 14336)) / 1e6,
    "8b_32k": (2 * 128256 * 4096 + 32 * (6 * 4096**2 + 3 * 4096 * 14336)) / 1e6,
    "quickstart_transformer": (2 * 2048 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384)) / 1e6,
    "small_transformer": (2 * 128256 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 6144)) / 1e6,
    "8b_transformer": (2 * 128256 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 14336)) / 1e6,
    "8b_32k_transformer": (2 * 128256 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 14336)) / 1e6,
}


def parse(name: str):
    from mm_lightning.training.cli import parse_fit

    return parse_fit(["--config", str(FOLDER / f"{name}.yaml")])


def test_all_are_known():
    assert sorted(MILLIONS) == RUNS


@pytest.mark.parametrize("name", RUNS)
def test_it_parses_and_its_network_is_built(name):
    config = parse(name)
    network_config = config.model.network
    assert isinstance(network_config, TransformerConfig if "transformer" in name else MemoryMosaicConfig)
    with torch.device("meta"):
        network = network_config.build()
    count = sum(p.numel() for p in network.parameters())
    assert count == parameters(network_config)
    assert count / 1e6 == pytest.approx(MILLIONS[name], rel=0.01)
    assert config.trainer.gradient_clip_val == 1.0
    assert config.run == f"runs/{name}"
    assert config.data.global_batch_size % config.data.micro_batch_size == 0


@pytest.mark.parametrize("name", [name for name in RUNS if "quickstart" not in name])
def test_the_recipe_is_the_papers(name):
    config = parse(name)
    assert tuple(config.model.betas) == (0.9, 0.95)
    assert config.model.weight_decay == 0.1
    assert config.model.final_learning_rate == 0.01
    assert config.data.global_batch_size * config.data.context_length == 1024 * 4096
    if "32k" not in name:
        assert config.model.warmup_steps == 2000
        assert config.model.learning_rate == (3e-4 if "small" in name else 1e-3)
        tokens = config.trainer.max_steps * 1024 * 4096
        assert tokens == pytest.approx(2e11 if "small" in name else 1e12, rel=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_a_shrunken_copy_trains_a_step(name, tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    for n in range(12):
        (text / f"{n}.txt").write_text(" ".join(str(k * (n + 2)) for k in range(80)))
    small = {"layers": 1, "dim": 16, "heads": 2, "persistent_dim": 16, "vocab_size": 258}
    if "transformer" not in name:
        small |= {"short_term_window": 8, "long_term_delay": [2, 4], "inference_delay": 2}
    shrink = {
        "run": str(tmp_path / "run"),
        "trainer": {
            "max_steps": 1,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "precision": "32-true",
            "enable_progress_bar": False,
        },
        "model": {"network": {"init_args": small}, "initial_weights": None},
        "data": {
            "path": str(tmp_path / "data"),
            "context_length": 16,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "num_workers": 0,
            "validation_sequences": 2,
            "prepare": {"sources": [str(text)], "tokenizer": "bytes", "validation_fraction": 0.3, "workers": 1},
        },
    }
    overlay = tmp_path / "shrink.yaml"
    overlay.write_text(yaml.safe_dump(shrink))
    assert main(["fit", "--config", str(FOLDER / f"{name}.yaml"), "--config", str(overlay)]) == 0
    assert (tmp_path / "run" / "0" / "checkpoints" / "step=1.ckpt").is_file()
    assert "step 1/1  loss" in capsys.readouterr().out

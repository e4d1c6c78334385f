"""Every shipped config: parsed by the real parser, its network built, and a shrunken copy trained for a step.

Tests find the files themselves. A new one begins with a comment that says what it is for; moreover,

    configs/NAME.yaml       names its run folder, runs/NAME, and a small copy of it trains; one without `run` is a part
                            that others name as their base
    configs/ablations/      over the quickstart it trains, validates and generates
    configs/overlays/       its comment shows how to use it, `--config configs/8b.yaml --config ...`, and that parses
    configs/sweeps/         is planned (tests/experiments/test_sweep_runs.py)
    configs/reproduction/   likewise; NAME_config.yaml is the base of NAME.yaml

MILLIONS and CHANGES hold counts by hand of some files.
"""

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from runs import metrics

from mm_lightning.cli import main
from mm_lightning.networks import V1, MemoryMosaicConfig, TransformerConfig
from mm_lightning.networks.cost import parameters

FOLDER = Path(__file__).parent.parent / "configs"
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
RUNS = sorted(path.stem for path in FOLDER.glob("*.yaml") if "run" in yaml.safe_load(path.read_text()))
ABLATIONS = sorted(path.stem for path in FOLDER.glob("ablations/*.yaml"))
OVERLAYS = sorted(path.stem for path in FOLDER.glob("overlays/*.yaml"))
MILLIONS = {
    # counted by hand: 2 V d + L (6 d^2 + 3 d f) of a mosaic or L (4 d^2 + 3 d f) of a transformer
    "quickstart": (2 * 2048 * 128 + 4 * (6 * 128**2 + 3 * 128 * 384)) / 1e6,
    "regbench": (2 * 21 * 64 + 2 * (6 * 64**2 + 3 * 64 * 128)) / 1e6,
    "facts": (2 * 174 * 64 + 2 * (6 * 64**2 + 3 * 64 * 128)) / 1e6,
    "mqar": (2 * 130 * 64 + 6 * 64**2 + 3 * 64 * 128) / 1e6,
    "small": (2 * 128256 * 2048 + 24 * (6 * 2048**2 + 3 * 2048 * 6144)) / 1e6,
    "8b": (2 * 128256 * 4096 + 32 * (6 * 4096**2 + 3 * 4096 * 14336)) / 1e6,
    "8b_32k": (2 * 128256 * 4096 + 32 * (6 * 4096**2 + 3 * 4096 * 14336)) / 1e6,
    "quickstart_4k": (2 * 2048 * 128 + 4 * (6 * 128**2 + 3 * 128 * 384)) / 1e6,
    "quickstart_4k_transformer": (2 * 2048 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384)) / 1e6,
    "quickstart_transformer": (2 * 2048 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384)) / 1e6,
    "small_transformer": (2 * 128256 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 6144)) / 1e6,
    "small_32k": (2 * 128256 * 2048 + 24 * (6 * 2048**2 + 3 * 2048 * 6144)) / 1e6,
    "small_32k_transformer": (2 * 128256 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 6144)) / 1e6,
    "8b_transformer": (2 * 128256 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 14336)) / 1e6,
    "8b_32k_transformer": (2 * 128256 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 14336)) / 1e6,
}

TOYS = "facts", "mqar", "regbench"

SMALL_DATA = {
    "RegBenchConfig": (960, {"train_sequences": 12, "test_sequences": 6}),
    "FactsConfig": (128, {"documents": 12, "test_documents": 6}),
    "MQARConfig": (16, {"pairs": 3, "vocabulary": 64, "train_examples": 12, "test_examples": 6}),
}
"""Context and generator's settings of a small data set, by class."""
"""Configs of data that a program makes, with a recipe of their own."""


@cache
def parse(*names: str):
    from mm_lightning.training.parse_fit import parse_fit

    return parse_fit([word for name in names for word in ("--config", str(FOLDER / f"{name}.yaml"))])


def test_the_overlay_watch_adds_callbacks_to_those_that_are_there():
    from mm_lightning.training.parse_fit import parse_fit

    config = parse_fit(["--config", str(FOLDER / "quickstart.yaml"), "--config", str(FOLDER / "overlays/watch.yaml")])
    names = [c.class_path.rsplit(".", 1)[-1] for c in config.trainer.callbacks]
    assert names == ["Checkpoints", "MemoryStatistics", "Samples", "Summary", "Evaluation", "RetrievalProfile"]


@pytest.mark.parametrize(
    ("name", "stage", "weights", "states"),
    [(None, 3, 2 / 64, 12 / 64), ("zero_2", 2, 2, 12 / 64), ("offload", 3, 2 / 64, 0)],
)
def test_the_large_model_is_divided_among_64_gpus(name, stage, weights, states):
    from mm_lightning.training.memory_estimate import bytes_per_device, run_layout
    from mm_lightning.training.parse_fit import parse_fit

    overlay = ["--config", str(FOLDER / f"overlays/{name}.yaml")] if name else []
    config = parse_fit(["--config", str(FOLDER / "8b.yaml"), *overlay])
    layout = run_layout(config)
    needed, count = bytes_per_device(config.model.network, layout), parameters(config.model.network)
    assert (layout.devices, layout.zero_stage, layout.bucket) == (64, stage, 300_000_000)
    assert needed["weights"] == pytest.approx(weights * count, rel=1e-6)
    assert needed["optimizer states"] == pytest.approx(states * count, rel=1e-6)
    assert config.communication_timeout == 600
    assert sum(needed.values()) < 0.9 * 80e9


@pytest.mark.parametrize("name", FILES)
def test_a_file_begins_with_what_it_is_for(name):
    first = (FOLDER / name).read_text(encoding="utf-8").split("\n")[0]
    assert re.match(r"# \S.{12}", first), f"configs/{name} must begin with a comment that says what it is for"


@pytest.mark.parametrize("name", RUNS)
def test_it_parses_and_its_network_is_built(name):
    config = parse(name)
    with torch.device("meta"):
        network = config.model.network.build()
    assert sum(p.numel() for p in network.parameters()) == parameters(config.model.network)
    assert config.run == f"runs/{name}"
    assert config.data.global_batch_size % config.data.micro_batch_size == 0


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_as_counted_by_hand(name):
    config = parse(name)
    network = config.model.network
    assert isinstance(network, TransformerConfig if "transformer" in name else MemoryMosaicConfig)
    tolerance = 0.025 if name in TOYS else 0.01
    assert parameters(network) / 1e6 == pytest.approx(MILLIONS[name], rel=tolerance)
    assert config.trainer.gradient_clip_val == 1.0


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_parses_over_the_config_that_its_comment_names(name):
    comment = (FOLDER / "overlays" / f"{name}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    base = re.search(r"--config configs/(\w+)\.yaml --config", comment)
    assert base, f"the comment of overlays/{name}.yaml must show its use: --config configs/CONFIG.yaml --config ..."
    parse(base[1], f"overlays/{name}")


@pytest.mark.parametrize("name", [name for name in MILLIONS if "quickstart" not in name and name not in TOYS])
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
def test_a_shrunken_copy_trains_a_step(name, shrink, capsys):
    overlay, folder = shrink(parse(name), name)
    assert main(["fit", "--config", str(FOLDER / f"{name}.yaml"), "--config", overlay]) == 0
    assert (folder / "0" / "checkpoints" / "step=1.ckpt").is_file()
    assert "step 1/1  loss" in capsys.readouterr().out


CHANGES = {
    # what each ablation says, and the parameters of the quickstart with it, by hand
    "v1": (V1, 984304),
    "keys_leaky": ({"keys": "leaky"}, 1516832 - 4 * 2 * (2 * 128 * 4 - 4)),
    "bandwidth_fixed": ({"bandwidth": "fixed"}, 1516832 - 4 * 2 * 2 * 4),
    "levels_one": ({"levels": ("full",)}, 1516832 - 4 * (3 * 128**2 + 2 * 128 * 4 + 5 * 4)),
    "levels_short": ({"levels": ("short",)}, 1516832 - 4 * (3 * 128**2 + 2 * 128 * 4 + 5 * 4)),
    "levels_long": ({"levels": ("long",)}, 1516832 - 4 * (3 * 128**2 + 2 * 128 * 4 + 5 * 4)),
    "persistent_key_value": (
        {"persistent": "key_value"},
        1516832 + 4 * (2 * 128**2 + 2 * 384 * 128 + 12 - 3 * 384 * 128),
    ),
    "persistent_experts": ({"persistent": "experts"}, 1516832 + 4 * (7 * 3 * 384 * 128 + 8 * 128)),
    "persistent_none": ({"persistent": "none"}, 1516832 - 4 * (3 * 384 * 128 + 128)),
    "delay_fixed": ({"long_term_delay": (16, 16)}, 1516832),
    "no_look_ahead": ({"look_ahead": False}, 1516832 - 4 * 2 * 4),
    "transformer_long_short": ({"levels": ("long", "short")}, 1377408 + 4 * 4 * 128**2),
    "transformer_grouped": ({"kv_heads": 2, "levels": ("full",)}, 1377408 - 4 * 128**2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_ablation_changes_what_it_says(name):
    changed, count = CHANGES[name]
    config = parse("quickstart", f"ablations/{name}").model.network
    assert {key: getattr(config, key) for key in changed} == changed
    network = config.build()
    assert sum(p.numel() for p in network.parameters()) == parameters(config) == count


RESUMED = {"levels_one", "persistent_experts", "transformer_grouped", "v1"}
"""One of each kind of block: what is resumed is parameters by name."""


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_trains_validates_and_generates(name, shrink, capsys):
    overlay, folder = shrink(parse("quickstart", f"ablations/{name}"), "quickstart")
    configs = ["--config", str(FOLDER / "quickstart.yaml")]
    configs += ["--config", str(FOLDER / "ablations" / f"{name}.yaml"), "--config", overlay]
    assert main(["fit", *configs, "--trainer.val_check_interval", "1"]) == 0
    assert metrics(folder / "0", "validation/loss").keys() == {1}
    assert main(["generate", "--checkpoint", str(folder), "--prompt", "1 2", "--max_new_tokens", "3"]) == 0
    if name in RESUMED:  # from the checkpoint of one step
        assert main(["fit", *configs, "--resume", "--trainer.max_steps", "2"]) == 0
        assert main(["validate", *configs]) == 0
        assert "validation loss" in capsys.readouterr().out


def test_a_level_removed_after_training(shrink, capsys):
    """`levels: [short]` at evaluation equals the trained network with the long-term memory's answers set to 0."""
    from mm_lightning.checkpoint import find_checkpoint, load_network, load_weights

    overlay, folder = shrink(parse("quickstart"), "quickstart")
    configs = ["--config", str(FOLDER / "quickstart.yaml"), "--config", overlay]
    assert main(["fit", *configs]) == 0
    removed = str(FOLDER / "ablations" / "levels_short.yaml")
    assert main(["validate", *configs, "--config", removed]) == 0
    assert main(["fit", *configs, "--config", removed, "--ckpt_path", str(folder)]) == 2
    assert "levels ['long', 'short'] instead of ['short']" in capsys.readouterr().err

    whole, _ = load_network(folder)
    config = dataclasses.replace(whole.config, levels=("short",))
    short = config.build().eval()
    load_weights(short, find_checkpoint(folder))
    with torch.no_grad():
        for block in whole.blocks:
            block.contextual["long"].values.alpha_psi_theta.fill_(0)
            block.W_o.weight[:, : config.dim] = 0
    tokens = torch.randint(258, (2, 40))
    assert torch.allclose(short(tokens), whole(tokens), atol=1e-6)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder of texts, and beside it those for the data that the first run of a config prepares of them."""
    text = tmp_path_factory.mktemp("shrunken") / "text"
    text.mkdir()
    for n in range(12):
        (text / f"{n}.txt").write_text(" ".join(str(k * (n + 2)) for k in range(80)))
    return text


@pytest.fixture
def shrink(tmp_path, sources):
    """Writes an overlay that makes any config small, with data to be prepared: (its path, the run folder's root)."""

    def shrink(config, name: str):
        layers = getattr(config.model.network, "attention_every", None) or 1
        small = {"layers": layers, "dim": 16, "heads": 2, "persistent_dim": 16, "vocab_size": 258}
        if isinstance(config.model.network, MemoryMosaicConfig):
            small |= {"short_term_window": 8, "long_term_delay": [2, 4], "inference_delay": 2, "persistent_slots": 8}
        values = {
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
                "path": str(sources.parent / name),
                "context_length": 16,
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "num_workers": 0,
                "validation_sequences": 2,
                "prepare": {"sources": [str(sources)], "tokenizer": "bytes", "validation_fraction": 0.3, "workers": 1},
            },
        }
        if config.data.generate:
            context, made = SMALL_DATA[config.data.generate.class_path.rsplit(".", 1)[-1]]
            values["data"] |= {"context_length": context, "prepare": None, "generate": {"init_args": made}}
        overlay = tmp_path / "shrink.yaml"
        overlay.write_text(yaml.safe_dump(values))
        return str(overlay), tmp_path / "run"

    return shrink

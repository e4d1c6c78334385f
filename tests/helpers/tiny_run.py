"""A tiny prepared data folder and a config to train on it in a second or two."""

import shutil
from pathlib import Path

import pytest
import yaml

TINY = {
    "trainer": {
        "max_steps": 6,
        "log_every_n_steps": 1,
        "val_check_interval": 3,
        "gradient_clip_val": 1.0,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "Checkpoints", "init_args": {"every_n_steps": 3, "keep": 0}}],
    },
    "model": {
        "network": {
            "class_path": "MemoryMosaicConfig",
            "init_args": {
                "vocab_size": 258,
                "layers": 1,
                "dim": 16,
                "heads": 2,
                "persistent_dim": 32,
                "short_term_window": 8,
                "long_term_delay": [2, 6],
                "inference_delay": 2,
            },
        },
        "learning_rate": 0.01,
        "warmup_steps": 2,
    },
    "data": {
        "context_length": 32,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "num_workers": 0,
        "validation_sequences": 8,
    },
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder of bytes of counted numbers: 14 or so documents for training."""
    from mm_lightning.cli import main

    folder = tmp_path_factory.mktemp("text")
    for n in range(24):
        (folder / f"{n}.txt").write_text(" ".join(str(k * (n + 1)) for k in range(60 + 5 * n)))
    output = folder / "prepared"
    arguments = ["--output", str(output), "--validation_fraction", "0.3", "--progress", "false", "--workers", "1"]
    assert main(["data", "prepare", str(folder), *arguments]) == 0
    return output


@pytest.fixture
def tiny(tmp_path, prepared) -> Path:
    """The config file of a tiny run whose folder is tmp_path/run."""
    values = {"run": str(tmp_path / "run"), **TINY, "data": {**TINY["data"], "path": str(prepared)}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, prepared) -> Path:
    """The folder of a finished tiny run; for `finished`, which copies it."""
    from mm_lightning.cli import main

    folder = tmp_path_factory.mktemp("finished")
    values = {"run": str(folder / "run"), **TINY, "data": {**TINY["data"], "path": str(prepared)}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(folder / "tiny.yaml")]) == 0
    return folder / "run" / "0"


@pytest.fixture
def finished(tiny, tmp_path, finished_once) -> Path:
    """The folder of the tiny run, as `mm fit --config TINY` leaves it; trained once for all tests."""
    folder = tmp_path / "run" / "0"
    shutil.copytree(finished_once, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(finished_once.parent), str(folder.parent)))
    return folder

"""The share of predicted tokens that are the most probable ones, logged in training."""

from pathlib import Path

import pytest
import torch
import yaml
from runs import metrics

from mm_lightning.checkpoint import load_network
from mm_lightning.cli import main
from mm_lightning.data import TextDataModule
from mm_lightning.memory.documents import IGNORE_INDEX

CONFIG = Path(__file__).parents[2] / "configs" / "mqar.yaml"


def test_it_is_that_of_the_predicted_tokens_alone_and_ends_training(tmp_path, capsys):
    made = {"pairs": 3, "vocabulary": 32, "train_examples": 16, "test_examples": 10}
    small = {
        "run": str(tmp_path / "run"),
        "trainer": {"max_steps": 4, "val_check_interval": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {"network": {"init_args": {"vocab_size": 34, "dim": 16, "persistent_dim": 16}}, "warmup_steps": 1},
        "data": {
            "path": str(tmp_path / "data"),
            "context_length": 16,
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "generate": {"init_args": made},
        },
    }
    overlay = tmp_path / "small.yaml"
    overlay.write_text(yaml.safe_dump(small))
    options = ["fit", "--config", str(CONFIG), "--config", str(overlay)]
    assert main(options) == 0
    logged = metrics(tmp_path / "run" / "0", "validation/accuracy")
    assert logged.keys() == {2, 4}
    data = TextDataModule(tmp_path / "data", 16, 4, 4, num_workers=0)
    data.setup("validate")
    network, _ = load_network(tmp_path / "run" / "0")
    right = []
    for batch in data.val_dataloader():
        with torch.inference_mode():
            best = network(batch.tokens, batch.documents).argmax(-1)
        right += [
            float(a == b) for a, b in zip(best.flatten(), batch.targets.flatten(), strict=True) if b != IGNORE_INDEX
        ]
    assert len(right) == 30
    assert logged[4] == pytest.approx(sum(right) / 30)
    stop = {"trainer": {"callbacks": [{"class_path": "Accuracy"}, _stopping(0.0)]}, "run": str(tmp_path / "stopped")}
    overlay.write_text(yaml.safe_dump({**small, **stop, "trainer": {**small["trainer"], **stop["trainer"]}}))
    assert main(options) == 0
    assert metrics(tmp_path / "stopped" / "0", "validation/accuracy").keys() == {2}


def _stopping(threshold):
    settings = {"monitor": "validation/accuracy", "mode": "max", "stopping_threshold": threshold - 1e-9}
    return {"class_path": "EarlyStopping", "init_args": settings}

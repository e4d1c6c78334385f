"""One step of ZeRO on two processes is the step of one process: weights, clipped gradients, decay of matrices alone."""

import json
import math

import pytest
import torch
import yaml
from launch import mm

from mm_lightning.cli import main

CLIP, RATE, DECAY, BETA = 0.05, 0.1, 0.5, 0.9
STEP = {
    "trainer": {"max_steps": 1, "gradient_clip_val": CLIP, "limit_val_batches": 0},
    "model": {
        "network": {"init_args": {"layers": 6}},
        "learning_rate": RATE,
        "warmup_steps": 0,
        "weight_decay": DECAY,
        "activation_checkpointing": True,
    },
    "data": {"micro_batch_size": 2},
}
# as in configs/8b.yaml, with sizes at which a tiny network too is gathered and reduced in several pieces
SIZES = {
    "reduce_bucket_size": 3000,
    "allgather_bucket_size": 3000,
    "prefetch_bucket_size": 1000,
    "max_live_parameters": 5000,
    "max_reuse_distance": 5000,
    "param_persistence_threshold": 20,
}


def overlay(tmp_path, **changes) -> str:
    """Writes a config file."""
    spies = [
        {"class_path": "spies.StepSpy", "init_args": {"file": str(tmp_path / "step.pt")}},
        {"class_path": "spies.HeldSpy", "init_args": {"file": str(tmp_path / "held")}},
    ]
    values = {**STEP, "run": str(tmp_path / "run"), "trainer": {**STEP["trainer"], "callbacks": spies, **changes}}
    (tmp_path / "step.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "step.yaml")


def alone(tiny, tmp_path) -> dict:
    """What one process makes of the step."""
    folder = tmp_path / "alone"
    folder.mkdir()
    assert main(["fit", "--config", str(tiny), "--config", overlay(folder)]) == 0
    return torch.load(folder / "step.pt")


def assert_clipped(found) -> None:
    norm = math.sqrt(sum(float(moment.double().square().sum()) for _, moment in found.values()))
    assert norm == pytest.approx((1 - BETA) * CLIP, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "checkpointing"),
    [({"stage": 3}, "true"), ({"stage": 2}, "selective"), ({"stage": 3, "offload_optimizer": True}, "selective")],
    ids=str,
)
def test_one_step(settings, checkpointing, tiny, tmp_path):
    strategy = {"class_path": "DeepSpeed", "init_args": {**SIZES, **settings}}
    config = overlay(tmp_path, strategy=strategy, devices=2)
    done = mm("fit", "--config", str(tiny), "--config", config, "--model.activation_checkpointing", checkpointing)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = alone(tiny, tmp_path), torch.load(tmp_path / "step.pt")
    assert_clipped(one)
    assert_clipped(two)
    assert two.keys() == one.keys()
    for name, (weight, moment) in one.items():
        assert torch.allclose(two[name][1], moment, rtol=1e-4, atol=1e-8), name
        # Adam's first step is +- the rate whatever the gradient: where that is nothing but rounding, so is its sign.
        large = moment.abs() > 1e-7
        assert torch.allclose(two[name][0][large], weight[large], rtol=1e-5, atol=1e-5), name

    held = [json.loads((tmp_path / f"held.{rank}").read_text()) for rank in (0, 1)]
    if settings["stage"] == 3:
        for numbers in held:  # half of all, and the matrix that was just drawn
            assert numbers["most"] <= numbers["all"] / 2 + numbers["largest"] + 100
            assert numbers["most"] < 0.75 * numbers["all"]
    else:
        assert all(numbers["most"] == numbers["all"] for numbers in held)


@pytest.mark.parametrize(
    ("stage", "precision", "sums"),
    [(1, "bf16-mixed", None), (2, "bf16-mixed", "fp32"), (3, "bf16-true", "fp32"), (3, "32-true", None)],
)
def test_what_deepspeed_is_told_of_gradients(stage, precision, sums):
    from lightning.pytorch.plugins.precision import DeepSpeedPrecision

    from mm_lightning.training.strategies import DeepSpeed

    strategy = DeepSpeed(stage=stage, precision_plugin=DeepSpeedPrecision(precision))
    strategy._format_config()
    assert strategy.config.get("data_types", {}).get("grad_accum_dtype") == sums


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_in_bf16_are_added_up_in_float32(stage, tiny, tmp_path):
    """Gradients of 4 batches are no numbers of bf16 in sum, and about those of float32."""
    more = {"gradient_clip_val": None, "precision": "bf16-mixed", "devices": 2}
    config = overlay(tmp_path, strategy=f"deepspeed_stage_{stage}", **more)
    done = mm("fit", "--config", str(tiny), "--config", config, "--data.micro_batch_size", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.cat([moment.flatten() for _, moment in torch.load(tmp_path / "step.pt").values()]) / (1 - BETA)
    found = found[found != 0]
    rounded = (found - found.bfloat16()).abs() > 1e-5 * found.abs()
    assert rounded.float().mean() > 0.5


def test_decay_is_of_matrices_alone(tiny, tmp_path, monkeypatch):
    """Of a step of one process: a weight without gradient shrinks by rate x decay, a norm without one stays."""
    found = alone(tiny, tmp_path)
    assert_clipped(found)
    weight, moment = found["embedding.weight"]
    unseen = moment.abs().sum(1) == 0
    assert unseen.any()
    from mm_lightning.training.parse_fit import parse_fit

    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = parse_fit(["--config", str(tiny), "--config", str(tmp_path / "alone/step.yaml")]).model.network.build()
    first = before.embedding.weight.detach()
    assert torch.allclose(weight[unseen], first[unseen] * (1 - RATE * DECAY))
    change = (found["norm.weight"][0] - before.norm.weight.detach()).abs()
    assert torch.allclose(change, torch.full_like(change, RATE), rtol=1e-3)  # Adam's first step, and nothing else

"""kill -9 at random moments, saving included: resumed as often, a run ends bit-identical to the undisturbed one.

`pytest -m chaos` runs these; each logs how often it has killed.
"""

import json
import os

import pytest
from harness import Run, assert_same_losses, kill_until, same_state

KILLS = 20

STRATEGIES = {
    "one process": (1, []),
    "one process, asynchronous": (1, []),
    "DDP x 2": (2, ["--trainer.strategy", "ddp"]),
    "ZeRO-1 x 2": (2, ["--trainer.strategy", "deepspeed_stage_1"]),
    "ZeRO-2 x 2": (2, ["--trainer.strategy", "deepspeed_stage_2"]),
    "ZeRO-3 x 2": (2, ["--trainer.strategy", "deepspeed_stage_3"]),
}


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", STRATEGIES)
def test_killed_at_random_moments(config, tmp_path, name, record_property):
    world_size, options = STRATEGIES[name]
    args = [*config(asynchronous="asynchronous" in name), *options]
    if world_size > 1:
        args += ["--trainer.devices", str(world_size), "--data.micro_batch_size", "1"]
    log = tmp_path / "log.txt"
    Run([*args, "--run", str(tmp_path / "calm")], log, world_size).finish()
    calm, killed = tmp_path / "calm" / "0", tmp_path / "killed" / "0"
    kills = kill_until([*args, "--run", str(killed.parent)], killed, log, world_size, KILLS, seed=1)
    record_property("kills", kills)
    print(f"{name}: {kills} kills, {log.read_text().count('saving it was cut off')} of them while saving")
    assert kills >= KILLS
    assert_same_losses(killed, calm, kills)
    assert sorted(os.listdir(killed / "checkpoints")) == ["step=59.ckpt", "step=60.ckpt"]
    same_state(killed / "checkpoints" / "step=60.ckpt", calm / "checkpoints" / "step=60.ckpt")
    assert len(json.loads((killed / "environment.json").read_text())["earlier"]) <= kills

"""A run with nothing left to do says so and leaves its folder as it is; what ends early is measured at its end."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from runs import metrics

from mm_lightning.callbacks import Summary
from mm_lightning.cli import main

LEFT_ALONE = ("config.yaml", "environment.json", "metrics.jsonl", "finished.json")


def texts(folder) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in LEFT_ALONE}


def refused(capsys, *args: str) -> str:
    """What a command says that there is nothing to do for."""
    assert main(["fit", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_finished_run_is_left_as_it_is(tiny, tmp_path, capsys):
    config, folder = ["--config", str(tiny)], tmp_path / "run" / "0"
    assert main(["fit", *config]) == 0
    before = texts(folder)
    short = [*config, "--run", str(tmp_path / "short"), "--trainer.max_time", "{microseconds: 1}"]
    assert main(["fit", *short]) == 0
    assert list(metrics(tmp_path / "short" / "0")) == [1]
    capsys.readouterr()
    assert "trainer.max_time is 0:00:00: raise it" in refused(capsys, *short, "--resume")
    fewer = [*config, "--ckpt_path", str(folder / "checkpoints" / "step=6.ckpt"), "--trainer.max_steps", "4"]
    line = refused(capsys, *fewer)
    assert "nothing to train" in line
    assert "step=6.ckpt is at step 6 and trainer.max_steps is 4: raise it" in line
    assert "trainer.limit_train_batches is 0" in refused(capsys, *config, "--trainer.limit_train_batches", "0")
    assert texts(folder) == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["0"]


def test_epochs_end_validated_and_are_counted_through_resumes(tiny, tmp_path, capsys):
    """Also where the epoch before ended with a checkpoint, and its end was resumed."""
    values = yaml.safe_load(tiny.read_text())
    values["trainer"] |= {"max_steps": 500, "val_check_interval": 4}
    values["data"] |= {"global_batch_size": 16, "micro_batch_size": 8}
    values["trainer"]["callbacks"] += [{"class_path": "Summary"}]
    tiny.write_text(yaml.safe_dump(values))
    config, folder = ["--config", str(tiny)], tmp_path / "run" / "0"
    ends = []
    for epochs in ("1", "2"):
        resume = [*config, "--trainer.max_epochs", epochs, *(["--resume"] if ends else [])]
        assert main(["fit", *resume]) == 0
        ends.append(json.loads((folder / "finished.json").read_text())["step"])
        out = capsys.readouterr().out
        # the loss of the summary is the final network's
        shown = next(line for line in out.splitlines() if line.startswith("  this network"))
        assert float(shown.split()[2]) == round(metrics(folder, "validation/loss")[ends[-1]], 3)
        assert "measured after" not in out
        before = texts(folder)
        line = refused(capsys, *config, "--trainer.max_epochs", epochs, "--resume")
        assert f"step {ends[-1]}, at the end of epoch {epochs}, and trainer.max_epochs is that: raise it" in line
        assert texts(folder) == before
    assert f"{ends[0]} steps in " in out
    assert f", {ends[1]} in all" in out
    assert ends[1] == 2 * ends[0]
    assert ends[0] % 4  # the interval alone would not have validated it


def test_a_run_that_is_stopped_finishes_its_step(tiny, tmp_path):
    """Of two batches a step, it is told to stop after the third."""
    values = yaml.safe_load(tiny.read_text())
    values["trainer"]["callbacks"].insert(0, {"class_path": "spies.StopSpy", "init_args": {"batches": 3}})
    tiny.write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(tiny)]) == 0
    folder = tmp_path / "run" / "0"
    assert list(metrics(folder)) == [1, 2]
    assert list(metrics(folder, "validation/loss")) == [2]
    saved = torch.load(folder / "checkpoints" / "step=2.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 4


@pytest.mark.parametrize("measured", [9, 11])
def test_a_summary_says_which_network_its_loss_is_of(measured):
    summary = Summary()
    trainer = SimpleNamespace(
        global_step=measured, callback_metrics={"validation/loss": 2.0}, datamodule=SimpleNamespace(validated=[])
    )
    summary.on_validation_end(trainer, None)
    trainer.global_step = 11
    last = summary._scores(trainer)[-1]
    assert ("validated after step 9; training ended after step 11" in last) == (measured == 9)

"""DDP and ZeRO with two processes on the CPU train as one process does."""

import os
import sys

import forks
import pytest
from launch import mm
from runs import metrics

import mm_lightning.training.cli  # noqa: F401, of which a fork is then spared the import
from mm_lightning import cli
from mm_lightning.checkpoint import COMMIT_FILE, find_checkpoint, load_network
from mm_lightning.cli import main


def fit_together(tiny, tmp_path, strategy):
    devices = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.micro_batch_size", "2"]
    return ["fit", "--config", str(tiny), "--run", str(tmp_path / "together"), *devices]


def typed(*args):
    """Run `python -m mm_lightning.cli ARGS` in this process, which starts the second one by that command."""
    sys.modules["__main__"], sys.argv = cli, ["mm", *args]
    status = main(list(args))
    os.wait()  # what the second one prints is in the log
    return status


def train_together(tiny, tmp_path, strategy, *more):
    done = mm(*fit_together(tiny, tmp_path, strategy), *more)
    assert done.returncode == 0, done.stderr[-3000:]
    return tmp_path / "together" / "0", done.stdout


def assert_same(alone, together):
    for name in ("train/loss", "train/gradient_norm", "validation/loss"):
        one, two = metrics(alone, name), metrics(together, name)
        assert two.keys() == one.keys()
        assert list(two.values()) == pytest.approx(list(one.values()), rel=2e-5), name


@pytest.mark.slow
def test_ddp_equals_one_process(tiny, finished_once, tmp_path):
    log = tmp_path / "log.txt"
    assert forks.one(typed, *fit_together(tiny, tmp_path, "ddp"), log=log) == 0, log.read_text()[-3000:]
    assert_same(finished_once, tmp_path / "together" / "0")
    assert log.read_text().count("step 6/6  loss") == 1  # rank zero speaks alone
    assert [p.name for p in (tmp_path / "together").iterdir()] == ["0"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_equals_one_process(tiny, finished_once, tmp_path, stage):
    folder, _ = train_together(tiny, tmp_path, f"deepspeed_stage_{stage}")
    assert_same(finished_once, folder)
    checkpoint = find_checkpoint(folder)
    assert (checkpoint / COMMIT_FILE).is_file()
    # DeepSpeed's universal form holds the same weights, and so does one file
    forms = [str(tmp_path / name) for name in ("step=6.universal", "weights.safetensors")]
    for command, form in zip(("convert", "consolidate"), forms, strict=True):
        assert main(["checkpoint", command, str(folder), "--output", form]) == 0
        assert main(["checkpoint", "compare", str(folder), form]) == 0
    assert main(["checkpoint", "convert", forms[0], "--output", str(tmp_path / "again")]) == 2
    # back from the universal form: a run of any number of processes goes on from it and saves its own
    more = ["--trainer.devices", "1", "--trainer.strategy", f"deepspeed_stage_{stage}", "--trainer.max_steps", "8"]
    done = mm("fit", "--config", str(tiny), "--run", str(tmp_path / "back"), "--ckpt_path", forms[0], *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(metrics(tmp_path / "back" / "0")) == [7, 8]
    assert list((tmp_path / "back" / "0" / "checkpoints" / "step=8.ckpt" / "checkpoint").glob("*optim_states.pt"))
    # the consolidated weights are those of the run on one process
    one, two = load_network(finished_once)[0], load_network(folder)[0]
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert b.detach().numpy() == pytest.approx(a.detach().numpy(), abs=2e-4), name


@pytest.mark.interfaces
@pytest.mark.slow
def test_zero_resumes(tiny, finished_once, tmp_path):
    # the schedule of six steps, interrupted after three
    folder, _ = train_together(tiny, tmp_path, "deepspeed_stage_2")
    last = folder / "checkpoints" / "step=6.ckpt"
    last.rename(last.with_name("step=6.ckpt.partial"))
    before = metrics(folder)
    again, output = train_together(tiny, tmp_path, "deepspeed_stage_2", "--resume")
    assert again == folder
    assert "resuming" in output
    assert "step=3.ckpt" in output
    assert metrics(folder) == before
    assert_same(finished_once, folder)

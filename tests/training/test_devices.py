"""Devices and data are checked before a process is started for each; what leaves nothing behind leaves nothing."""

import pytest

from mm_lightning.checkpoint import list_checkpoints
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.training.check_config import check_devices


@pytest.mark.parametrize(
    ("count", "accelerator", "devices", "said"),
    [
        (
            0,
            "auto",
            8,
            "devices is 8, .* no GPU: use its CPU: --trainer.devices 1 --trainer.accelerator cpu",
        ),
        (0, "gpu", 1, "no GPU"),
        (2, "auto", 8, "has 2 GPUs: use --trainer.devices 2, or its CPU"),
        (2, "cuda", "4", "has 2 GPUs"),
        (1, "gpu", "0,1", "devices is 0,1, but this machine has 1 GPU: "),
        (2, "auto", [0, 1], None),
        (0, "auto", 1, None),
        (0, "auto", 4, None),
        (0, "auto", 5, "no GPU"),
        (0, "gpu", 2, "no GPU"),
        (0, "auto", "auto", None),
        (0, "cpu", 8, None),
        (1, "gpu", -1, None),
    ],
)
def test_too_few_gpus(monkeypatch, count, accelerator, devices, said):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    if said is None:
        check_devices(accelerator, devices)
        return
    with pytest.raises(UserError, match=said):
        check_devices(accelerator, devices)


def test_missing_data_are_said_once(tiny, tmp_path, monkeypatch, capsys):
    """In the first process, before Lightning's launcher starts another."""
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    monkeypatch.setattr(_SubprocessScriptLauncher, "_call_children_scripts", lambda self: pytest.fail("started"))
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.path", str(tmp_path / "nowhere")]
    assert main(["fit", "--config", str(tiny), *two]) == 2
    assert "no prepared data in" in capsys.readouterr().err


def test_a_plan_names_all_problems(tiny, tmp_path, capsys):
    wrong = ["--data.path", str(tmp_path / "nowhere"), "--data.global_batch_size", "7", "--ckpt_path", "gone.ckpt"]
    assert main(["fit", "--config", str(tiny), "--plan", "2", *wrong]) == 2
    error = capsys.readouterr().err
    for problem in ("global_batch_size 7 is not a multiple", "no prepared data in", "gone.ckpt"):
        assert error.count(problem) == 1


def test_what_saves_nothing(tiny, tmp_path):
    config, root = ["fit", "--config", str(tiny)], tmp_path / "run"
    assert main([*config, "--trainer.fast_dev_run", "1"]) == 0
    assert not root.exists()
    assert main([*config, "--trainer.enable_checkpointing", "false", "--trainer.max_steps", "1"]) == 0
    assert not (root / "0" / "checkpoints").exists()


def test_a_conversion_is_not_the_newest_of_its_run(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step=5.ckpt", "plain-step=5.ckpt", "step=10.ckpt", "plain-step=10.ckpt"):
        (folder / name).touch()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step=10.ckpt", "step=5.ckpt", "plain-step=10.ckpt", "plain-step=5.ckpt"]

"""Each option of Lightning's Trainer does what its documentation says, or is refused in one line."""

import json
import math
import time
from datetime import timedelta
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import yaml

from mm_lightning.cli import main
from mm_lightning.training import lightning_internals
from mm_lightning.training.trainer_options import WholeSteps, check_duration


def validated(folder) -> list[int]:
    """The steps after which validation ran, each time that it did."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "validation/loss" in line]


WORKS = [
    # options and their values, and the steps, of 6 unless they say otherwise, that are validated
    ({"val_check_interval": "2", "max_time": "00:12:00:00", "min_steps": "3", "min_epochs": "1"}, [2, 4, 6]),
    ({"val_check_interval": "00:12:00:00", "profiler": "simple", "enable_model_summary": "true"}, [6]),
    ({"val_check_interval": '{"hours": 3}', "max_time": '{"hours": 3}', "num_sanity_val_steps": "2"}, [6]),
    ({"check_val_every_n_epoch": "1", "limit_val_batches": "0.5", "limit_test_batches": "0.5"}, [3, 6]),
    (
        {
            "limit_train_batches": "4",
            "limit_val_batches": "1",
            "gradient_clip_val": "null",
            "log_every_n_steps": "null",
        },
        [3, 6],
    ),
    ({"limit_val_batches": "0", "gradient_clip_algorithm": "value"}, []),
    ({"overfit_batches": "2", "gradient_clip_val": "0", "num_sanity_val_steps": "-1"}, [3, 6]),
    (  # as few steps as are validated: anomalies are looked for slowly
        {
            "detect_anomaly": "true",
            "deterministic": "warn",
            "benchmark": "true",
            "inference_mode": "false",
            "max_steps": "3",
        },
        [3],
    ),
]
REFUSED = {
    ("val_check_interval", "0"): "takes a whole number of at least 1, got 0",
    ("val_check_interval", "0.5"): "an integer or a time-based duration",
    ("val_check_interval", "abc"): "a number of steps, or a time above 0 as days:hours:minutes:seconds",
    ("val_check_interval", "5s"): "such as 00:00:30:00, or as {minutes: 30}, got 5s",
    ("val_check_interval", "00:00:00:00"): "a time above 0",
    ("val_check_interval", '{"fortnights": 1}'): "as {minutes: 30}",
    ("check_val_every_n_epoch", "0"): "takes a whole number of at least 1, got 0",
    ("check_val_every_n_epoch", "-1"): "takes a whole number of at least 1, got -1",
    ("max_time", "5"): "a time above 0 as days:hours:minutes:seconds",
    ("max_time", '{"minutes": -3}'): "a time above 0",
    ("max_time", '{"fortnights": 1}'): "a time above 0",
    ("min_steps", "-3"): "takes a whole number of at least 0, got -3",
    ("min_steps", "100"): "min_steps 100 is above trainer.max_steps 6",
    ("min_epochs", "-1"): "takes a whole number of at least 0, got -1",
    ("limit_train_batches", "3"): "leaves 3 batches an epoch for each process, and a step takes 2 of them",
    ("limit_train_batches", "1.5"): "limit_train_batches",
    ("limit_train_batches", "-1"): "limit_train_batches",
    ("limit_val_batches", "-1"): "limit_val_batches",
    ("limit_val_batches", "0.0001"): "Please increase the `limit_val_batches`",
    ("overfit_batches", "1"): "overfit_batches leaves 1 batches",
    ("overfit_batches", "-1"): "overfit_batches",
    ("gradient_clip_val", "-1"): "gradient_clip_val takes a number of at least 0",
    ("gradient_clip_algorithm", "sum"): "gradient_clip_algorithm",
    ("profiler", "xla"): "torch_xla",
    ("profiler", "fast"): "profiler",
    ("barebones", "true"): "mm benchmark step",
    ("num_sanity_val_steps", "-2"): "takes a whole number of at least -1, got -2",
    ("log_every_n_steps", "0"): "takes a whole number of at least 1, got 0",
    ("deterministic", "maybe"): "one of true, false, warn",
    ("reload_dataloaders_every_n_epochs", "1"): "leave it out",
    ("use_distributed_sampler", "true"): "would divide the data a second time",
    ("devices", "-1"): "devices",
    ("devices", "[0]"): "devices",
    ("num_nodes", "0"): "num_nodes",
    ("accelerator", "abacus"): "accelerator",
    ("logger", "CSVLogger"): "CSVLogger needs save_dir, in init_args",
    ("logger", "WandbLogger"): 'WandbLogger needs wandb: pip install "mm-lightning[wandb]"',
    ("callbacks", "EarlyStopping"): "EarlyStopping needs monitor, in init_args",
}


@pytest.mark.parametrize(("options", "steps"), WORKS)
def test_works(options, steps, tiny, tmp_path):
    args = [word for name, value in options.items() for word in (f"--trainer.{name}", value)]
    assert main(["fit", "--config", str(tiny), *args]) == 0
    folder = tmp_path / "run" / "0"
    assert validated(folder) == steps
    assert (folder / "checkpoints" / f"step={options.get('max_steps', 6)}.ckpt").exists()


@pytest.mark.parametrize(("option", "value"), REFUSED)
def test_is_refused_in_one_line(option, value, tiny, tmp_path, capsys):
    if value == "WandbLogger" and find_spec("wandb"):
        pytest.skip("wandb is installed")
    assert main(["fit", "--config", str(tiny), f"--trainer.{option}", value]) == 2
    captured = capsys.readouterr()
    assert REFUSED[option, value] in captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert "step 1/" not in captured.out
    assert not list(tmp_path.glob("run/*"))


def test_an_interval_longer_than_an_epoch(tiny, tmp_path, capsys):
    """Lightning's own error, after all is set up."""
    args = ["--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "1000"]
    assert main(["fit", "--config", str(tiny), *args]) == 2
    error = capsys.readouterr().err
    assert "must be less than or equal to the number of the training batches" in error
    assert error.count("\n") == 1


def test_a_fraction_of_an_epoch_is_validated_after_whole_steps(tiny, tmp_path):
    args = ["--trainer.check_val_every_n_epoch", "1", "--trainer.val_check_interval", "0.3"]
    assert main(["fit", "--config", str(tiny), *args, "--trainer.limit_train_batches", "12"]) == 0
    assert validated(tmp_path / "run" / "0") == [1, 2, 3, 4, 5, 6]  # of 12 batches 3.6, that is one step of 2


def test_validation_by_the_clock(tiny, tmp_path, monkeypatch):
    """Every 5 seconds by a clock of which each look takes a second; after whole steps, once each."""
    overlay = tmp_path / "clock.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"val_check_interval": "00:00:00:05", "max_steps": 8}}))
    steps = []
    looks = iter([3, 5.5, 1, 6, 2, 3, 7, 9])

    def clock(trainer):
        steps.append(trainer.global_step)
        return next(looks)

    monkeypatch.setattr(lightning_internals, "since_validation", clock)
    assert main(["fit", "--config", str(tiny), "--config", str(overlay)]) == 0
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert validated(tmp_path / "run" / "0") == [2, 4, 7, 8]


def test_processes_validate_together(monkeypatch):
    """By the first one's clock, every log_every_n_steps steps: each by its own would wait for the others."""
    due_here = []

    def broadcast(due):
        due_here.append(due)
        return True  # as the first process says, whatever this one believes

    loop = SimpleNamespace(max_batches=8, _should_accumulate=lambda: False)
    trainer = SimpleNamespace(
        world_size=2,
        global_step=0,
        log_every_n_steps=2,
        accumulate_grad_batches=1,
        fit_loop=loop,
        fast_dev_run=False,
        overfit_batches=0,
        val_check_batch=None,
        _val_check_time_interval=3600.0,
        _last_val_time=time.monotonic(),
        strategy=SimpleNamespace(broadcast=broadcast),
    )
    clock = WholeSteps()
    clock.on_train_start(trainer, None)
    asked = []
    for trainer.global_step in range(1, 5):
        clock.on_train_batch_end(trainer, None, None, None, 0)
        asked.append(trainer._val_check_time_interval)
    assert asked == [math.inf, 0.0, math.inf, 0.0]
    assert due_here == [False, False]


@pytest.mark.parametrize("value", ["00:00:00:05", {"seconds": 5}, timedelta(seconds=5)])
def test_times(value):
    check_duration("trainer.max_time", value)

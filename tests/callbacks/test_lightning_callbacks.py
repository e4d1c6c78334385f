"""Each callback that Lightning ships, named in a config: it works, or one line says what to use instead."""

import copy
import json
import pickle
import re
import threading
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, callbacks
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from runs import metrics

from mm_lightning.callbacks.lightning_callbacks import BASE_CLASSES, REFUSED, check_averaging, check_callback_state
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.networks import MemoryMosaicConfig
from mm_lightning.training.module import LanguageModule
from mm_lightning.training.rollback import restore

DOCUMENT = Path(__file__).parents[2] / "docs" / "callbacks.md"
ROWS = dict(re.findall(r"^\| `(\w+)` \| (works|refused|base class) \|", DOCUMENT.read_text(encoding="utf-8"), re.M))
ARGUMENTS = {
    "BatchSizeFinder": {"mode": "power"},
    "EarlyStopping": {"monitor": "validation/loss"},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "OnExceptionCheckpoint": {"dirpath": "."},
    "StochasticWeightAveraging": {"swa_lrs": 1e-3},
    "ThroughputMonitor": {"batch_size_fn": "builtins.len"},
    "Timer": {"duration": "00:01:00:00"},
}


def with_callback(tiny: Path, name: str, **arguments) -> Path:
    named = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments or ARGUMENTS.get(name, {})}
    overlay = tiny.parent / f"{name}.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks+": [named]}}))
    return overlay


NOT_FOR_FIT = [name for name in callbacks.__all__ if getattr(callbacks, name) in (*REFUSED, *BASE_CLASSES)]
WITH_A_BAR = (["ProgressBar", "WeightAveraging"], ["RichProgressBar", "RichModelSummary"], ["TQDMProgressBar"])
"""Those of which a run has one, in runs that have a progress bar."""
OTHERS = [name for name in callbacks.__all__ if name not in sum(WITH_A_BAR, NOT_FOR_FIT)]


@pytest.mark.parametrize("name", NOT_FOR_FIT)
def test_each_is_refused(name, tiny, tmp_path, capsys):
    overlay = with_callback(tiny, name)
    status = main(["fit", "--config", str(tiny), "--config", str(overlay)])
    error = capsys.readouterr().err
    assert ROWS[name] == ("base class" if getattr(callbacks, name) in BASE_CLASSES else "refused")
    assert (status, error.count("\n")) == (2, 1), error
    assert f"trainer.callbacks: {name}" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [OTHERS, *WITH_A_BAR], ids=lambda names: names[0])
def test_each_other_works(names, tiny, tmp_path):
    assert all(ROWS[name] in ("works", "base class") for name in names)
    overlays = [word for name in names for word in ("--config", str(with_callback(tiny, name)))]
    bar = str(names is not OTHERS).lower()
    args = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.enable_progress_bar", bar]
    assert main(["fit", "--config", str(tiny), *overlays, *args]) == 0
    named = yaml.safe_load((tmp_path / "run" / "0" / "config.yaml").read_text())["trainer"]["callbacks"]
    assert {*names} <= {one["class_path"].split(".")[-1] for one in named}
    assert list(metrics(tmp_path / "run" / "0")) == [1, 2]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["0"], "nothing beside the numbered folders"
    assert (tmp_path / "run" / "0" / "checkpoints" / "step=2.ckpt").is_file()


def test_the_table_has_every_callback_and_none_that_is_gone():
    assert set(ROWS) == set(callbacks.__all__), "describe it in docs/callbacks.md"


def test_a_module_can_be_copied_while_its_run_folder_is_locked(tmp_path):
    module = LanguageModule(MemoryMosaicConfig(vocab_size=7, layers=1, dim=8, heads=2))
    module.network = module.config.build()
    module.run_folder = RunFolder(tmp_path)
    module.run_folder.acquire()
    try:
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert copied.run_folder.path == module.run_folder.path
            copied.run_folder.release()  # which is not its to release
            with pytest.raises(UserError, match="is training in"):
                RunFolder(tmp_path, module.run_folder.path).acquire()
    finally:
        module.run_folder.release()


def test_averages_are_what_is_validated_saved_and_resumed(tiny, tmp_path, capsys):
    overlay = with_callback(tiny, "EMAWeightAveraging", decay=0.5)
    fit = ["fit", "--config", str(tiny)]
    assert main([*fit, "--config", str(overlay)]) == 0
    first = tmp_path / "run" / "0"
    assert main(["validate", "--config", str(tiny), "--ckpt_path", str(first)]) == 0
    loss = metrics(first, "validation/loss")[6]
    assert f"loss {loss:.4f}" in capsys.readouterr().out
    half = ["--ckpt_path", str(first / "checkpoints" / "step=3.ckpt")]
    assert main([*fit, "--config", str(overlay), *half]) == 0
    states = [torch.load(tmp_path / "run" / n / "checkpoints" / "step=6.ckpt", weights_only=True) for n in "01"]
    for key in ("state_dict", "current_model_state"):
        for name, weights in states[0][key].items():
            assert torch.equal(weights, states[1][key][name]), name
    average, current = states[0]["state_dict"], states[0]["current_model_state"]
    assert not all(torch.equal(weights, current[name]) for name, weights in average.items())
    capsys.readouterr()
    assert main([*fit, *half]) == 2
    assert "EMAWeightAveraging" in capsys.readouterr().err


def test_averages_need_whole_weights():
    averaging = callbacks.EMAWeightAveraging()
    check_averaging(SimpleNamespace(callbacks=[averaging], strategy=DDPStrategy()))
    with pytest.raises(UserError, match="EMAWeightAveraging needs whole weights on every device, which DeepSpeed"):
        check_averaging(SimpleNamespace(callbacks=[averaging], strategy=DeepSpeedStrategy.__new__(DeepSpeedStrategy)))


@pytest.mark.parametrize(
    ("arguments", "args", "words"),
    [
        ({"monitor": "val_loss"}, [], "monitor is 'val_loss', metrics are validation/bits_per_byte, validation/loss"),
        ({"monitor": "validation/loss"}, ["--trainer.limit_val_batches", "0"], "nothing is validated"),
        ({"monitor": ""}, [], "monitor is ''"),
    ],
)
def test_a_metric_that_nobody_logs_is_named_before_the_first_step(arguments, args, words, tiny, tmp_path, capsys):
    overlay = with_callback(tiny, "EarlyStopping", **arguments)
    assert main(["fit", "--config", str(tiny), "--config", str(overlay), *args]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert "step 1/" not in captured.out
    assert not list(tmp_path.glob("run/*"))


def test_a_training_metric_that_nobody_logs_is_named_at_the_first_validation(tiny, capsys):
    overlay = with_callback(tiny, "EarlyStopping", monitor="train/los")
    assert main(["fit", "--config", str(tiny), "--config", str(overlay)]) == 2
    assert "did you mean train/loss?" in capsys.readouterr().err


def test_why_training_ends_early_is_said(tiny, tmp_path, capsys):
    overlay = with_callback(tiny, "EarlyStopping", monitor="validation/loss", stopping_threshold=100.0)
    assert main(["fit", "--config", str(tiny), "--config", str(overlay)]) == 0
    assert "EarlyStopping ended training after step 3: Stopping threshold reached" in capsys.readouterr().out


def test_time_is_over_after_a_whole_step(tiny, tmp_path, capsys, monkeypatch):
    """Whose gradients would be lost, and whose data would be missed, after its first batch of two."""
    batches = []

    monkeypatch.setattr(callbacks.Timer, "time_elapsed", lambda self, stage="train": 3600 * (len(batches) >= 3))
    end = callbacks.Timer.on_train_batch_end

    def count(self, trainer, *args, **kwargs):
        batches.append("batch")
        return end(self, trainer, *args, **kwargs)

    monkeypatch.setattr(callbacks.Timer, "on_train_batch_end", count)
    assert main(["fit", "--config", str(tiny), "--trainer.max_time", "00:00:30:00"]) == 0
    out = capsys.readouterr().out
    assert len(batches) == 4, "two whole steps of two batches"
    assert "training ended after step 2: its time is over" in out
    assert (tmp_path / "run" / "0" / "checkpoints" / "step=2.ckpt").is_file()


def test_a_run_that_goes_back_has_both_averages_and_weights(tiny, tmp_path, monkeypatch):
    seen = []

    def go_back(self, trainer, module):
        path = module.run_folder.path / "checkpoints" / "step=3.ckpt"
        restore(trainer, path)
        saved = torch.load(path, weights_only=True)
        for name, weights in module.state_dict().items():
            assert torch.equal(weights, saved["current_model_state"][name]), name
            assert torch.equal(self._average_model.module.state_dict()[name], saved["state_dict"][name]), name
            seen.append(name)

    monkeypatch.setattr(callbacks.EMAWeightAveraging, "on_train_end", go_back)
    overlay = with_callback(tiny, "EMAWeightAveraging", decay=0.5)
    assert main(["fit", "--config", str(tiny), "--config", str(overlay)]) == 0
    assert seen


class Remembers(Callback):
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


@pytest.mark.parametrize("state", [{}, {"seen": [1, 2.0, "x", None, torch.ones(2)], "nested": {"a": (True,)}}])
def test_plain_state_of_a_callback_is_kept(state):
    check_callback_state(Remembers(state))


@pytest.mark.parametrize("value", [lambda: 1, threading.Lock(), Callback, [{"a": (object(),)}]])
def test_state_that_no_resume_would_read_is_refused_before_the_first_step(value):
    with pytest.raises(UserError, match="the state_dict of Remembers holds a value of type"):
        check_callback_state(Remembers({"value": value}))


class Late(Callback):
    """Its state is of another type from the third step on, as one that begins with Python's 0."""

    later = None

    def setup(self, trainer, pl_module, stage):
        self.state, self.trainer = {"best": 0}, trainer

    def state_dict(self):
        return self.state if self.trainer.global_step < 3 else {"best": self.later}

    def load_state_dict(self, state):
        Late.loaded = state


def fit_late(tiny, later, **settings) -> int:
    Late.later = staticmethod(later) if callable(later) else later
    values = yaml.safe_load(tiny.read_text())
    saving = {"class_path": "Checkpoints", "init_args": {"every_n_steps": 1, "keep": 0, **settings}}
    values["trainer"]["callbacks"] = [saving, {"class_path": f"{__name__}.Late"}]
    tiny.write_text(yaml.safe_dump(values))
    return main(["fit", "--config", str(tiny), "--trainer.max_steps", "4"])


def test_state_that_changes_its_type_in_the_middle_of_a_run_is_converted(tiny, tmp_path):
    later = {"at": Path("x"), 3: [np.float64(1.5)], "array": np.arange(3), "counts": defaultdict(int, a=np.int8(1))}
    assert fit_late(tiny, later, asynchronous=True) == 0
    run = tmp_path / "run" / "0"
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert main(["fit", "--resume", str(run), "--trainer.max_steps", "5"]) == 0
    array = Late.loaded["best"].pop("array")
    assert Late.loaded == {"best": {"at": "x", 3: [1.5], "counts": {"a": 1}}}
    assert torch.equal(array, torch.arange(3))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_state_that_cannot_be_converted_ends_the_run_at_its_first_save(tiny, tmp_path, capsys, asynchronous):
    """Also where a full disk would not, because trying again would not mend it."""
    assert fit_late(tiny, {"lock": [threading.Lock()]}, asynchronous=asynchronous, on_failure="continue") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "trainer.callbacks: the state_dict of Late holds a value of type _thread.lock" in captured.err
    assert "['best']['lock'][0]" in captured.err
    assert "step 3/4" not in captured.out
    run = tmp_path / "run" / "0"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step=1.ckpt", "step=2.ckpt"]
    assert main(["checkpoint", "verify", str(run)]) == 0


def test_all_that_takes_part_in_training_can_be_copied_and_pickled(tiny, tmp_path):
    """Locks, threads, open files and functions of this process alone stay behind."""
    file = tmp_path / "copies"
    task = {"tasks": ["loss_by_position"], "settings": {"contexts": [64], "limit": 1}, "at_end": False}
    chosen = [
        {"class_path": "spies.CopySpy", "init_args": {"file": str(file)}},
        {"class_path": "MemoryStatistics"},
        {"class_path": "RetrievalProfile"},
        {"class_path": "Samples", "init_args": {"prompt": "12 ", "tokens": 2}},
        {"class_path": "Evaluation", "init_args": {**task, "every_n_steps": 100}},
    ]
    path = tmp_path / "copied.yaml"
    trainer = {"max_steps": 2, "val_check_interval": 100, "limit_val_batches": 0, "callbacks": chosen}
    path.write_text(yaml.safe_dump({"base": str(tiny), "trainer": trainer}))
    assert main(["fit", "--config", str(path)]) == 0
    found = json.loads(file.read_text())
    assert found["failed"] == []
    assert found["copied"] > 20

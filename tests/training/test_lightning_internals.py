"""Each private name of Lightning and torch that the package touches is where it was, and still means the same."""

import inspect
import math
import signal
from datetime import timedelta
from unittest.mock import MagicMock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter

from mm_lightning.training import lightning_internals as internals

pytestmark = pytest.mark.interfaces
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Line(LightningModule):
    """A weight that is trained, and what `watch` says at the end of each batch."""

    def __init__(self, watch=lambda trainer: None):
        super().__init__()
        self.weight, self.watch = torch.nn.Parameter(torch.ones(1)), watch

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        """Nothing."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.watch(self.trainer)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(watch, batches=6, **options):
    trainer = Trainer(accelerator="cpu", devices=1, **{**QUIET, "max_epochs": 1, **options})
    loader = torch.utils.data.DataLoader(torch.ones(batches))
    trainer.fit(Line(watch), loader, loader)
    return trainer


@pytest.fixture(scope="module")
def trainer():
    return Trainer(accelerator="cpu", devices=1, **QUIET)


def test_attributes_that_type_checkers_do_not_know(trainer):
    assert internals.find_datamodule(trainer) is None
    assert internals.callbacks_of(trainer, Callback) == trainer.callbacks
    assert internals.log_interval(trainer) == 50


def test_accumulation_and_epochs():
    states = []
    trainer = fit(lambda t: states.append(internals.accumulating(t)), accumulate_grad_batches=3, max_epochs=2)
    assert states == [True, True, False] * 4
    assert internals.finished_epochs(trainer) == 2


def test_rewound_steps_come_again():
    steps = []

    def watch(trainer):
        steps.append(trainer.global_step)
        if len(steps) == 4:
            internals.rewind(trainer, 2)
            assert trainer.fit_loop.epoch_loop.total_batch_idx == 1
            assert trainer.fit_loop.epoch_loop._batches_that_stepped == 1  # one more after this hook

    fit(watch, batches=10, max_steps=5)
    assert steps == [1, 2, 3, 4, 3, 4, 5]


def test_validation_by_the_clock():
    intervals, waited = [], []

    def watch(trainer):
        intervals.append(internals.validation_interval(trainer))
        waited.append(internals.since_validation(trainer))
        internals.set_validation_interval(trainer, math.inf)

    fit(watch, val_check_interval="00:00:30:00", check_val_every_n_epoch=None)
    assert intervals == [1800.0] + [math.inf] * 5
    assert all(seconds >= 0 for seconds in waited)


def test_a_validation_is_asked_for():
    class Counting(Line):
        validations = 0

        def on_validation_epoch_start(self):
            self.validations += 1

    def watch(trainer):
        internals.set_validation_interval(trainer, 0.0 if trainer.global_step in (2, 5) else math.inf)

    module = Counting(watch)
    loader = torch.utils.data.DataLoader(torch.ones(6))
    options = {"val_check_interval": "00:00:30:00", "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    Trainer(accelerator="cpu", devices=1, max_epochs=1, **options, **QUIET).fit(module, loader, loader)
    assert module.validations == 2


@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_early_stopping_says_when_it_looks(at_epoch_end):
    callback = EarlyStopping("loss", check_on_train_epoch_end=at_epoch_end)
    assert internals.checks_at_epoch_end(callback) is at_epoch_end


def test_no_handlers_and_no_broadcast_of_signals(trainer):
    connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
    assert inspect.signature(connector.register_signal_handlers).parameters == {}
    assert inspect.signature(loop._broadcast_sigterm_tensor).parameters == {}
    internals.leave_signals_alone(trainer)
    assert connector.register_signal_handlers() is None
    assert loop._broadcast_sigterm_tensor() is None


def test_timeouts_of_strategies():
    strategy = DDPStrategy(timeout=timedelta(seconds=7))
    assert internals.process_timeout(strategy) == timedelta(seconds=7)
    internals.set_process_timeout(strategy, timedelta(seconds=9))
    assert strategy._timeout == timedelta(seconds=9)
    assert internals.process_timeout(SingleDeviceStrategy()) is None


def test_strategies_use_a_fake_process_group():
    strategy = DDPStrategy()
    assert (strategy._process_group_backend, strategy._ddp_kwargs) == (None, {})
    internals.use_fake_processes(strategy)
    assert strategy._get_process_group_backend() == "fake"
    assert "init_sync" in inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters


def test_a_tuner_ends_a_run_without_an_exception():
    def watch(trainer):
        raise internals.tuner_exit()

    assert fit(watch).global_step == 1


def test_fused_optimizers_are_clipped():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
    assert optimizer._step_supports_amp_scaling
    internals.allow_clipping(optimizer)
    assert not optimizer._step_supports_amp_scaling


def test_rates_of_a_scheduler():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    internals.set_rates(scheduler, [0.25])
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]] == [0.25]


def test_compilers_are_named():
    assert all(name is None or isinstance(name, str) for name in internals.cpp_compilers())


def test_memory_snapshots_take_what_they_are_given():
    record = inspect.signature(torch.cuda.memory._record_memory_history).parameters
    assert {"enabled", "max_entries"} <= {*record, "enabled"}
    assert callable(torch.cuda.memory._dump_snapshot)


def test_names_that_our_classes_override():
    for base, names in {
        LightningCLI: ("_instantiate_trainer",),
        SummaryWriter: ("_get_file_writer",),
    }.items():
        for name in names:
            assert callable(getattr(base, name))
    assert TensorBoardLogger("x")._experiment is None


def test_launched_processes_are_killed():
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    internals.kill_launched(None)
    launcher, process = _SubprocessScriptLauncher.__new__(_SubprocessScriptLauncher), MagicMock()
    launcher.procs = [process]
    internals.kill_launched(launcher)
    process.send_signal.assert_called_once_with(signal.SIGKILL)


def test_tensors_without_storage_and_the_operators_on_them():
    names = []

    def compute(operation, args, kwargs):
        names.append(operation.__name__)
        return operation(*args, **kwargs)

    with internals.fake_tensors(), internals.intercept_operations(compute):
        x = torch.empty(10**6, 10**6)
        with torch.autocast("cpu", torch.bfloat16):
            assert (x @ x).dtype == torch.bfloat16
    assert "mm.default" in names
    assert x.untyped_storage() is x[1:].untyped_storage()


def test_trackers_are_given_the_run_to_go_on_in(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    wandb, named = WandbLogger(offline=True), WandbLogger(offline=True, id="named")
    for logger in (wandb, named):
        internals.continue_tracked_run(logger, "remembered")
    assert (wandb.version, named.version) == ("remembered", "named")
    assert wandb._wandb_init["id"] == "remembered"
    assert wandb._wandb_init["resume"] == "allow"
    mlflow = MLFlowLogger(tracking_uri=tmp_path.as_uri())
    internals.continue_tracked_run(mlflow, "remembered")
    assert mlflow._run_id == "remembered"

"""Loggers of `trainer.logger`: a resumed run goes on in its run of W&B and MLflow, and their failures end nothing."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from runs import metrics

from mm_lightning.cli import main
from mm_lightning.networks.cost import parameters, training_flops_per_token
from mm_lightning.training.parse_fit import parse_fit
from mm_lightning.training.tracked_runs import RUNS
from mm_lightning.training.trackio_logger import TrackioLogger


class Failing(Logger):
    """A logger whose server is away after the first step."""

    name, version = "failing", ""

    @property
    @rank_zero_experiment
    def experiment(self):
        return SimpleNamespace()

    def log_hyperparams(self, params):
        assert params["model.network.dim"] == 16

    def log_metrics(self, metrics, step=None):
        if step and step > 1:
            raise ConnectionError("the server\nis away")


def with_logger(tiny, **logger):
    config = yaml.safe_load(tiny.read_text())
    tiny.write_text(yaml.safe_dump({**config, "trainer": {**config["trainer"], "logger": [logger]}}))
    return tiny


def begin_and_resume(tiny, tmp_path, between=lambda: None):
    """Train 3 steps, then to 6 in the same run folder."""
    assert main(["fit", "--config", str(tiny), "--trainer.max_steps", "3"]) == 0
    between()
    first = json.loads((tmp_path / "run" / "0" / RUNS).read_text())
    assert main(["fit", "--resume", str(tmp_path / "run" / "0"), "--trainer.max_steps", "6"]) == 0
    between()
    assert json.loads((tmp_path / "run" / "0" / RUNS).read_text()) == first
    assert list(metrics(tmp_path / "run" / "0")) == [1, 2, 3, 4, 5, 6]
    return first


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tiny, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    options = {"offline": True, "save_dir": str(tmp_path), "project": "trial"}
    (id_,) = begin_and_resume(with_logger(tiny, class_path="WandbLogger", init_args=options), tmp_path, wandb.finish)[
        "WandbLogger"
    ]
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert [folder.name.rsplit("-", 1)[1] for folder in folders] == [id_, id_]
    # another run of the same config is another run
    assert main(["fit", "--config", str(tiny), "--trainer.max_steps", "1"]) == 0
    wandb.finish()
    assert json.loads((tmp_path / "run" / "1" / RUNS).read_text())["WandbLogger"] != [id_]


def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow(tiny, tmp_path, monkeypatch, capsys):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    (id_,) = begin_and_resume(with_logger(tiny, class_path="MLFlowLogger", init_args={"tracking_uri": uri}), tmp_path)[
        "MLFlowLogger"
    ]
    client = mlflow.tracking.MlflowClient(uri)
    logged = {metric.step: metric.value for metric in client.get_metric_history(id_, "train/loss")}
    assert logged == pytest.approx(metrics(tmp_path / "run" / "0"))
    # MLflow changes no parameter of a run: trainer.max_steps
    assert "MLFlowLogger.log_hyperparams failed, training goes on" in capsys.readouterr().out


class Trackio:
    """A stand-in for the package trackio, whose runs it keeps by project and name."""

    def __init__(self):
        self.runs, self.finished, self.begun = {}, [], []

    def init(self, project, name=None, resume="never", **options):
        assert resume in ("never", "allow")
        if resume == "never":
            name = name or f"run-{len(self.runs)}"
            self.runs[project, name] = SimpleNamespace(
                name=name, config={"_Group": None}, lines=[], options=options, finish=lambda: self.finished.append(name)
            )
        run = self.runs[project, name]
        run.log = lambda metrics, step: run.lines.append((step, metrics))
        self.begun.append((name, resume))
        return run


@pytest.fixture
def trackio(monkeypatch):
    module = Trackio()
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: module if name == "trackio" else find(name))
    return module


@pytest.mark.parametrize("named", [{}, {"run": "first"}])
def test_a_resumed_run_goes_on_in_the_same_run_of_trackio(tiny, tmp_path, trackio, named):
    options = {"project": "trial", "options": {"group": "small"}, **named}
    config = with_logger(tiny, class_path="TrackioLogger", init_args=options)
    name = named.get("run", "run-0")
    assert begin_and_resume(config, tmp_path) == {"TrackioLogger": [name]}
    assert trackio.begun == [(name, "never"), (name, "allow")]
    assert trackio.finished == [name, name]
    run = trackio.runs["trial", name]
    logged = {step: metrics["train/loss"] for step, metrics in run.lines if "train/loss" in metrics}
    assert logged == pytest.approx(metrics(tmp_path / "run" / "0"))
    assert run.config["model.network.dim"] == 16
    assert run.options == {"group": "small"}
    if not named:  # another run of the same config is another run
        assert main(["fit", "--config", str(tiny), "--trainer.max_steps", "1"]) == 0
        assert trackio.begun[-1] == ("run-1", "never")


def test_trackio_runs_on_rank_0_alone(trackio, monkeypatch):
    logger = TrackioLogger("trial")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"train/loss": 1.0}, 1)
    assert logger.experiment.nop() is None
    logger.finalize("success")
    assert trackio.begun == []


def test_a_logger_that_fails_ends_nothing(tiny, tmp_path, capsys):
    assert main(["fit", "--config", str(with_logger(tiny, class_path=f"{__name__}.Failing"))]) == 0
    assert list(metrics(tmp_path / "run" / "0")) == [1, 2, 3, 4, 5, 6]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Failing.log_metrics failed" in line]
    assert line.endswith("training goes on: ConnectionError: the server is away")
    assert not (tmp_path / "run" / "0" / RUNS).exists()


@pytest.mark.parametrize(
    ("name", "arguments", "package", "install"),
    [
        ("WandbLogger", {}, "wandb", '"mm-lightning[wandb]"'),
        ("MLFlowLogger", {}, "mlflow", '"mm-lightning[mlflow]"'),
        ("TrackioLogger", {"project": "trial"}, "trackio", "trackio"),
    ],
)
def test_a_missing_package_is_named(name, arguments, package, install, tiny, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == package else find(module))
    assert main(["fit", "--config", str(with_logger(tiny, class_path=name, init_args=arguments))]) == 2
    assert f"{name} needs {package}: pip install {install}" in capsys.readouterr().err


def test_a_tracker_that_begins_no_run_ends_the_start(tiny, tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")

    def refuse(**options):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    assert main(["fit", "--config", str(with_logger(tiny, class_path="WandbLogger"))]) == 2
    assert "trainer.logger cannot begin a run: No API key configured." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_trackio_that_begins_no_run_ends_the_start(tiny, tmp_path, trackio, monkeypatch, capsys):
    def refuse(*args, **options):
        raise ValueError("`server_url` must be a full URL")

    monkeypatch.setattr(trackio, "init", refuse)
    config = with_logger(tiny, class_path="TrackioLogger", init_args={"project": "trial"})
    assert main(["fit", "--config", str(config)]) == 2
    assert "trainer.logger cannot begin a run: `server_url` must be a full URL" in capsys.readouterr().err


def test_costs_are_logged(finished):
    values = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in values if "train/tokens" in line][-1]
    network = parse_fit(["--config", str(finished / "config.yaml")]).model.network
    assert last["train/tokens_per_parameter"] == pytest.approx(last["train/tokens"] / parameters(network))
    assert last["train/flops"] == last["train/tokens"] * training_flops_per_token(network, 32)

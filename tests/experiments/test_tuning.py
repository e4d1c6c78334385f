"""Sweeps that tune settings for each variant: what is tried, what wins, and what the report says of it."""

import csv
import json
import math
from pathlib import Path

import pytest
import yaml
from fake_runs import curve, write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.experiments.network_looks import looks_of
from mm_lightning.experiments.read_study import read_study
from mm_lightning.experiments.report import write_report
from mm_lightning.experiments.sweep import Stages, carry_out
from mm_lightning.experiments.sweep_file import read_sweep
from mm_lightning.experiments.sweep_runs import plan, plan_final, plan_largest, plan_tuning
from mm_lightning.experiments.tuning import tuning_blocks, warnings

CPU = Path(__file__).resolve().parents[2] / "configs" / "sweeps" / "cpu.yaml"
RATES = {"model.learning_rate": [0.001, 0.003, 0.01]}

pytestmark = pytest.mark.usefixtures("parsed_once")


@pytest.fixture
def declare(tmp_path):
    def declare(base=CPU, **values):
        path = tmp_path / "sweep.yaml"
        path.write_text(
            yaml.safe_dump(
                {"base": str(base), "runs": {"a": None, "b": {"model.network.heads": 2}}, **values}, sort_keys=False
            )
        )
        return read_sweep(path)

    return declare


class Finished:
    """Handle of a run that has ended."""

    def __init__(self, status):
        self.status = status

    def poll(self):
        return self.status

    def stop(self):
        pass

    def wait(self):
        pass


class FakeTraining:
    """Launcher whose runs end at once: with a loss by folder, or failed where that is None."""

    slots, leaving = 2, ""

    def __init__(self, folder, loss, **metrics):
        self.folder, self.loss, self.metrics, self.started = folder, loss, metrics, []

    def start(self, work):
        name = work.folder.relative_to(self.folder).as_posix()
        self.started.append(name)
        value = self.loss(name)
        lines = curve({10: 3.0, work.steps: 3.0 if value is None else value}, **self.metrics)
        run = write_run(work.folder / str(len(list(work.folder.glob("[0-9]")))), lines, seconds=None)
        if value is not None:
            (run / "finished.json").write_text(json.dumps({"step": work.steps, "seconds": 1.0}))
        return Finished(0 if value is not None else 1)


def by_value(name):
    """Best at 0.003 for a, at 0.01 for b, whose 0.003 fails; 0.001 of b diverges."""
    losses = {"a": (2.4, 2.2, 2.3), "b": (math.nan, None, 2.1)}[name.removeprefix("tuning/")[0]]
    return losses[["0.001", "0.003", "0.01"].index(name.partition("learning_rate=")[2].partition("/")[0])]


def train(folder, sweep, launcher):
    stages = Stages(folder, sweep)
    folder.mkdir(exist_ok=True)
    carry_out(stages, stages.begin(), launcher)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("mm_lightning.experiments.report.draw", lambda study, rows, looks: [])


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_one_seed_tries_all_values_and_the_others_repeat_the_best(declare, tmp_path, no_figures, capsys):
    sweep, folder = declare(tune=RATES, seeds=3, stop={"steps": 20}, warmup=0.1), tmp_path / "out"
    launcher = FakeTraining(folder, by_value)
    with pytest.raises(UserError, match=r"1 of 10 runs failed.*b/learning_rate=0.003/seed-1/log.txt"):
        train(folder, sweep, launcher)
    tried = [f"{v}/learning_rate={rate}/seed-1" for v in "ab" for rate in RATES["model.learning_rate"]]
    chosen = ["a/learning_rate=0.003", "b/learning_rate=0.01"]
    assert launcher.started == [*tried, *(f"{name}/seed-{seed}" for name in chosen for seed in (2, 3))]
    assert "a: learning_rate=0.003 has the best validation/loss, 2.2" in capsys.readouterr().out

    study = read_study([folder])
    assert [run.name for run in study.runs] == [f"{name}/seed-{seed}" for name in chosen for seed in (1, 2, 3)]
    assert [run.status for run in study.tuning.of("b")] == ["diverged", "failed", "finished"]
    assert study.tuning.best("b") is study.runs[3]  # a final run, too
    edge, *others = warnings(study.tuning)
    assert edge.startswith("b: its best learning_rate, 0.01, is the largest")
    assert [text.split(" has no result, it is ")[1] for text in others] == ["diverged.", "failed."]

    text = (folder / "report" / "report.md").read_text()
    assert "| a | 2.4000 | 2.2000 \\* | 2.3000 |" in text
    assert "| b | diverged | failed | 2.1000 \\* |" in text
    assert "| tuning | 6 |" in text
    assert "| final runs | 6 |" in text
    assert "| together | 10 |" in text
    assert "The run of seed 1 is the best of 3 with that seed" in text
    assert "nor other hyper-parameters" in text
    assert (folder / "report" / "figures" / "tuning-learning-rate.svg").is_file()
    stages = {row["folder"]: (row["stage"], row["tuned learning_rate"]) for row in rows(folder / "report/runs.csv")}
    assert stages["a/learning_rate=0.001/seed-1"] == ("tuning", "0.001")
    assert stages["a/learning_rate=0.003/seed-1"] == ("tuning and final", "0.003")
    assert stages["a/learning_rate=0.003/seed-2"] == ("final", "0.003")
    assert len(stages) == 10
    assert [row["tuned learning_rate"] for row in rows(folder / "report/report.csv")] == ["0.003", "0.01"]
    events = EventAccumulator(str(folder / "a/learning_rate=0.001/seed-1/0")).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["stage"].string_value == "tuning"
    assert hparams["tuned learning_rate"].number_value == 0.001


@pytest.mark.slow
def test_the_same_command_goes_on_and_values_may_be_added(declare, tmp_path, no_figures):
    folder, more = tmp_path / "out", {"model.learning_rate": [0.003, 0.01]}
    runs = {"a": None}
    train(
        folder, declare(runs=runs, tune=more, seeds=2, stop={"steps": 20}, warmup=0.1), FakeTraining(folder, by_value)
    )
    launcher = FakeTraining(folder, lambda name: 1.0)
    sweep = declare(runs=runs, tune=RATES, seeds=2, stop={"steps": 20}, warmup=0.1)
    train(folder, sweep, launcher)
    assert launcher.started == ["a/learning_rate=0.001/seed-1", "a/learning_rate=0.001/seed-2"]
    assert [run.tuned for run in read_study([folder]).runs] == [{"learning_rate": 0.001}] * 2
    launcher.started.clear()
    train(folder, sweep, launcher)
    assert launcher.started == []


@pytest.mark.slow
def test_a_metric_that_is_to_be_large_on_shorter_runs(declare, tmp_path, no_figures):
    tune = {**RATES, "optimizer": {"short": None, "long": {"model.weight_decay": 0.0}}}
    sweep = declare(
        runs={"a": None}, tune=tune, tune_metric="validation/accuracy", tune_mode="max", tune_stop={"steps": 12},
        stop={"steps": 20}, seeds=2, warmup=0.1, validations=4,
    )  # fmt: skip
    folder = tmp_path / "out"
    launcher = FakeTraining(folder, lambda name: 2.0, accuracy=0.25)
    train(folder, sweep, launcher)
    first = "learning_rate=0.001,optimizer=short"
    assert len(launcher.started) == 6 + 2
    assert launcher.started[0] == f"tuning/a/{first}/seed-1"
    assert launcher.started[-2:] == [f"a/{first}/seed-1", f"a/{first}/seed-2"]
    study = read_study([folder])
    assert [run.steps for run in study.all_runs] == [20, 20, *[12] * 6]
    configs = [yaml.safe_load((folder / name / "config.yaml").read_text()) for name in launcher.started]
    assert [config["trainer"]["max_steps"] for config in configs] == [*[12] * 6, 20, 20]
    assert {config["trainer"]["val_check_interval"] for config in configs} == {5}  # of shorter runs too
    later = study.tuning.runs[3]
    later.records[12]["validation/accuracy"] = 0.5
    assert study.tuning.best("a") is later
    study.tuning.mode = "min"
    assert study.tuning.best("a") is study.tuning.runs[0]
    study.tuning.metric = "train/tokens"  # runs may end as soon as they have learned
    for n, run in enumerate(study.tuning.runs):
        run.records[13] = {"train/tokens": 100.0 + (n - 2) ** 2}
    assert study.tuning.best("a") is study.tuning.runs[2]
    text = (folder / "report" / "report.md").read_text()
    assert "made with seed 1 after 12 steps" in text
    assert len(list((folder / "report" / "figures").glob("tuning-*.svg"))) == 2


def test_a_variant_without_a_result(declare, tmp_path, no_figures):
    folder = tmp_path / "out"
    sweep = declare(tune=RATES, seeds=2, stop={"steps": 20}, warmup=0.1, tune_metric="validation/acuracy")
    with pytest.raises(UserError, match=r"no tuning run of a, b has a finite validation/acuracy"):
        train(folder, sweep, FakeTraining(folder, lambda name: 2.0))
    study = read_study([folder])
    assert {run.status for run in study.runs} == {"not started"}
    assert "not logged (finished)" in (folder / "report" / "report.md").read_text()


def test_the_figure_has_a_line_a_variant_in_its_color(declare, tmp_path, no_figures):
    folder = tmp_path / "out"
    sweep = declare(tune=RATES, stop={"steps": 20}, warmup=0.1)
    with pytest.raises(UserError, match="failed"):
        train(folder, sweep, FakeTraining(folder, by_value))
    study = read_study([folder])
    looks = looks_of(study=study)
    (figure,) = [block.figure for block in tuning_blocks(study, looks) if hasattr(block, "svg")]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines["a"].get_xdata()) == [0.001, 0.003, 0.01]
    assert list(lines["b"].get_xdata()) == [0.01]
    assert [lines[name].get_color() for name in "ab"] == [looks[name]["color"] for name in "ab"]
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[0.001, 0.003]]


def test_a_plan_shows_the_grid_and_the_bound_of_the_final_runs(declare, tmp_path, capsys):
    sweep = declare(runs={"a": None}, tune={"model.network.layers": [1, 2]}, seeds=3, stop={"steps": 20}, warmup=0.1)
    runs = plan(sweep)
    tuning = plan_tuning(sweep, runs)
    assert [run.folder for run in tuning] == ["a/layers=1/seed-1", "a/layers=2/seed-1"]
    assert [run.folder for run in plan_largest(runs, tuning)] == ["a/layers=2/seed-2", "a/layers=2/seed-3"]
    assert [run.folder for run in plan_final(runs, {})] == [f"a/seed-{seed}" for seed in (1, 2, 3)]
    assert main(["sweep", sweep.path, "--dry_run", "--measure", "false"]) == 0
    printed = capsys.readouterr().out
    assert "a, layers=1" in printed
    assert "a, best values" in printed
    most = sum(run.flops for run in plan_largest(runs, tuning))
    assert f"then 2 final runs, at most {most:.2e}" in printed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tune": {"model.seed": [1, 2]}}, "model.seed is decided by `seeds`"),
        ({"tune": RATES, "settings": {"model.learning_rate": 1}}, "model.learning_rate is decided by `tune`"),
        ({"tune": {"stop.steps": [1, 2]}}, "no match and no stop"),
        ({"tune": RATES, "tune_mode": "best"}, "tune_mode takes one of min, max"),
        ({"tune": RATES, "tune_stop": {"hours": 1}}, "tune_stop must be one of steps"),
        ({"tune": RATES, "tune_stop": {"steps": 1}, "runs": {"a": {"stop.steps": 3}}}, "stop rules of their own"),
        ({"tune": [1]}, "tune must map names"),
        ({"tune": {"model.learning_rate": [1, 1]}}, "has a value twice"),
        ({"tune_metric": "train/loss"}, "tune_metric is there without tune"),
    ],
)
def test_mistakes_are_explained(declare, values, message):
    with pytest.raises(UserError, match=message):
        declare(**values)


def test_matching_needs_one_size(declare):
    sweep = declare(
        runs={"a": None, "b": {"model.network.heads": 2, "match": "parameters"}}, tune={"model.network.layers": [1, 2]}
    )
    with pytest.raises(UserError, match="tuned settings must leave parameters and FLOPs of a"):
        plan(sweep)


class InProcess:
    """Launcher that trains in this process."""

    slots, leaving = 1, ""

    def start(self, work):
        return Finished(main(work.command()[3:]))


@pytest.mark.slow
def test_a_real_sweep(tiny, declare, tmp_path, no_figures):
    runs = {"v2": None, "v1": {"model.network.keys": "leaky"}}
    folder = tmp_path / "out"
    sweep = declare(
        base=tiny, runs=runs, tune={"model.learning_rate": [1e-5, 0.01]}, seeds=2, stop={"steps": 3}, warmup=0.2
    )
    train(folder, sweep, InProcess())
    study = read_study([folder])
    assert [run.tuned["learning_rate"] for run in study.runs] == [0.01] * 4
    assert all(run.finished for run in study.all_runs)
    assert len(study.all_runs) == 6
    assert {yaml.safe_load((run.path / "config.yaml").read_text())["model"]["learning_rate"] for run in study.runs} == {
        0.01
    }
    assert write_report(folder).is_dir()

"""Where metrics go: TensorBoard's order and names, hyper-parameters, and loggers of a config beside our own."""

import csv
from types import SimpleNamespace

import pytest
import yaml
from runs import metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mm_lightning.callbacks import RetrievalProfile, Samples
from mm_lightning.checkpoint.run_folder import RunFolder
from mm_lightning.cli import main
from mm_lightning.training.loggers import TensorBoard, tensorboard_tag
from mm_lightning.training.tensorboard_hparams import RUN_HPARAMS, hyperparameters

CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": "csv"}}


def test_the_loss_comes_first():
    names = ["memory/long/alpha", "evaluation/qa_1/accuracy", "samples", "epoch", "retrieval_profile/long"]
    names += ["validation/loss", "train/loss"]
    groups = sorted(tensorboard_tag(name).split("/")[0] for name in names)
    assert groups[:2] == ["train", "validation"]
    assert all(group.startswith("watch_") for group in groups[2:])
    assert tensorboard_tag("mine/metric") == "mine/metric"


def test_several_samples_write_tags_of_their_own():
    several = [Samples("a"), RetrievalProfile(), Samples("b"), Samples("c")]
    trainer = SimpleNamespace(callbacks=several)
    assert [c.unique_tag("x", trainer) for c in several] == ["x", "x", "x/2", "x/3"]


def test_files_of_earlier_versions_go_on_where_they_are(tmp_path):
    (tmp_path / "0" / "tensorboard").mkdir(parents=True)
    assert TensorBoard(RunFolder(tmp_path, tmp_path / "0")).log_dir == str(tmp_path / "0" / "tensorboard")
    (tmp_path / "1").mkdir()
    assert TensorBoard(RunFolder(tmp_path, tmp_path / "1")).log_dir == str(tmp_path / "1")


def test_settings_have_the_names_that_are_typed():
    network = {"class_path": "mm.MemoryMosaicConfig", "init_args": {"dim": 16, "levels": ["long"]}}
    config = {"model": {"network": network, "initial_weights": None}, "trainer": {"max_steps": 3, "logger": None}}
    assert hyperparameters({"run": "runs/x", "seed_everything": 7, **config}) == {
        "seed_everything": 7,
        "model.network": "mm.MemoryMosaicConfig",
        "model.network.dim": 16,
        "model.network.levels": ["long"],
        "trainer.max_steps": 3,
    }


@pytest.mark.parametrize("several", [False, True])
def test_a_logger_of_the_config_comes_beside_ours(several, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overlay = tmp_path / "csv.yaml"
    overlay.write_text(yaml.safe_dump({"trainer": {"logger": [CSV] if several else CSV}}))
    assert main(["fit", "--config", str(tiny), "--config", str(overlay), "--trainer.max_steps", "2"]) == 0
    run = tmp_path / "run" / "0"
    losses = metrics(run)
    written = tmp_path / "csv" / "lightning_logs" / "version_0"
    rows = list(csv.DictReader((written / "metrics.csv").open()))
    assert {int(row["step"]): float(row["train/loss"]) for row in rows if row["train/loss"]} == pytest.approx(losses)
    assert yaml.safe_load((written / "hparams.yaml").read_text())["model.network.dim"] == 16
    events = EventAccumulator(str(run)).Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(list(losses.values()))


def test_a_plain_fit_without_other_loggers(tiny, tmp_path):
    """`false` takes none of ours away; TensorBoard names the run by its folder and knows its settings."""
    args = ["--trainer.max_steps", "2", "--trainer.logger", "false"]
    assert main(["fit", "--config", str(tiny), *args]) == 0
    assert (tmp_path / "run" / "0" / RUN_HPARAMS).is_file()
    assert list(metrics(tmp_path / "run" / "0")) == [1, 2]
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "run")).Reload()
    assert list(board.Runs()) == ["0"]
    content = board.GetAccumulator("0").PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert start["model.network.dim"].number_value == 16
    assert start["data.global_batch_size"].number_value == 8
    infos = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment.metric_infos
    assert {"validation/loss", "train/loss"} <= {info.name.tag for info in infos}
    assert len(board.GetAccumulator("0").Scalars("train/loss")) == 2

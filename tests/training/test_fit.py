"""Training as a user does it, in one process."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from runs import metrics

from mm_lightning.checkpoint import find_checkpoint, fingerprint, load_network
from mm_lightning.cli import main
from mm_lightning.data import Manifest
from mm_lightning.memory.documents import Documents
from mm_lightning.networks import MemoryMosaicConfig
from mm_lightning.training.module import LanguageModule


def fit(config, *more: str) -> None:
    assert main(["fit", "--config", str(config), *more]) == 0


def test_a_run_folder_explains_itself(tiny, tmp_path, capsys):
    fit(tiny)
    folder = tmp_path / "run" / "0"
    loss = metrics(folder)
    assert list(loss) == [1, 2, 3, 4, 5, 6]
    assert loss[1] == pytest.approx(5.55, abs=0.6)  # ln 258
    assert loss[6] < loss[1] - 1
    rate = metrics(folder, "train/learning_rate")
    assert rate[1] == pytest.approx(0.005)
    assert rate[2] == rate[3] == pytest.approx(0.01)
    assert rate[6] == pytest.approx(0.0001)
    assert metrics(folder, "train/tokens")[6] == 6 * 8 * 32
    assert metrics(folder, "train/gradient_norm").keys() == loss.keys()
    validation = metrics(folder, "validation/loss")
    assert list(validation) == [3, 6]
    perplexity = metrics(folder, "validation/perplexity")
    assert perplexity[6] == pytest.approx(2.718281828 ** validation[6], rel=1e-4)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert environment["cpu"]["cores"] >= 1
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step=3.ckpt", "step=6.ckpt"]
    assert list(folder.glob("events*"))
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["network"]["init_args"]["dim"] == 16
    assert saved["model"]["betas"] == [0.9, 0.95]
    assert "2 accumulated" in capsys.readouterr().out

    # the saved config does the same again, in the next folder
    fit(folder / "config.yaml")
    assert metrics(tmp_path / "run" / "1") == loss


def test_resume_equals_uninterrupted(finished, tiny, tmp_path, monkeypatch):
    stopped = tmp_path / "stopped"
    from mm_lightning.callbacks import Checkpoints

    save = Checkpoints._save

    def save_and_die(self, trainer, module):
        save(self, trainer, module)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_save", save_and_die)
        assert main(["fit", "--config", str(tiny), "--run", str(stopped)]) != 0
    assert list(metrics(stopped / "0")) == [1, 2]
    fit(tiny, "--run", str(stopped), "--resume")
    whole, resumed = metrics(finished), metrics(stopped / "0")
    assert {step: resumed[step] for step in (4, 5, 6)} == {step: whole[step] for step in (4, 5, 6)}
    assert not (stopped / "1").exists()


def test_micro_batches_do_not_change_a_step(finished, tiny, tmp_path):
    fit(tiny, "--data.micro_batch_size", "2")
    once, twice = metrics(finished), metrics(tmp_path / "run" / "1")
    assert list(twice.values()) == pytest.approx(list(once.values()), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_reduced_precision_trains(tiny, tmp_path, precision):
    fit(tiny, "--trainer.precision", precision)
    loss = metrics(tmp_path / "run" / "0")
    assert loss[6] < loss[1] - 1


def test_activation_checkpointing_changes_nothing(tiny, tmp_path):
    fit(tiny, "--trainer.max_steps", "3")
    fit(tiny, "--trainer.max_steps", "3", "--model.activation_checkpointing", "true")
    plain, recomputed = metrics(tmp_path / "run" / "0"), metrics(tmp_path / "run" / "1")
    assert list(recomputed.values()) == pytest.approx(list(plain.values()), rel=1e-6)


def test_validate_predict_and_a_network_without_yaml(finished, tiny, tmp_path, capsys):
    folder = finished
    assert main(["validate", "--config", str(tiny)]) == 0
    line = json.loads((folder / "evaluation.jsonl").read_text())
    logged = metrics(folder, "validation/loss")[6]
    assert line["validation/loss"] == pytest.approx(logged, rel=1e-5)
    assert "changed" not in line
    whole = fingerprint(folder / "checkpoints" / "step=6.ckpt")
    data = Manifest.load(yaml.safe_load(tiny.read_text())["data"]["path"]).content[:12]
    assert (line["checkpoint"], line["weights"], line["data"]) == ("step=6.ckpt", whole, data)
    more = ["--model.network.levels", "[short]", "--data.validation_sequences", "4"]
    assert main(["validate", "--config", str(tiny), *more]) == 0
    line = json.loads((folder / "evaluation.jsonl").read_text().splitlines()[1])
    assert line["changed"] == {"model.network.levels": ["short"], "data.validation_sequences": 4}
    assert main(["predict", "--config", str(tiny), "--output", str(tmp_path)]) == 2
    assert "is a folder: name a file" in capsys.readouterr().err
    saved = tmp_path / "run" / "0" / "checkpoints" / "step=3.ckpt"
    before = saved.read_bytes()
    for option in ([], ["--overwrite"]):
        assert main(["predict", "--config", str(tiny), "--output", str(saved), *option]) == 2
    assert saved.read_bytes() == before
    assert main(["predict", "--config", str(tiny)]) == 0
    rows = [json.loads(row) for row in (folder / "predictions.jsonl").read_text().splitlines()]
    predicted = sum(row["predicted"] for row in rows)
    mean = sum(row["loss"] * row["predicted"] for row in rows) / predicted
    assert mean == pytest.approx(logged, rel=1e-4)
    assert 7 * 32 < sum(row["tokens"] for row in rows) <= 8 * 32
    assert all(row["predicted"] for row in rows)

    weights = str(tmp_path / "w.safetensors")
    assert main(["checkpoint", "consolidate", str(folder), "--output", weights]) == 0
    assert main(["fit", "--config", str(tiny), "--ckpt_path", weights]) == 2
    assert "holds weights only, with no optimizer state to resume" in capsys.readouterr().err

    network, tokenizer = load_network(tmp_path / "run")
    assert isinstance(network.config, MemoryMosaicConfig)
    assert tokenizer.decode(tokenizer.encode("12 é")) == "12 é"
    tokens = torch.tensor([[256, *b"12 24"]])
    assert network(tokens, Documents.whole(1, 6)).shape == (1, 6, 258)
    about = torch.load(find_checkpoint(folder), weights_only=True)["mm_lightning"]
    assert about["network"]["class"] == "MemoryMosaicConfig"
    assert about["context_length"] == 32


def test_fine_tuning_begins_with_the_weights(finished, tiny, tmp_path):
    fit(tiny, "--model.initial_weights", str(finished), "--data.context_length", "64", "--trainer.max_steps", "3")
    assert metrics(tmp_path / "run" / "1")[1] < metrics(finished)[3]


def test_a_fine_tuning_config_takes_the_weights_of_ckpt_path(finished, tiny, tmp_path):
    """At step 6 of 6 the checkpoint would be at its end: it is begun anew with its weights instead."""
    tune = ["--model.initial_weights", str(tmp_path / "nowhere"), "--ckpt_path", str(finished)]
    fit(tiny, *tune, "--data.context_length", "64", "--run", str(tmp_path / "tuned"))
    tuned = tmp_path / "tuned" / "0"
    assert yaml.safe_load((tuned / "config.yaml").read_text())["model"]["initial_weights"] == str(
        finished / "checkpoints" / "step=6.ckpt"
    )
    assert (tuned / "checkpoints" / "step=6.ckpt").is_file()
    assert metrics(tuned)[1] < metrics(finished)[3]


def test_a_run_is_saved_whatever_callbacks_its_config_names(tiny, tmp_path):
    fit(tiny, "--trainer.callbacks", "null", "--trainer.max_steps", "2")
    assert (tmp_path / "run" / "0" / "checkpoints" / "step=2.ckpt").is_file()


def test_samples_and_statistics_reach_tensorboard(tiny, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overlay = tmp_path / "watch.yaml"
    samples = {"class_path": "Samples", "init_args": {"prompt": "1 2", "tokens": 4}}
    statistics = {"class_path": "MemoryStatistics", "init_args": {"every_n_steps": 3}}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [samples, statistics, "Summary"]}}))
    fit(tiny, "--config", str(overlay), "--trainer.enable_checkpointing", "false")
    events = EventAccumulator(str(tmp_path / "run" / "0"), {"histograms": 0}).Reload()
    names = {f"watch_memory/{level}/{name}" for level in ("long", "short") for name in ("alpha", "beta_0", "gamma")}
    assert names <= set(events.Tags()["histograms"])
    assert [h.step for h in events.Histograms("watch_memory/long/alpha")] == [0, 3, 6]
    assert any("samples" in tag for tag in events.Tags()["tensors"])
    text = capsys.readouterr().out
    assert "unigram baseline" in text
    assert "mm generate" not in text  # nothing was saved that it could read


def test_building_a_network_asks_no_other_gpu_for_its_random_numbers(monkeypatch):
    """Which would warn on every machine with several."""
    asked = []
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices=None: asked.append(devices) or fork([]))
    module = LanguageModule(MemoryMosaicConfig(vocab_size=7, layers=1, dim=8, heads=2))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=strategy, state=SimpleNamespace(fn="fit"), ckpt_path=None)
    module.trainer = trainer
    module.configure_model()
    assert asked == [[]]

"""RegBench through the trainer: its numbers, where they go, and that measuring changes nothing."""

import json
import os
import subprocess
import sys

import lightning
import numpy as np
import pytest
import torch
import yaml

from mm_lightning.callbacks import RegBench
from mm_lightning.cli import main
from mm_lightning.data import Manifest, RegBenchConfig, TextDataModule
from mm_lightning.data.generator import generate_folder
from mm_lightning.data.shards import read_shard

NETWORK = {
    "vocab_size": 21,
    "layers": 1,
    "dim": 8,
    "heads": 2,
    "persistent_dim": 8,
    "short_term_window": 8,
    "long_term_delay": [2, 4],
    "inference_delay": 2,
    "dropout": 0.1,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regbench") / "data"
    generate_folder(RegBenchConfig(6, 9), folder, 960, progress=False)
    return folder


@pytest.fixture
def config(bench, tmp_path):
    """The config of a run of two steps, without and with the callback."""

    def write(name, callbacks):
        quiet = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
        values = {
            "run": str(tmp_path / name),
            "trainer": {"max_steps": 2, "val_check_interval": 1, "callbacks": callbacks, **quiet},
            "model": {"network": {"class_path": "MemoryMosaicConfig", "init_args": NETWORK}, "warmup_steps": 0},
            "data": {
                "path": str(bench),
                "context_length": 960,
                "global_batch_size": 2,
                "micro_batch_size": 2,
                "num_workers": 0,
                "generate": {
                    "class_path": "mm_lightning.data.regbench.RegBenchConfig",
                    "init_args": {"train_sequences": 6, "test_sequences": 9},
                },
            },
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path), tmp_path / name

    return write


class Oracle(lightning.LightningModule):
    """Answers with the automata's own distribution, as a network that knows the files would; `wrong` turns it round."""

    run_folder = None

    def __init__(self, folder, wrong=False):
        super().__init__()
        manifest = Manifest.load(folder)
        shards = manifest.splits["validation"].shards
        rows = np.concatenate([read_shard(folder / "validation" / s.file, "uint16", s.tokens) for s in shards])
        rows = torch.from_numpy(rows.astype(np.int64)).view(-1, 961)[:, :-1]
        masks = torch.from_numpy(np.load(folder / "validation" / "allowed.npy").astype(np.int64))
        self.rows, self.letters, self.wrong = rows, masks.unsqueeze(-1) >> torch.arange(21) & 1, wrong

    def network(self, tokens, documents):
        assert not torch.is_grad_enabled()
        found = torch.stack([self.letters[(self.rows == row).all(1)][0] for row in tokens])
        return (1 - found if self.wrong else found).log()

    def validation_step(self, batch, _):
        pass

    test_step = validation_step


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.filterwarnings("ignore")
def test_the_automata_themselves_are_perfect(bench, batch, stage):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    name = {"validate": "validation", "test": "test"}[stage]
    for wrong, accuracy in ((False, 1), (True, 0)):
        trainer = lightning.Trainer(callbacks=[RegBench()], **quiet)
        data = TextDataModule(str(bench), 960, batch, batch, num_workers=0, validation_sequences=3)
        (found,) = getattr(trainer, stage)(Oracle(bench, wrong), data, verbose=False)
        assert found == {f"{name}/accuracy": accuracy, f"{name}/total_variation": pytest.approx(1 - accuracy, abs=1e-6)}


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_records_them_and_trains_the_same(config, bench, capsys):
    saving = {"class_path": "Checkpoints", "init_args": {"every_n_steps": 2}}
    plain, plain_run = config("plain", [])
    measured, run = config("measured", [{"class_path": "RegBench"}, saving])
    assert main(["fit", "--config", plain]) == 0
    assert main(["fit", "--config", measured]) == 0
    found = [line for line in lines(run / "0") if "validation/accuracy" in line]
    assert [line["step"] for line in found] == [1, 2]
    assert all(0 <= line["validation/accuracy"] <= 1 for line in found)
    assert all(0 < line["validation/total_variation"] < 1 for line in found)
    assert (run / "0" / "baselines.json").read_bytes() == (bench / "baselines.json").read_bytes()
    shown = capsys.readouterr().out
    assert f"accuracy {found[-1]['validation/accuracy']:.4f}  total variation" in shown
    for name in ("train/loss", "validation/loss"):
        ours, theirs = ([line[name] for line in lines(r / "0") if name in line] for r in (run, plain_run))
        assert ours == theirs
    assert main(["validate", "--config", measured]) == 0
    evaluated = json.loads((run / "0" / "evaluation.jsonl").read_text())
    for name in ("validation/accuracy", "validation/total_variation"):
        assert evaluated[name] == pytest.approx(found[-1][name], rel=1e-6)


def test_other_data_is_refused(config, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some text " * 300)
    text = {"sources": [str(tmp_path / "a.txt")], "separator": ". ", "validation_fraction": 0, "workers": 1}
    path, run = config("text", [{"class_path": "RegBench"}])
    other = ["--data.path", str(tmp_path / "text_data"), "--data.regbench", "null"]
    sizes = ["--data.context_length", "32", "--model.network.init_args.vocab_size", "258"]
    assert main(["fit", "--config", path, *other, *sizes, "--data.prepare", json.dumps(text)]) == 2
    assert "is not RegBench data: generate some" in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_3"])
def test_two_processes_measure_the_same(config, strategy):
    path, run = config("together", [{"class_path": "RegBench"}])
    alone, run_alone = config("alone", [{"class_path": "RegBench"}])
    # dropout differs between devices; four rows, so that none is left out
    same = ["--model.network.init_args.dropout", "0", "--data.validation_sequences", "4"]
    assert main(["fit", "--config", alone, *same]) == 0
    devices = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.micro_batch_size", "1"]
    command = [sys.executable, "-m", "mm_lightning.cli", "fit", "--config", path, *same, *devices]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = ([line for line in lines(r / "0") if "validation/accuracy" in line] for r in (run_alone, run))
    assert [line["step"] for line in two] == [1, 2]
    for name in ("validation/accuracy", "validation/total_variation", "validation/loss"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=2e-3)

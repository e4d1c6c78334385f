"""A run that is killed and resumed, once or twice, is the run that nothing happened to: bit for bit."""

import hashlib
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from overlay_networks import overlay_configs
from resuming import Case, steps, together, tokens
from runs import metrics
from small_datamodules import SMALL, SaveAt

from mm_lightning.cli import main
from mm_lightning.data import Manifest, TextDataModule
from mm_lightning.data.mixture import folders
from mm_lightning.data.shards import read_shard
from mm_lightning.training.module import LanguageModule

STEPS, CONTEXT = 40, 48
SETTINGS = {
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": 10,
    "model.network.layers": 1,
    "model.network.dropout": 0.1,
    "data.context_length": CONTEXT,
    "data.global_batch_size": 4,
    "data.validation_sequences": 2,
}


@pytest.fixture
def config(tiny) -> str:
    """The tiny config without its callbacks and run, which cases set."""
    values = yaml.safe_load(Path(tiny).read_text())
    del values["trainer"]["callbacks"], values["run"]
    Path(tiny).write_text(yaml.safe_dump(values))
    return str(tiny)


@pytest.fixture
def mixed(config, tmp_path) -> str:
    """The same with a second, small data set for 0.4 of the sequences."""
    for n in range(5):
        (tmp_path / f"{n}.txt").write_text(" ".join(f"{k * (n + 2)}." for k in range(50)))
    other = tmp_path / "other"
    assert main(["data", "prepare", str(tmp_path), "--output", str(other), "--validation_fraction", "0.5"]) == 0
    values = yaml.safe_load(Path(config).read_text())
    values["data"]["path"] = {values["data"]["path"]: 0.6, str(other): 0.4}
    Path(config).write_text(yaml.safe_dump(values))
    return config


def epoch_steps(config: str) -> int:
    """Steps of an epoch."""
    weights = folders(yaml.safe_load(Path(config).read_text())["data"]["path"])
    count = sum(Manifest.load(folder).splits["train"].sequences(CONTEXT + 1) for folder in weights)
    return count // SETTINGS["data.global_batch_size"]


def cases(epoch: int, **settings) -> list[Case]:
    """In one go, and the ways to cut it, for both accumulations and numbers of workers."""
    made = []
    for micro, seed in ((4, 1), (2, 7)):
        micro = micro // (2 if "trainer.strategy" in settings else 1)
        same = {**SETTINGS, "seed_everything": seed, "data.micro_batch_size": micro, **settings}
        ways = {
            "20+20": ([20], [20]),  # right before a validation, inside an epoch
            "10+10+20, killed late": ([13, 22], [10, 10]),
            "epoch": ([epoch], [epoch]),
            "an epoch, a step": ([epoch + 2, epoch + 3], [epoch, 1]),
        }
        made.append(Case(f"whole {micro}", same))
        for (name, (kills, saves)), workers in zip(ways.items(), itertools.cycle((0, 2) if seed == 1 else (2, 0))):
            made.append(Case(f"{name} {micro}", {**same, "data.num_workers": workers}, kills, saves))
    return made


def compare(root: Path, made: list[Case]) -> int:
    """Holds every case against the one in one go before it; how many were compared."""
    for case in made:
        found, values = steps(root, case), metrics(root / case.name / "run" / "0", "validation/loss")
        count, every = case.settings["trainer.max_steps"], case.settings["trainer.val_check_interval"]
        assert sorted(found) == list(range(count)), case.name
        if not case.kills:
            whole, validated = found, values
            batches = case.settings["data.global_batch_size"] // case.settings["data.micro_batch_size"]
            assert all(len(step) == batches for step in found.values())
            assert list(validated) == list(range(every, count + 1, every))
            continue
        for step in range(count):
            assert found[step] == whole[step], f"{case.name}: step {step}"
        assert values == validated, case.name
    return sum(bool(case.kills) for case in made)


@pytest.mark.interfaces
def test_one_process(config, tmp_path):
    # half as many steps of twice the batch as the cases of test_one_process_every_way
    epoch = epoch_steps(config) // 2
    assert 11 < epoch < 20 - 3
    settings = {**SETTINGS, "trainer.max_steps": 20, "trainer.val_check_interval": 5, "seed_everything": 7}
    whole = Case("whole", {**settings, "data.global_batch_size": 8, "data.micro_batch_size": 4})
    made = [whole, replace(whole, name="5+5+10, killed late", kills=[7, 11], saves=[5, 5])]
    for case in made:
        case.run(config, tmp_path)
    assert compare(tmp_path, made) == 1
    # the learning rate goes up and down as it should, m changes, and no sequence comes twice in an epoch
    seen = steps(tmp_path, whole)
    assert len({step[0]["groups"][0][0] for step in seen.values()}) > 15
    assert {step[0]["m"]["delays"]["long"] for step in seen.values()} == {2, 3, 4, 5, 6}
    assert len(set(tokens(seen)[: epoch * 8])) == epoch * 8


def test_a_hybrid_with_all_switches_of_the_transformer(config, tmp_path):
    values = yaml.safe_load(Path(config).read_text())
    network = values["model"]["network"]
    network["class_path"] = "GatedDeltaNetConfig"
    switches = dict.fromkeys(("qk_norm", "scalable_softmax", "forget_gate"), True)
    network["init_args"] |= {"attention_every": 2, "canon": 4, "kv_heads": 1, **switches}
    Path(config).write_text(yaml.safe_dump(values))
    short = {"model.network.layers": 2, "trainer.max_steps": 8, "trainer.val_check_interval": 4}
    whole = Case("whole", {**SETTINGS, **short, "data.micro_batch_size": 2})
    made = [whole, replace(whole, name="3+5, killed late", kills=[5], saves=[3])]
    for case in made:
        case.run(config, tmp_path)
    assert compare(tmp_path, made) == 1


SPANS = {"short_term_window": 8, "long_term_delay": (2, 6), "inference_delay": 2}
OVERLAYS = overlay_configs(vocab_size=258, layers=2, dim=16, heads=2, persistent_dim=16, **SPANS)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay(prepared, tmp_path, name):
    """Two steps, a checkpoint, two more; and the two more from the checkpoint."""
    weights, starts = [], []
    for checkpoint in (None, tmp_path / "2.ckpt"):
        start = LambdaCallback(on_train_start=lambda trainer, _: starts.append(trainer.global_step))
        trainer = Trainer(
            **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
            accelerator="cpu",
            max_steps=4,
            limit_val_batches=0,
            default_root_dir=tmp_path,
            callbacks=[start, SaveAt(tmp_path, [] if checkpoint else [2])],
        )
        module = LanguageModule(replace(OVERLAYS[name], dropout=0.1), learning_rate=0.01, warmup_steps=1)
        trainer.fit(module, datamodule=TextDataModule(str(prepared), **SMALL), ckpt_path=checkpoint)
        weights.append(module.network.state_dict())
    assert starts == [0, 2]
    half = torch.load(tmp_path / "2.ckpt", weights_only=True)["state_dict"]
    for key, value in weights[0].items():
        assert torch.equal(weights[1][key], value), key
    assert sum(not torch.equal(half[f"network.{key}"], value) for key, value in weights[0].items()) > len(half) // 2


@pytest.mark.slow
@pytest.mark.timeout(2600)
def test_one_process_every_way(config, tmp_path):
    made = cases(epoch_steps(config))
    for case in made:
        case.run(config, tmp_path)
    assert compare(tmp_path, made) == 8


def test_a_mixture(mixed, tmp_path):
    short = {**SETTINGS, "data.micro_batch_size": 2, "trainer.max_steps": 16, "trainer.val_check_interval": 8}
    made = [Case("whole", short), Case("5+3+8, killed late", short, [7, 10], [5, 3])]
    for case in made:
        case.run(mixed, tmp_path)
    assert compare(tmp_path, made) == 1
    # of the sequences of the small set, which is 0.4 of all, each comes as often as each other, and again and again
    seen = Counter(tokens(steps(tmp_path, made[0])))
    small = [seen[row] for row in rows(tmp_path / "other")]
    assert abs(sum(small) - 0.4 * 4 * 16) <= 2
    assert 1 <= min(small) == max(small) - 1
    for line in ("validation/loss", "validation/loss/prepared", "validation/loss/other"):
        whole, cut = (metrics(tmp_path / case.name / "run" / "0", line) for case in made)
        assert whole == cut
        assert list(whole) == [8, 16]


def rows(folder: Path) -> list[str]:
    """The hashes of a folder's training sequences, read from its shard."""
    (shard,) = Manifest.load(folder).splits["train"].shards
    stored = read_shard(folder / "train" / shard.file, "uint16", shard.tokens).astype(np.int64)
    cut = stored[: len(stored) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1)[:, :-1]
    return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in cut]


@pytest.mark.slow
@pytest.mark.timeout(2600)
def test_a_mixture_every_way(mixed, tmp_path):
    epoch = epoch_steps(mixed)
    assert 22 < epoch < STEPS - 3
    made = cases(epoch)
    for case in made:
        case.run(mixed, tmp_path)
    assert compare(tmp_path, made) == 8


def test_ddp(config, tmp_path):
    short = {"trainer.max_steps": 8, "trainer.val_check_interval": 4, "data.micro_batch_size": 1}
    whole = Case("whole", {**SETTINGS, "trainer.strategy": "ddp", **short})
    made = [whole, replace(whole, name="4+1+3", kills=[4, 6], saves=[4, 1])]
    assert not any(together(config, tmp_path, [(case, 0, None) for case in made], forked=True))
    assert compare(tmp_path, made) == 1


@pytest.mark.slow
@pytest.mark.timeout(2600)
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3"])
@pytest.mark.parametrize("data", ["config", "mixed"])
def test_two_processes_every_way(request, data, tmp_path, strategy):
    config = request.getfixturevalue(data)
    made = cases(epoch_steps(config), **{"trainer.strategy": strategy})
    assert not any(together(config, tmp_path, [(case, 0, None) for case in made]))
    assert compare(tmp_path, made) == 8


@pytest.mark.slow
@pytest.mark.timeout(2600)
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_another_number_of_processes(config, tmp_path, strategy):
    change_processes(config, tmp_path, strategy)


@pytest.mark.slow
@pytest.mark.timeout(2600)
def test_a_mixture_on_another_number_of_processes(mixed, tmp_path):
    change_processes(mixed, tmp_path, "ddp")


def change_processes(config: str, tmp_path: Path, strategy: str) -> None:
    """From 2 to 1 and back to 2, or from 1 to 2: the same sequences in the same order, losses equal to rounding."""
    settings = {**SETTINGS, "trainer.strategy": strategy, "data.micro_batch_size": 2, "model.network.dropout": 0}
    whole = Case("whole", settings)
    fewer = Case("2, 1, 2", settings, [15, 30], [15, 15])  # the second checkpoint lies in the second epoch
    more = Case("1, 2", settings, [20], [20])
    assert not any(together(config, tmp_path, [(whole, 0, None), (fewer, 0, 1)]))
    assert not any(together(config, tmp_path, [(fewer, 1, 2), (more, 0, 1)], ranks=1))
    assert not any(together(config, tmp_path, [(fewer, 2, 3), (more, 1, 2)]))
    expected = steps(tmp_path, whole)
    for case in (fewer, more):
        found = steps(tmp_path, case)
        assert tokens(found) == tokens(expected)
        for step in range(STEPS):
            for is_, should in zip(found[step], expected[step], strict=True):
                assert (is_["m"], is_["groups"]) == (should["m"], should["groups"])
                loss = float.fromhex(should["loss"])
                assert float.fromhex(is_["loss"]) == pytest.approx(loss, rel=1e-6), f"{case.name}: step {step}"
        assert list(metrics(tmp_path / case.name / "run" / "0", "validation/loss")) == [10, 20, 30, 40]


def test_a_part_that_draws_numbers_of_its_own(tiny, tmp_path, monkeypatch):
    """A user's part may have dropout where the network has none: it drops the same after a resume."""
    part = "from torch import nn\nfrom mm_lightning.memory.layers import Linear\n"
    part += "from mm_lightning.memory.persistent import Persistent\n\n\nclass Dropped(Persistent):\n"
    part += "    def __init__(self, dim, heads, std):\n        super().__init__()\n"
    part += "        self.W, self.dropout = Linear(dim, dim, std(dim)), nn.Dropout(0.5)\n\n"
    part += "    def forward(self, x):\n        return self.W(self.dropout(x))\n"
    (tmp_path / "mine_dropped.py").write_text(part)
    monkeypatch.syspath_prepend(str(tmp_path))
    run, fit = tmp_path / "run" / "0", ["fit", "--config", str(tiny)]
    fit += ["--model.network.persistent", "{class_path: mine_dropped.Dropped}"]
    assert main(fit) == 0
    whole = metrics(run, "train/loss")
    (run / "checkpoints" / "step=6.ckpt").unlink()
    assert main([*fit, "--resume"]) == 0
    assert metrics(run, "train/loss") == whole

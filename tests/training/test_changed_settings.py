"""A run that is resumed with other settings than those its data follow from is told so, once, in one line."""

import dataclasses
import json
import re
import shutil
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
import yaml
from launch import mm
from runs import metrics

from mm_lightning.checkpoint import METADATA_KEY
from mm_lightning.cli import main
from mm_lightning.data import Manifest
from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.errors import UserError
from mm_lightning.training.resume import OptimizerSettings, data_changes, data_identity
from mm_lightning.training.sharding import keep_clipping_and_scaling


def test_what_has_changed_is_named(tiny, finished, tmp_path, prepared, capsys):
    checkpoint = tmp_path / "run" / "0" / "checkpoints" / "step=6.ckpt"
    about = torch.load(checkpoint, weights_only=True)[METADATA_KEY]["data"]
    manifest = Manifest.load(prepared)
    prints = {"content": manifest.content[:12], "fingerprint": manifest.fingerprint[:12]}
    assert about == {**prints, "context_length": 32, "global_batch_size": 8, "seed": 1}
    capsys.readouterr()

    other = shutil.copytree(prepared, tmp_path / "other")
    dataclasses.replace(manifest, fingerprint="elsewhere").save(other)  # the same data of other names
    resume = ["fit", "--config", str(tiny), "--resume"]
    assert main([*resume, "--data.path", str(other), "--trainer.max_steps", "7"]) == 0
    assert "are others" not in (said := capsys.readouterr().out)
    assert "WARNING" not in said
    shutil.rmtree(other)
    texts = str(prepared.parent / "*.txt")
    content = prepare(PrepareConfig([texts], validation_fraction=0.1, workers=1), other, progress=False).content[:12]
    changed = ["--seed_everything", "5", "--data.global_batch_size", "4", "--data.context_length", "16"]
    assert main([*resume, *changed, "--data.path", str(other), "--trainer.max_steps", "8"]) == 0
    warning = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(warning) == 1
    for told in (
        f"data.path of content {content} instead of {manifest.content[:12]}",
        "data.context_length 16 instead of 32",
        "data.global_batch_size 4 instead of 8",
        "seed_everything 5 instead of 1",
    ):
        assert told in warning[0]

    # step 8 was saved with the new settings
    assert main([*resume, *changed, "--data.path", str(other), "--trainer.max_steps", "9"]) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_another_tokenizer_is_refused_and_old_checkpoints_are_taken():
    tokenizer = SimpleNamespace(name="bpe", sha256="b" * 64)
    one = SimpleNamespace(share=Fraction(1), manifest=SimpleNamespace(fingerprint="f" * 64, content="c" * 64))
    data = SimpleNamespace(tokenizer=tokenizer, sets=[one], path="data", context_length=8, global_batch_size=2, seed=1)
    with pytest.raises(UserError, match=r"tokenizer bytes \(aaaaaaaa\), data was prepared with bpe \(bbbbbbbb\)"):
        data_changes({"tokenizer": {"name": "bytes", "sha256": "a" * 64}}, data)
    assert data_changes({"tokenizer": {"name": "bpe", "sha256": "b" * 64}}, data) is None
    assert data_changes({"tokenizer": None}, data) is None
    before = {"tokenizer": None, "data": data_identity(data)}
    old = {"tokenizer": None, "data": {k: value for k, value in before["data"].items() if k != "content"}}
    assert data_changes(old, data) is None
    other = SimpleNamespace(share=Fraction(1, 4), manifest=SimpleNamespace(fingerprint="e" * 64, content="d" * 64))
    data.sets = [SimpleNamespace(share=Fraction(3, 4), manifest=one.manifest), other]
    told = f"data.path of content 3/4 x {'c' * 12} + 1/4 x {'d' * 12} instead of {'c' * 12}:"
    assert told in data_changes(before, data)
    told = f"data.path of fingerprint 3/4 x {'f' * 12} + 1/4 x {'e' * 12} instead of {'f' * 12}:"
    assert told in data_changes(old, data)


def test_data_prepared_anew_are_told_and_not_shown(tiny, tmp_path, capsys):
    """The same names and sizes, other text."""
    source, data, run = tmp_path / "text.jsonl", tmp_path / "data", tmp_path / "run" / "0"

    def put(letter):
        source.write_text("".join(json.dumps({"text": f"{letter} {n} " * 20}) + "\n" for n in range(60)))
        assert main(["data", "prepare", str(source), "--output", str(data), "--progress", "false"]) == 0

    put("a")
    fit = ["fit", "--config", str(tiny), "--data.path", str(data)]
    assert main([*fit, "--trainer.max_steps", "3"]) == 0
    shutil.copytree(data, tmp_path / "first")
    shown = ["data", "show", str(run), "--step"]
    capsys.readouterr()
    assert main([*shown, "2"]) == 0
    assert re.search(r" (\d+) a \1 a", capsys.readouterr().out)
    shutil.rmtree(data)
    put("b")
    first, second = (Manifest.load(path).content[:12] for path in (tmp_path / "first", data))
    assert Manifest.load(data).fingerprint == Manifest.load(tmp_path / "first").fingerprint
    capsys.readouterr()
    assert main([*shown, "2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"are not those that step 2 was trained on (content {second} instead of {first})" in said.err
    assert main([*shown, "2", "--data", str(tmp_path / "first")]) == 0
    assert re.search(r" (\d+) a \1 a", capsys.readouterr().out)

    assert main([*fit, "--trainer.max_steps", "5", "--resume"]) == 0
    said = capsys.readouterr().out
    assert said.count(f"WARNING: resuming with data.path of content {second} instead of {first}:") == 1
    assert main([*shown, "5"]) == 0  # of which the second data are the right ones
    assert re.search(r" (\d+) b \1 b", capsys.readouterr().out)
    assert main([*shown, "2"]) == 2


NEW = ["--model.learning_rate", "0.001", "--model.weight_decay", "0.5", "--model.betas", "[0.8, 0.9]"]
NAMED = ("model.learning_rate 0.001 instead of 0.01", "model.weight_decay 0.5", "model.betas [0.8, 0.9]")


def spied(tiny, tmp_path, **trainer) -> str:
    """The tiny config with a spy on the optimizer's settings, which writes tmp_path/groups."""
    values = yaml.safe_load(tiny.read_text())
    values["trainer"]["callbacks"] += [
        {"class_path": "spies.GroupsSpy", "init_args": {"file": str(tmp_path / "groups")}}
    ]
    values["trainer"] |= {"limit_val_batches": 0, **trainer}
    tiny.write_text(yaml.safe_dump(values))
    return str(tiny)


def groups(tmp_path) -> dict[int, dict]:
    """What the spy wrote, by step; the later line counts."""
    return {line["step"]: line for line in map(json.loads, (tmp_path / "groups").read_text().splitlines())}


def test_a_resumed_run_trains_with_its_own_settings(tiny, tmp_path, capsys):
    config = spied(tiny, tmp_path)
    assert main(["fit", "--config", config]) == 0
    before, checkpoint = groups(tmp_path), tmp_path / "run" / "0" / "checkpoints" / "step=3.ckpt"
    loss = metrics(tmp_path / "run" / "0")
    capsys.readouterr()

    for how in (["--resume", str(checkpoint)], ["--ckpt_path", str(checkpoint)]):
        folder = tmp_path / "run" / ("0" if "--resume" in how else "1")
        # unchanged: the same to the last bit, and nothing is said
        assert main(["fit", "--config", config, *how]) == 0
        assert "resuming with" not in capsys.readouterr().out
        assert groups(tmp_path) == before
        assert [metrics(folder)[step] for step in (4, 5, 6)] == [loss[step] for step in (4, 5, 6)]
        if "--ckpt_path" in how:
            shutil.rmtree(folder)

        assert main(["fit", "--config", config, *how, *NEW, "--trainer.gradient_clip_val", "0.5"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resuming with")]
        rates = {step: 0.1 * before[step]["lr"][0] for step in (4, 5, 6)}
        told = (*NAMED, "trainer.gradient_clip_val 0.5 instead of 1.0")
        assert [text for text in told if text not in line] == []
        said = re.search(r"learning rate of step 4: (\S+) instead of (\S+)$", line)
        assert [float(said[1]), float(said[2])] == pytest.approx([rates[4], 10 * rates[4]], rel=2e-3)
        assert "warmup" not in line
        used = groups(tmp_path)
        for step, rate in rates.items():
            assert used[step]["lr"] == pytest.approx([rate, rate])
            assert used[step]["weight_decay"] == [0.5, 0.0]
            assert used[step]["betas"] == [[0.8, 0.9]] * 2
            assert used[step]["base_lrs"] == [0.001, 0.001]
            # the log shows what was used
            assert metrics(folder, "train/learning_rate")[step] == pytest.approx(used[step]["lr"][0])


def test_another_number_of_steps_says_what_becomes_of_the_rate(tiny, tmp_path, capsys):
    config = spied(tiny, tmp_path)
    assert main(["fit", "--config", config]) == 0
    capsys.readouterr()
    assert main(["fit", "--config", config, "--resume", "--trainer.max_steps", "12", "--model.warmup_steps", "4"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resuming with")]
    rate = groups(tmp_path)[7]["lr"][0]  # the first after the resume follows the new schedule
    assert 0.005 < rate < 0.01
    assert "trainer.max_steps 12 instead of 6" in line
    assert "model.warmup_steps 4 instead of 2" in line
    assert f"learning rate of step 7: {rate:.3g} instead of 0.0001" in line
    assert metrics(tmp_path / "run" / "0", "train/learning_rate")[7] == pytest.approx(rate)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_two_processes_and_their_shards(tiny, tmp_path, strategy):
    """DeepSpeed restores settings of its own, among them the clipping, and others from its universal form."""
    config = spied(tiny, tmp_path, strategy=strategy, devices=2)
    assert mm("fit", "--config", config, "--trainer.max_steps", "3").returncode == 0
    clip = ["--trainer.gradient_clip_val", "0.5"]
    done = mm("fit", "--config", config, "--resume", "--trainer.max_steps", "4", *NEW, *clip)
    assert done.returncode == 0, done.stderr
    assert all(text in done.stdout for text in NAMED)
    # in another precision, whose shards DeepSpeed gives other names
    fewer = ["--trainer.devices", "1", "--trainer.max_steps", "5", "--trainer.gradient_clip_val", "0.25"]
    fewer += ["--trainer.precision", "bf16-mixed"]
    done = mm("fit", "--config", config, "--resume", *fewer, "--model.weight_decay", "0.25")
    assert done.returncode == 0, done.stderr
    assert "model.weight_decay 0.25 instead of 0.5" in done.stdout
    used = groups(tmp_path)
    assert [used[n]["clip"] for n in (3, 4, 5)] == [1.0, 0.5, 0.25]
    assert [used[n]["weight_decay"] for n in (3, 4, 5)] == [[0.1, 0.0], [0.5, 0.0], [0.25, 0.0]]
    # the run goes on with its own configuration, in which the second attempt has put its betas
    assert [used[n]["betas"][1] for n in (3, 4, 5)] == [[0.9, 0.95], [0.8, 0.9], [0.8, 0.9]]
    assert [used[n]["base_lrs"] for n in (4, 5)] == [[0.001, 0.001], [0.01, 0.01]]
    assert [used[n]["lr"][1] for n in (4, 5)] == pytest.approx([1e-5, 1e-4])


def test_settings_are_put_back_after_an_optimizer_is_restored():
    def trainer(rate, decay):
        groups = [{"params": [torch.zeros(1, requires_grad=True)], "weight_decay": d} for d in (decay, 0.0)]
        optimizer = torch.optim.AdamW(groups, lr=rate, eps=rate / 10)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.3 / (step + 1))
        config = SimpleNamespace(scheduler=scheduler)
        return SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[config], precision_plugin=None)

    old, new = trainer(0.1, 0.2), trainer(0.7, 0.4)
    for _ in range(5):
        old.optimizers[0].step()
        old.lr_scheduler_configs[0].scheduler.step()
    settings = OptimizerSettings(new)
    new.optimizers[0].load_state_dict(old.optimizers[0].state_dict())
    new.lr_scheduler_configs[0].scheduler.load_state_dict(old.lr_scheduler_configs[0].scheduler.state_dict())
    settings.apply(new)
    found = [(g["lr"], g["initial_lr"], g["weight_decay"], g["eps"]) for g in new.optimizers[0].param_groups]
    assert found == [(0.7 * (0.3 / 6), 0.7, 0.4, 0.7 / 10), (0.7 * (0.3 / 6), 0.7, 0.0, 0.7 / 10)]
    new.optimizers[0].step()
    new.lr_scheduler_configs[0].scheduler.step()
    assert new.optimizers[0].param_groups[0]["lr"] == 0.7 * (0.3 / 7)


@pytest.mark.parametrize("dynamic", [True, False])
def test_deepspeed_keeps_the_scale_it_found_and_the_settings_of_the_run(dynamic):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

    now = DynamicLossScaler(2.0**16, 500, 1.0, 2, False) if dynamic else LossScaler(128.0)
    optimizer = SimpleNamespace(clip_grad=0.5, loss_scaler=now, dynamic_loss_scale=dynamic)
    with keep_clipping_and_scaling(SimpleNamespace(optimizer=optimizer)):
        optimizer.clip_grad, optimizer.dynamic_loss_scale = 1.0, True
        optimizer.loss_scaler = DynamicLossScaler(1024.0, 1000, 1.0, 2, False)
        optimizer.loss_scaler.cur_iter = 77
    assert (optimizer.clip_grad, optimizer.dynamic_loss_scale) == (0.5, dynamic)
    scaler = optimizer.loss_scaler
    if dynamic:
        assert (scaler.cur_scale, scaler.cur_iter, scaler.scale_window) == (1024.0, 77, 500)
    else:
        assert scaler.cur_scale == 128.0

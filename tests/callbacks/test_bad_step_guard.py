"""Steps with numbers gone wrong leave a run as it was, are kept, and are shown."""

import itertools
import json
import re
import shlex
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_steps import POISON, config
from runs import metrics

from mm_lightning.callbacks.step_stats import LossWindow
from mm_lightning.cli import main
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.outputs import write_json
from mm_lightning.side_files import read_object
from mm_lightning.training.module import LanguageModule


@pytest.fixture
def poison(monkeypatch):
    monkeypatch.setattr(LanguageModule, "training_step", LanguageModule.training_step)  # put back afterwards
    space = {}
    exec(POISON, space)
    return space["poison"]


def load(folder, step):
    return torch.load(folder / "checkpoints" / f"step={step}.ckpt", weights_only=True)


def tensors(value):
    """All tensors within, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for child in children for tensor in tensors(child)]


@pytest.mark.parametrize("gradient", [False, True])
def test_a_bad_step_changes_nothing_but_the_count(tiny, tmp_path, poison, capsys, gradient):
    poison(3, gradient=gradient)
    assert main(["fit", "--config", config(tiny, tmp_path)]) == 0
    folder = tmp_path / "run" / "0"
    before, after, later = (load(folder, step) for step in (2, 3, 4))
    for part in ("state_dict", "optimizer_states"):
        one, two = tensors(before[part]), tensors(after[part])
        assert len(one) > 10
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    moved = zip(tensors(after["state_dict"]), tensors(later["state_dict"]), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
    counts = {int(state["step"]) for state in later["optimizer_states"][0]["state"].values()}
    assert counts == {3}  # AdamW's own: of four steps one was left out
    # the schedule of warm-up 2 and a cosine over the rest does not know of it
    rate = metrics(folder, "train/learning_rate")
    assert [rate[n] for n in (1, 2, 3)] == pytest.approx([0.005, 0.01, 0.01])
    assert rate[6] == pytest.approx(0.0001)
    loss = metrics(folder)
    assert np.isfinite(loss[3]) == gradient
    assert all(np.isfinite(loss[step]) for step in (1, 2, 4, 5, 6))
    assert "step 3 was bad: loss" in capsys.readouterr().out
    assert metrics(folder, "train/bad_steps") == {4: 1.0, 5: 1.0, 6: 1.0}


def test_it_is_part_of_every_run(tiny, tmp_path, poison, capsys):
    poison(3)
    assert main(["fit", "--config", str(tiny)]) == 0
    assert "step 3 was bad: loss nan" in capsys.readouterr().out
    assert metrics(tmp_path / "run" / "0", "train/bad_steps") == {4: 1.0, 5: 1.0, 6: 1.0}


def test_what_was_bad_is_shown(tiny, tmp_path, prepared, poison, capsys):
    poison(3)
    assert main(["fit", "--config", config(tiny, tmp_path)]) == 0
    folder = tmp_path / "run" / "0"
    kept = folder / "bad_steps" / "step=3"
    tokens = np.load(kept / "tokens.0.npy")
    assert tokens.shape == (8, 32)
    capsys.readouterr()
    assert main(["data", "show", str(tmp_path / "run"), "--step", "3", "--sequences", "8"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("step 3: loss nan")
    assert "have changed since" not in shown
    text = load_tokenizer(prepared).decode(tokens[5].tolist(), special=True)
    assert text in shown
    first = json.loads((kept / "step.json").read_text())["sequences"][0]
    assert f"sequence {first['sequence']:,}: {first['shard']}, tokens {first['token']:,} to" in shown
    # a step that the run never has, finished or not
    for _ in range(2):
        assert main(["data", "show", str(folder), "--step", "9999"]) == 2
        assert "ends with step 6 and has no step 9,999: give --step 1 to 6" in capsys.readouterr().err
        (folder / "finished.json").unlink(missing_ok=True)
    # the same from the config and the step alone
    kept.rename(folder / "bad_steps" / "elsewhere")
    assert main(["data", "show", str(folder), "--step", "3", "--sequences", "8"]) == 0
    assert capsys.readouterr().out == shown.split("\n", 1)[1]
    (folder / "bad_steps" / "elsewhere").rename(kept)
    # data that changed since are told from those that the run was given
    np.save(kept / "tokens.0.npy", tokens[::-1])
    assert main(["data", "show", str(kept)]) == 0
    assert "the data have changed since" in capsys.readouterr().out
    assert main(["data", "show", str(folder)]) == 0
    assert "1 bad steps saved" in capsys.readouterr().out
    assert main(["data", "show", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_rollback_goes_on_with_the_data_that_follow(tiny, tmp_path, poison, capsys):
    """Bad is step 5, which is known after step 6: from step 4 on, the data of steps 7 and 8 are next."""
    poison(5)
    path = config(tiny, tmp_path, every=4, steps=8, on_bad_step="rollback")
    assert main(["fit", "--config", path]) == 0
    folder = tmp_path / "run" / "0"
    assert "rolled back from step 6 to" in capsys.readouterr().out
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6, 7, 8]
    # the same by hand: the checkpoint with another place in the data
    other = tmp_path / "other" / "0"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("step=8.ckpt", "metrics.jsonl"))
    checkpoint = load(folder, 4)
    loops = checkpoint["loops"]["fit_loop"]
    (state,) = loops["state_dict"]["combined_loader"]
    assert state == {"sequences": 4 * 8}
    state["sequences"] = 6 * 8
    torch.save(checkpoint, other / "checkpoints" / "step=4.ckpt")
    assert main(["fit", "--config", path, "--run", str(tmp_path / "other"), "--resume"]) == 0
    mine, theirs = metrics(folder), metrics(other)
    assert {step: mine[step] for step in (5, 6, 7, 8)} == theirs
    assert all(np.isfinite(list(mine.values())))
    one, two = load(folder, 8), load(other, 8)
    for part in ("state_dict", "optimizer_states"):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one[part]), tensors(two[part]), strict=True))
    # what is kept is the bad batch; once it is gone, what step 5 was trained on in the end: the data of step 7
    kept = shown(folder, 5, capsys)
    (folder / "bad_steps").rename(tmp_path / "bad_steps")
    again = shown(folder, 5, capsys)
    (folder / "rollbacks.jsonl").unlink()
    end = read_object(folder / "finished.json")
    write_json(folder / "finished.json", {**end, "step": 7})  # as if it had gone on
    assert kept == shown(folder, 5, capsys)
    assert again == shown(folder, 7, capsys) != kept


def shown(folder, step, capsys):
    """What `mm data show` says of all sequences of a step."""
    capsys.readouterr()
    assert main(["data", "show", str(folder), "--step", str(step), "--sequences", "8"]) == 0
    output = capsys.readouterr().out
    return output[output.index("\nsequence") : output.index("8 of 8 sequences")]


@pytest.mark.parametrize("trial", [False, True])
def test_a_stop_before_anything_is_logged_leaves_the_batch_it_names(tiny, tmp_path, poison, capsys, trial):
    poison(1)
    path = config(tiny, tmp_path, every=100, on_bad_step="stop")
    options = ["--trainer.fast_dev_run", "2"] if trial else ["--trainer.log_every_n_steps", "50"]
    assert main(["fit", "--config", path, *options]) == 2
    command = re.search("`mm (data show [^`]*)`", capsys.readouterr().err)[1]
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out.startswith("step 1: loss nan")
    if trial:
        shutil.rmtree(Path(shlex.split(command)[2]).parents[2])


def test_stop_names_step_value_and_batch(tiny, tmp_path, poison, capsys):
    poison(2)
    assert main(["fit", "--config", config(tiny, tmp_path, on_bad_step="stop")]) == 2
    error = capsys.readouterr().err
    folder = tmp_path / "run" / "0"
    assert "step 2 was bad: loss nan" in error
    assert f"`mm data show {folder / 'bad_steps' / 'step=2'}`" in error
    assert max(metrics(folder)) == 2  # it is known one step later, whose end it does not live to see


def test_patience_ends(tiny, tmp_path, poison, capsys):
    poison(2, times=100)
    assert main(["fit", "--config", config(tiny, tmp_path, steps=20, patience=3)]) == 2
    assert "step 4 was bad" in (error := capsys.readouterr().err)
    assert "in a row: 3, the patience" in error


def test_a_spike_is_left_out(tiny, tmp_path, monkeypatch, capsys):
    real = LanguageModule.step_sums

    def sums(self):
        return real(self) * torch.tensor([3.0 if self.global_step == 3 else 1.0, 1.0])

    monkeypatch.setattr(LanguageModule, "step_sums", sums)
    assert main(["fit", "--config", config(tiny, tmp_path, sigma=3.0, window=4)]) == 0
    assert "step 4 was bad" in (output := capsys.readouterr().out)
    assert "standard deviations above" in output
    folder = tmp_path / "run" / "0"
    one, two = tensors(load(folder, 3)["optimizer_states"]), tensors(load(folder, 4)["optimizer_states"])
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_spikes_are_those_of_the_definition():
    """Against a list and Python's own statistics; the window wraps around many times."""
    generator = np.random.default_rng(0)
    losses = 3 + 0.1 * generator.standard_normal(300) - np.arange(300) / 500
    losses[[40, 41, 100, 250]] += [2.0, 5.0, 0.45, 1.0]
    losses[[3, 60]] = [np.nan, np.inf]
    window, good, found = LossWindow(4.0, 16), [], []
    for n, loss in enumerate(losses.tolist()):
        bad, mean, deviation = window.judge(torch.tensor(loss, dtype=torch.float64))
        known = good[-16:]
        wanted = not np.isfinite(loss)
        if len(known) >= 8:
            assert float(mean) == pytest.approx(statistics.mean(known))
            assert float(deviation) == pytest.approx(statistics.stdev(known))
            wanted = wanted or loss > statistics.mean(known) + 4 * statistics.stdev(known)
        assert bool(bad) == wanted, n
        found += [n] * wanted
        good += [loss] * (not wanted)
        if n == 150:  # as a checkpoint does
            window, before = LossWindow(4.0, 16), window
            window.load(before.state())
    assert {3, 40, 41, 60, 250} <= set(found)
    assert len(found) < 10
    smaller = LossWindow(4.0, 5)
    smaller.load(window.state())
    assert sorted(smaller.losses.tolist()) == sorted(good[-5:])


def test_a_good_step_is_the_one_without_a_guard():
    values = [torch.randn(7, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    updated = []
    for guarded in (False, True):
        weight = torch.nn.Parameter(values[0].clone())
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        for gradient in values[1:]:
            weight.grad = gradient.clone()
            if guarded:
                optimizer.found_inf = torch.zeros(())
            optimizer.step()
        updated.append([weight.detach(), *tensors(optimizer.state_dict())])
    assert all(torch.equal(a, b) for a, b in zip(*updated, strict=True))


# Two processes

SCRIPT = """
import hashlib, json, pathlib, sys
{POISON}
def on_train_end(self):
    weights = [p.detach().float().numpy().tobytes() for p in self.network.parameters()]
    digest = hashlib.sha256(b"".join(weights)).hexdigest()
    pathlib.Path(self.run_folder.path, f"weights.{{self.global_rank}}").write_text(digest)

if __name__ == "__main__":
    from mm_lightning.cli import main
    LanguageModule.on_train_end = on_train_end
    good = LanguageModule.training_step
    for gradient, args, status in json.loads(sys.argv[1]):
        LanguageModule.training_step = good
        poison(3, rank=1, gradient=gradient)
        assert main(args) == status
"""
TWO = ["--trainer.devices", "2", "--data.micro_batch_size", "2", "--trainer.strategy"]


def together(tmp_path, runs) -> str:
    """Runs, as (bad gradient, arguments, exit status), in one pair of processes; what the first one says."""
    from launch import ranks

    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(POISON=POISON))
    statuses = ranks(sys.executable, str(script), json.dumps(runs), folder=tmp_path, timeout=800)
    said = (tmp_path / "rank0.log").read_text()
    assert statuses == [0, 0], said[-3000:]
    return said


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("stage", "optimizer"), [(2, "adamw"), (3, "adamw"), (2, "muon"), (3, "muon")])
def test_bf16_under_zero(tiny, tmp_path, stage, optimizer):
    """Where gradients are added up in float32, too, an update with an infinite one is left out."""
    more = [*TWO, f"deepspeed_stage_{stage}", "--trainer.precision", "bf16-mixed", "--trainer.max_steps", "4"]
    if optimizer == "muon":
        more += ["--model.optimizer", "muon", "--trainer.gradient_clip_val", "null"]
    said = together(tmp_path, [(True, ["fit", "--config", config(tiny, tmp_path), *more], 0)])
    assert "step 3 was bad" in said
    saved = [str(tmp_path / "run" / "0" / "checkpoints" / f"step={step}.ckpt") for step in (2, 3, 4)]
    assert main(["checkpoint", "compare", *saved[:2]]) == 0
    assert main(["checkpoint", "compare", *saved[1:]]) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3"])
def test_two_processes_do_as_one(tiny, tmp_path, poison, monkeypatch, strategy):
    """The numbers of the second process alone go wrong; both do what one process does."""
    cases = list(itertools.product([False, True], ["skip", "rollback", "stop"]))
    runs = []
    for gradient, policy in cases:
        folder = tmp_path / f"{policy} {gradient}"
        folder.mkdir()
        path, status = config(tiny, folder, every=2, on_bad_step=policy), 2 if policy == "stop" else 0
        args = ["fit", "--config", path, "--run"]
        runs.append((gradient, [*args, str(folder / "two"), *TWO, strategy], status))
        with monkeypatch.context() as patch:
            patch.setattr(LanguageModule, "training_step", LanguageModule.training_step)
            poison(3, gradient=gradient)
            assert main([*args, str(folder / "one")]) == status
    assert together(tmp_path, runs).count("step 3 was bad") == len(cases)
    for gradient, policy in cases:
        folder = tmp_path / f"{policy} {gradient}"
        assert_alike(folder / "one" / "0", folder / "two" / "0")
        if policy != "stop" and strategy != "deepspeed_stage_3":
            digests = [(folder / "two" / "0" / f"weights.{rank}").read_text() for rank in (0, 1)]
            assert digests[0] == digests[1]


def assert_alike(one, two):
    """The losses and the bad step that two processes have kept are those of one."""
    for name in ("train/loss", "train/learning_rate"):
        mine, theirs = metrics(one, name), metrics(two, name)
        assert mine.keys() == theirs.keys()
        assert list(theirs.values()) == pytest.approx(list(mine.values()), rel=2e-5, nan_ok=True), name
    kept = [json.loads((folder / "bad_steps" / "step=3" / "step.json").read_text()) for folder in (one, two)]
    assert kept[0]["sequences"] == kept[1]["sequences"]
    rows = [np.load(two / "bad_steps" / "step=3" / f"tokens.{rank}.npy") for rank in (0, 1)]
    alone = np.load(one / "bad_steps" / "step=3" / "tokens.0.npy")
    together = np.concatenate([rows[0][:2], rows[1][:2], rows[0][2:], rows[1][2:]])
    assert np.array_equal(together, alone)

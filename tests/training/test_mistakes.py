"""Every mistake of a user's ends in one line that says what, where and what to do."""

import pytest
import yaml

from mm_lightning.cli import main

FACTS = "mm_lightning.data.facts.FactsConfig"


def complain(capsys, *args: str) -> str:
    assert main(list(args)) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("mm: ")]
    assert len(lines) == 1, error
    return lines[0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": {"learning_rte": 3}}, ["model.learning_rte", "wrong.yaml", "model.learning_rate"]),
        ({"modle": {"learning_rate": 3}}, ["modle", "wrong.yaml", "model"]),
        ({"model": {"network": {"init_args": {"dmi": 3}}}}, ["dmi", "MemoryMosaicConfig", "wrong.yaml", "dim"]),
        ({"model": {"network": {"class_path": "Mosaic"}}}, ["model.network", "Mosaic", "wrong.yaml"]),
        ({"trainer": {"strategy": {"init_args": {"stage": 2}}}}, ["trainer.strategy", "wrong.yaml", "class_path"]),
        ({"model": {"kernels": "fast"}}, ["model.kernels in ", "takes one of auto, reference", "got fast"]),
        ({"model": {"network": {"init_args": {"keys": "x"}}}}, ["model.network.keys in ", "takes one of gated"]),
        (
            {"data": {"generate": {"class_path": FACTS, "init_args": {"documents": "x"}}}},
            ["data.generate.documents in ", "takes a whole number, got x"],
        ),
        ({"base": "wrong.yaml"}, ["based on each other"]),
        ({"plan": 8}, ["plan in ", "is an option of the command line, as in --plan"]),
        ({"base": "none.yaml"}, ["none.yaml", "does not exist", "wrong.yaml"]),
    ],
)
def test_in_a_file(keys, words, tiny, tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(keys))
    message = complain(capsys, "fit", "--config", str(tiny), "--config", str(wrong))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import torch\nimport numpi\n", ["line 2", "No module named 'numpi'"]),
        ("x = undefined\n", ["line 1", "NameError"]),
        ("def broken(:\n", ["line 1", "invalid syntax"]),
    ],
)
@pytest.mark.parametrize("key", ["trainer.callbacks", "model.network"])
def test_a_module_that_cannot_be_imported(key, text, words, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_unimportable.py").write_text(text)
    message = complain(capsys, "cost", "--config", str(tiny), f"--{key}", "mine_unimportable.Mine")
    assert all(word in message for word in ["mine_unimportable.Mine", "mine_unimportable.py", *words]), message


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model.learning_rte", "3"], ["--model.learning_rte", "--model.learning_rate"]),
        (["--model.activation_checkpointing", "maybe"], ["one of true, false, selective, got maybe"]),
        (["--model.compile", "maybe"], ["config key model.compile takes true or false, got maybe"]),
        (["--model.learn", "3"], ["--model.learn", "--model.learning_rate"]),
        (["--model.network.heads", "3"], ["3 heads", "dim 16"]),
        (["--model.network.vocab_size", "100"], ["258", "100", "vocab_size"]),
        (["--model.network.short_term_window", "1"], ["short_term_window", "at least 2"]),
        (["--model.network.long_term_delay", "[6,2]"], ["long_term_delay", "[6, 2]"]),
        (["--data.path", "nowhere"], ["nowhere", "mm data prepare"]),
        (["--data.context_length", "1000000"], ["context_length 1000000"]),
        (["--data.global_batch_size", "6"], ["global_batch_size 6", "micro_batch_size 4"]),
        (["--trainer.accumulate_grad_batches", "2"], ["global_batch_size"]),
        (["--gpu_memory", "80"], ["gpu_memory", "add --plan"]),
        (["--trainer.max_steps", "-1"], ["trainer.max_steps"]),
        (["--trainer.max_steps", "few"], ["config key trainer.max_steps takes a whole number, got few"]),
        (["--trainer.val_check_interval", "0"], ["trainer.val_check_interval", "at least 1"]),
        (["--trainer.log_every_n_steps", "0"], ["trainer.log_every_n_steps", "at least 1"]),
        (["--trainer.gradient_clip_val", "-1"], ["trainer.gradient_clip_val", "at least 0"]),
        (["--trainer.precision", "bf17"], ["takes one of 64, 32, 16, transformer-engine", "got bf17"]),
        (["--trainer.precision", "16-true"], ["trainer.precision 16-true", "use bf16-true"]),
        (["--seed_everything", "-1"], ["seed_everything takes a whole number of at least 0 and at most 4,294,967,295"]),
        (["--model.network.levels", "long"], ["model.network.levels takes a list", "got long"]),
        (["mine.yaml"], ["--config mine.yaml"]),
        (["--resume"], ["run"]),
        (["--ckpt_path", "nothing.ckpt"], ["nothing.ckpt"]),
        (["--config", "nothing.yaml"], ["nothing.yaml", "does not exist"]),
        (["--config", "."], ["config file .", "is a folder"]),
        (["--run", ""], ["run takes the name of a file or folder, got ''"]),
        (["--trainer.strategy", "ddp_spawn"], ["trainer.strategy ddp_spawn", "choose ddp"]),
        (["--config"], ["--config needs a file"]),
    ],
)
def test_on_the_command_line(args, words, tiny, tmp_path, capsys):
    message = complain(capsys, "fit", "--config", str(tiny), *args)
    assert all(word in message for word in words), message
    assert not list(tmp_path.glob("run/*")), "a run that never began leaves no folder"


def test_a_part_that_cannot_be_built_is_refused_before_data_are_prepared(tiny, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("text " * 2000)
    wrong = tmp_path / "wrong.yaml"
    prepare = {"path": str(tmp_path / "new"), "prepare": {"sources": [str(tmp_path / "a.txt")]}}
    network = {"init_args": {"keys": {"class_path": "nowhere.Keys"}}}
    wrong.write_text(yaml.safe_dump({"model": {"network": network}, "data": prepare}))
    message = complain(capsys, "fit", "--config", str(tiny), "--config", str(wrong), "--run", str(tmp_path / "run"))
    assert "nowhere.Keys" in message, message
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "run").exists()


def test_nothing_at_all(capsys):
    error = complain(capsys, "validate")
    assert "not set: model.network, data.path: name a config, as in --config" in error
    assert "or give --model.network, --data.path" in error


def test_a_rate_that_never_gets_to_its_peak_is_told(tiny, capsys):
    assert main(["fit", "--config", str(tiny), "--model.warmup_steps", "6"]) == 0
    assert "WARNING: all 6 steps warm up" in capsys.readouterr().out


def test_a_checkpoint_of_another_architecture(tiny, finished, capsys):
    message = complain(
        capsys, "fit", "--config", str(tiny), "--resume", "--trainer.max_steps", "9", "--model.network.dim", "32"
    )
    assert "dim 16 instead of 32" in message
    message = complain(capsys, "validate", "--config", str(tiny), "--model.network", "TransformerConfig")
    assert "MemoryMosaic" in message
    assert "Transformer" in message
    assert "nothing to resume" in complain(capsys, "fit", "--config", str(tiny), "--resume")


def test_a_checkpoint_never_overrides_the_config(tiny, finished, tmp_path):
    checkpoint = finished / "checkpoints" / "step=6.ckpt"
    more = ["--ckpt_path", str(checkpoint), "--trainer.max_steps", "8", "--model.weight_decay", "0.3"]
    assert main(["fit", "--config", str(tiny), *more]) == 0
    saved = yaml.safe_load((tmp_path / "run" / "1" / "config.yaml").read_text())
    assert saved["model"]["weight_decay"] == 0.3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.learning_rate", "-1"], "model.learning_rate takes a number above 0"),
        (["--trainer.max_steps", "-5"], "trainer.max_steps takes a whole number of at least -1, got -5"),
        (["--run", "/proc/x"], "cannot create the run folder"),
    ],
)
def test_values_that_lightning_or_the_system_refuse(args, message, tiny, capsys):
    assert main(["fit", "--config", str(tiny), *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_ctrl_c_says_where_to_go_on(tiny, capsys, monkeypatch):
    from mm_lightning.callbacks import Checkpoints

    saved = Checkpoints._save

    def save_then_interrupt(self, trainer, module):
        saved(self, trainer, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "_save", save_then_interrupt)
    assert main(["fit", "--config", str(tiny), "--trainer.callbacks+=Checkpoints"]) == 130
    assert "--resume goes on from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed_everything: 1\nrun: 2025", ["run in ", "odd.yaml, line 2 takes a text, got 2025: put it in quotes"]),
        ("run: on", ['line 1 takes a text, got on: put it in quotes, "on"']),
        ("run: 007", ['got 007: put it in quotes, "007"']),
        ("data: {path: 2025}", ["data.path in ", "takes a text or keys and values", 'quotes, "2025"']),
        ("data:\n  prepare:\n    sources: [a, 007]", ["data.prepare.sources", "line 3", 'quotes, "007"']),
        (
            "trainer:\n  callbacks:\n  - {class_path: Samples, init_args: {prompt: a}}\n"
            "  - {class_path: Samples, init_args: {prompt: no}}",
            ["trainer.callbacks.prompt", "line 4", 'got no: put it in quotes, "no"'],
        ),
        (
            "trainer:\n  callbacks:\n  - {class_path: Evaluation, init_args: {tasks: }}",
            ["trainer.callbacks in ", "line 3", "Evaluation needs tasks"],
        ),
        ("trainer: {strategy: 2025}", ["trainer.strategy", "a text or a class"]),
        (
            "trainer: {strategy: {class_path: x.y}}",
            ["there is no class x.y", "line 1", "in the folder of x.py", "PYTHONPATH"],
        ),
        (
            "model:\n  network:\n    class_path: MemoryMosaicConfig\n    init_args: {keys: {class_path: nowhere.Keys}}",
            ["the class nowhere.Keys", "in the folder of nowhere.py"],
        ),
        ("model:\n  network: {class_path: 2025}", ["model.network.class_path", "line 2 must name a class, got 2025"]),
        ("trainer: [3]", ["trainer in ", "line 1 must hold"]),
        ("base:", ["base in ", "line 1 must be the name of a file", "null"]),
        ('base: "\\0"', ["base in ", "line 1 must be the name of a file"]),
        ("config: a.yaml", ["config in ", "base"]),
        ("run: !!binary aGk=", ["line 1", "!!binary"]),
        ("a b: 1", ['unknown config key "a b"', "line 1"]),
        ("run: a\n---\nrun: b", ["line 2", "another document"]),
    ],
)
@pytest.mark.parametrize("command", ["fit", "cost"])
def test_odd_yaml(command, text, words, tiny, tmp_path, capsys):
    odd = tmp_path / "odd.yaml"
    odd.write_text(text)
    message = complain(capsys, command, "--config", str(tiny), "--config", str(odd))
    assert all(word in message for word in words), message


def test_dates_times_and_numbers_of_a_config_are_what_they_look_like(tiny, tmp_path, capsys):
    odd = tmp_path / "odd.yaml"
    odd.write_text(
        "run: 2025-06-01\ntrainer: {max_time: 12:30:00:00, max_steps: 1_0}\nmodel: {learning_rate: 1e-3}\ndata:\n"
    )
    assert main(["fit", "--config", str(tiny), "--config", str(odd), "--print_config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["run"], found["model"]["learning_rate"], found["trainer"]["max_steps"]) == ("2025-06-01", 0.001, 10)
    assert found["trainer"]["max_time"] == "12:30:00:00"

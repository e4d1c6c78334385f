"""Names of earlier versions work, and one line says the present one."""

import json

import pytest
import torch
import yaml
from runs import metrics

from mm_lightning.callbacks import BadStepGuard
from mm_lightning.cli import main
from mm_lightning.console import say_once
from mm_lightning.renamed import current_options, current_values, rename_callback_states
from mm_lightning.training.parse_fit import parse_fit

OLD = "mm_lightning.callbacks.Guard"
LINE = "mm: Guard is now called BadStepGuard\n"


@pytest.fixture(autouse=True)
def nothing_announced():
    say_once.cache_clear()


def config_with(tiny, callback):
    values = yaml.safe_load(tiny.read_text())
    values["trainer"]["callbacks"].append(callback)
    tiny.write_text(yaml.safe_dump(values))


def guard_in(text):
    """The only guard of a config's text."""
    (guard,) = [c for c in yaml.safe_load(text)["trainer"]["callbacks"] if "Guard" in c["class_path"]]
    return guard


@pytest.mark.parametrize("name", ["Guard", OLD, "mm_lightning.callbacks.guard.Guard"])
def test_a_class_in_yaml(tiny, capsys, name):
    config_with(tiny, {"class_path": name, "init_args": {"sigma": 3.0}})
    assert main(["fit", "--config", str(tiny), "--print_config"]) == 0
    output = capsys.readouterr()
    guard = guard_in(output.out)
    assert guard["class_path"] == "mm_lightning.callbacks.BadStepGuard"
    assert guard["init_args"]["sigma"] == 3.0
    assert output.err.count(LINE) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.callbacks+=Guard", "--trainer.callbacks.sigma=3"],
        ["--trainer.callbacks+", "Guard", "--trainer.callbacks.sigma", "3"],
        ['--trainer.callbacks+={"class_path": "Guard", "init_args": {"sigma": 3}}'],
        ["--trainer.callbacks", "[{class_path: Guard, init_args: {sigma: 3}}]"],
    ],
)
def test_a_class_on_the_command_line(tiny, capsys, options):
    assert main(["fit", "--config", str(tiny), *options, "--print_config"]) == 0
    output = capsys.readouterr()
    assert guard_in(output.out)["init_args"]["sigma"] == 3.0
    assert output.err.count(LINE) == 1


FACTS = "mm_lightning.data.facts.FactsConfig"
OTHER_DATA = ["--data.path", "a", "--data.prepare", "null"]


@pytest.mark.parametrize(
    "options",
    [
        ["--data.facts.documents", "3"],
        ["--data.facts.documents=3", "--data.facts.seed=0"],
        ["--data.facts", "{documents: 3}"],
        ['--data={"facts": {"documents": 3}}'],
    ],
)
def test_a_generator_on_the_command_line(options, capsys):
    made = parse_fit(["--config", "configs/quickstart.yaml", *OTHER_DATA, *options]).data.generate
    assert (made.class_path, made.init_args.documents) == (FACTS, 3)
    assert capsys.readouterr().err == f"mm: data.facts is now called data.generate, with class_path {FACTS}\n"


@pytest.mark.parametrize("name", ["regbench", "facts"])
def test_a_setting_of_the_generator_of_a_config(name):
    fields = {"regbench": ("train_sequences", "test_sequences", 1000), "facts": ("documents", "test_documents", 200)}
    changed, kept, value = fields[name]
    words = ["--config", f"configs/{name}.yaml", "--data.path", "a", f"--data.{name}.{changed}", "7"]
    made = parse_fit(words).data.generate.init_args
    assert (made[changed], made[kept]) == (7, value)


def test_a_generator_in_a_config(tmp_path, capsys):
    """As the files of users and of earlier runs have it."""
    file = tmp_path / "config.yaml"
    config = {"base": "quickstart", "data": {"path": "a", "prepare": None, "regbench": {"train_sequences": 3}}}
    for others in ({}, {"generate": None, "facts": None}):
        config["data"] |= others
        file.write_text(yaml.safe_dump(config))
        made = parse_fit(["--config", str(file)]).data.generate
        assert (made.class_path.rsplit(".", 1)[-1], made.init_args.train_sequences) == ("RegBenchConfig", 3)
    assert capsys.readouterr().err.count("data.regbench is now called data.generate") == 1
    config["data"]["regbench"] = None
    file.write_text(yaml.safe_dump(config))
    assert parse_fit(["--config", str(file)]).data.generate is None
    assert "is now called" not in capsys.readouterr().err


def test_a_class_in_python(capsys):
    from mm_lightning import callbacks
    from mm_lightning.callbacks import Guard

    assert Guard is BadStepGuard
    assert capsys.readouterr().err == LINE
    with pytest.raises(AttributeError, match="Warden"):
        _ = callbacks.Warden


def test_a_run_goes_on_with_its_config_and_the_states_of_its_callbacks(tiny, tmp_path, capsys):
    """As an earlier version wrote them."""
    config_with(tiny, {"class_path": "BadStepGuard", "init_args": {"window": 4}})
    assert main(["fit", "--config", str(tiny), "--trainer.max_steps", "3"]) == 0
    run = tmp_path / "run" / "0"
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("BadStepGuard", "Guard"))
    file = next((run / "checkpoints").glob("*.ckpt"))
    checkpoint = torch.load(file, weights_only=True)
    state = checkpoint["callbacks"].pop("BadStepGuard")
    checkpoint["callbacks"]["Guard"] = {**state, "bad_steps": 7}
    torch.save(checkpoint, file)
    for side in run.rglob(f"{file.name}?*"):
        side.unlink()
    capsys.readouterr()
    assert main(["fit", "--resume", str(run), "--trainer.max_steps", "6"]) == 0
    output = capsys.readouterr()
    assert output.err.count("is now called") == 1
    assert LINE in output.err
    assert "callbacks used to create the checkpoint" not in output.err
    assert "settings that differ from" not in output.out
    assert set(metrics(run, "train/bad_steps").values()) == {7.0}
    newest = torch.load(run / "checkpoints" / "step=6.ckpt", weights_only=True)["callbacks"]
    assert "Guard" not in newest
    assert newest["BadStepGuard"]["bad_steps"] == 7


def test_a_sweep_file(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mm_lightning.experiments.sweep.carry_out", lambda *_: None)
    sweep = tmp_path / "sweep.yaml"
    callbacks = [{"class_path": "Guard", "init_args": {"sigma": 3}}]
    values = {"base": str(tiny), "settings": {"trainer.callbacks": callbacks}, "runs": {"one": {}}}
    sweep.write_text(yaml.safe_dump({**values, "stop": {"steps": 4}}))
    for _ in range(2):  # the second time over the folder of the first, whose config an earlier version may have written
        assert main(["sweep", str(sweep), "--output", str(tmp_path / "out")]) == 0
        (config,) = (tmp_path / "out").rglob("config.yaml")
        assert guard_in(config.read_text())["init_args"]["sigma"] == 3.0
        config.write_text(config.read_text().replace("BadStepGuard", "Guard"))


def test_an_option(capsys):
    assert main(["generate", "--checkpoint", "nowhere", "--long_budget", "3"]) == 2
    error = capsys.readouterr().err
    assert "mm: --long_budget is now called --read_budget\n" in error
    assert "--read_budget takes a whole number of at least 16, got 3" in error


def test_what_is_no_name_stays():
    words = [
        "--prompt",
        "Guard",
        "--prompt=[native]",
        '{"class_path": "Guard"}',
        "--trainer={callbacks: [",
        "--data.path=Guard",
    ]
    assert current_options(words) == words
    values = {
        "data": {"path": {"Guard": 1}},
        "run": "Guard",
        "model": {"kernels": "torch"},
        "trainer": {"callbacks": 3},
    }
    assert current_values(values) == values
    states = {"Checkpoints": 1, "my.Guard": 2}
    rename_callback_states(states)
    assert json.dumps(states) == '{"Checkpoints": 1, "my.Guard": 2}'


def test_a_value_in_yaml_and_as_an_option(tiny, tmp_path, capsys):
    line = "mm: native is now called numba\n"
    settings = yaml.safe_load(tiny.read_text())
    settings["model"]["kernels"] = "native"
    tiny.write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(tiny), "--print_config"]) == 0
    output = capsys.readouterr()
    assert yaml.safe_load(output.out)["model"]["kernels"] == "numba"
    assert output.err == line
    assert current_options(["--model.kernels", "native", "--kernels", "torch", "native"]) == [
        *("--model.kernels", "numba", "--kernels", "torch", "numba")
    ]
    assert current_options(['--kernels=["native", "torch"]', "--model={kernels: native}"]) == [
        *('--kernels=["numba", "torch"]', '--model={"kernels": "numba"}')
    ]

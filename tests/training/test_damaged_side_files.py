"""Files beside the checkpoints of a run, damaged: no command needs them, and none ends with a traceback."""

import json
import shutil

import pytest
import yaml
from runs import metrics

from mm_lightning import side_files
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.side_files import append_lines, known_config, read_config, read_lines, read_object, write_config

FILES = [
    "metrics.jsonl",
    "environment.json",
    "finished.json",
    "evaluation.jsonl",
    "baselines.json",
    "preempted.json",
    "rollbacks.jsonl",
    ".lock",
    "checkpoints/best.json",
    "bad_steps/step=2/step.json",
    "bad_steps/step=2/tokens.0.npy",
    "heartbeats/0.json",
    "events.out.tfevents.0.hparams",
]
DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"\x00\xff\xfe\n" + content[7:],
    "other": lambda content: b"[1]\n",
    "deep": lambda content: b"[" * 100_000,
}


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A run that went through everything that writes side files."""
    from tiny_run import TINY

    folder = tmp_path_factory.mktemp("trained")
    values = {"run": str(folder / "run"), **TINY, "data": {**TINY["data"], "path": str(prepared)}}
    best = {"every_n_steps": 3, "keep": 0, "best": "validation/loss"}
    values["trainer"] = {**TINY["trainer"], "callbacks": [{"class_path": "Checkpoints", "init_args": best}]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(folder / "tiny.yaml")]) == 0
    run = folder / "run" / "0"
    assert main(["validate", "--ckpt_path", str(run)]) == 0
    (run / "baselines.json").write_text(json.dumps({"validation/loss": {"unigram": 3.0}}))
    (run / "preempted.json").write_text(json.dumps({"signal": "SIGTERM", "step": 3}))
    (run / "rollbacks.jsonl").write_text(json.dumps({"step": 1, "first": 16}) + "\n")
    for name in ("bad_steps/step=2", "heartbeats"):
        (run / name).mkdir(parents=True)
    (run / "heartbeats" / "0.json").write_text(json.dumps({"host": "a", "beats": 1}))
    (run / "bad_steps" / "step=2" / "step.json").write_text(json.dumps({"step": 2, "why": "loss nan"}))
    (run / "bad_steps" / "step=2" / "tokens.0.npy").write_bytes(b"\x93NUMPY" + bytes(100))
    assert all((run / name).is_file() for name in FILES)
    return run


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it, to be damaged."""
    monkeypatch.setattr(side_files, "_reported", set())
    shutil.copytree(trained, tmp_path / "run" / "0")
    return tmp_path / "run" / "0"


def said(capsys):
    """The lines of the error stream; each is one of this program's."""
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(("mm: ", "passing over")) for line in lines), lines
    return lines


@pytest.mark.parametrize("damage", ["half", "garbage"])
def test_commands_that_read_a_run_pass_over_all_of_them(run, tmp_path, damage, capsys):
    for name in FILES:
        (run / name).write_bytes(DAMAGES[damage]((run / name).read_bytes()))
    for n, command in enumerate(
        [
            f"report {run}",
            f"export --checkpoint {run} --output {tmp_path / 'export'}",
            f"checkpoint list {run}",
            f"data show {run}",
            f"data show {run} --step 2",
            f"data show {run} --step 3",
            f"validate --ckpt_path {run}",
            f"generate --checkpoint {run} --prompt 1 --max_new_tokens 2 --device cpu",
            f"evaluate --checkpoint {run} --tasks loss_by_position --contexts 64 --limit 1 --device cpu "
            f"--output {tmp_path / 'results'}",
        ]
    ):
        assert main(command.split()) == 0, (command, capsys.readouterr().err)
        told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
        assert all(line.startswith("mm: ") and "passed over" in line for line in told)
        assert len(told) == len(set(told))
        if n == 0 and damage != "half":
            assert any("environment.json is damaged" in line for line in told)
    assert read_lines(run / "evaluation.jsonl")[-1]["checkpoint"] == "step=6.ckpt"  # a line of its own


@pytest.mark.parametrize("damage", ["half", "empty"])
def test_a_resume_needs_none_of_them_and_writes_them_anew(run, damage, capsys):
    (run / "checkpoints" / "step=6.ckpt").unlink()
    for name in FILES:
        (run / name).write_bytes(DAMAGES[damage]((run / name).read_bytes()))
    assert main(["fit", "--resume", str(run)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert any("environment.json is damaged" in line for line in told)
    assert not (run / "preempted.json").exists()
    assert read_object(run / "environment.json")["step"] == 3
    assert read_object(run / "finished.json")["step"] == 6
    assert sorted(metrics(run))[-3:] == [4, 5, 6]
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert "step" in json.loads(line)
    assert read_object(run / "checkpoints" / "best.json")["metric"] == "validation/loss"


@pytest.mark.parametrize("keep", [1, 60])
def test_a_config_that_is_cut_off_is_told_and_taken_from_where_it_is_named(run, trained, keep, capsys):
    (run / "checkpoints" / "step=6.ckpt").unlink()
    path = run / "config.yaml"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * keep // 100])
    assert main(["fit", "--resume", str(run)]) == 2
    (line,) = said(capsys)
    assert str(path) in line
    assert "name the config that the run was begun with, as in --config FILE" in line
    for command in (f"export --checkpoint {run} --output {run / 'export'}", f"report {run}"):
        assert main(command.split()) == 0
    config = trained.parent.parent / "tiny.yaml"
    capsys.readouterr()
    assert main(["fit", "--config", str(config), "--resume", str(run)]) == 0
    assert "passed over, the configs that are named are all there is" in capsys.readouterr().err
    assert read_config(path)["trainer"]["max_steps"] == 6
    assert read_object(run / "finished.json")["step"] == 6


def test_a_config_is_whole_or_said_not_to_be(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    write_config(path, {"model": {"a": [1, 2]}, "data": {"path": "x", "b": None}})
    content = path.read_text()
    assert read_config(path) == yaml.safe_load(content) == {"model": {"a": [1, 2]}, "data": {"path": "x", "b": None}}
    for length in range(len(content) - 1):
        path.write_text(content[:length])
        if content[:length] != content[:length].split("\n")[0]:  # it has the first line
            with pytest.raises(UserError, match=r"config\.yaml"):
                read_config(path)
    path.write_text("data: {path: x}\n")  # of an earlier version
    assert known_config(path) == {"data": {"path": "x"}}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_as_if_it_were_not_there(trained, tmp_path, name, damage, capsys, monkeypatch):
    monkeypatch.setattr(side_files, "_reported", set())
    path = tmp_path / "file"
    path.write_bytes(DAMAGES[damage]((trained / name).read_bytes()))
    assert read_object(path) == read_object(path) == {}
    assert [line.split(" (")[0] for line in said(capsys)] == [f"mm: {path} is damaged"]
    assert all("step" in line for line in read_lines(path, "step"))
    assert all(f"mm: {path}, line " in line for line in said(capsys))


def test_a_damaged_line_is_named_and_a_torn_last_one_is_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(side_files, "_reported", set())
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step"\n\n{"step": null}\n{"step": 5}\n{"step": 6')
    assert read_lines(path, "step") == read_lines(path, "step") == [{"step": 1}, {"step": 5}]
    assert said(capsys) == [f"mm: {path}, line {n} is damaged: passed over" for n in (2, 4)]
    append_lines(path, '{"step": 7}\n')
    assert path.read_bytes().endswith(b'{"step": 5}\n{"step": 7}\n')
    path.write_bytes(b'{"step": 1}')  # whole but for its end
    append_lines(path, '{"step": 2}\n')
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    (tmp_path / "new.jsonl").unlink(missing_ok=True)
    append_lines(tmp_path / "new.jsonl", "{}\n")
    assert read_lines(tmp_path / "new.jsonl") == [{}]

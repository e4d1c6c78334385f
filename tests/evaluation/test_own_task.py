"""The task of docs/extending.md, in a module beside the working directory: as good as a built-in one."""

import json
import sys

import pytest
import yaml
from documented_modules import documented_modules
from tiny_run import prepared, tiny  # noqa: F401

from mm_lightning.cli import main

TASK = "my_tasks.Capitals"


@pytest.fixture(autouse=True)
def beside(tmp_path, monkeypatch):
    """The working directory with the module, which is forgotten afterwards."""
    (tmp_path / "my_tasks.py").write_text(documented_modules()["my_tasks.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_tasks", None)


@pytest.fixture
def evaluate(runs, capsys):
    def call(*options):
        given = [
            "--checkpoint",
            str(runs / "v2"),
            "--names",
            "v2",
            "--tasks",
            TASK,
            "--output",
            "out",
            "--device",
            "cpu",
        ]
        return main(["evaluate", *given, *options]), capsys.readouterr()

    return call


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_is_asked_resumed_and_reported(evaluate, tmp_path, capsys):
    status, shown = evaluate("--limit", "4")
    assert status == 0
    assert TASK in shown.out
    folder = tmp_path / "out" / "v2" / TASK
    results, samples = json.loads((folder / "results.json").read_text()), lines(folder / "samples.jsonl")
    assert [sample["capital"] for sample in samples] == ["Paris", "Rome", "Athens", "Tokyo"]
    rows = {row["group"]["continent"]: row for row in results["rows"]}
    assert {continent: (row["count"], row["unit"], row["value"]) for continent, row in rows.items()} == {
        "Europe": (3, "share", 0.0),
        "Asia": (1, "share", 0.0),
    }
    assert results["settings"]["continents"] == ["Europe", "Asia"]
    report = (tmp_path / "out" / "report" / "report.md").read_text()
    assert f"{TASK}: means with 95% intervals" in report
    assert "Europe" in report

    (folder / "results.json").unlink()
    (folder / "samples.jsonl").write_text(json.dumps({**samples[0], "answer": "kept"}) + "\n")
    status, shown = evaluate("--limit", "4")
    assert (status, "4 items, 1 already answered" in shown.err) == (0, True)
    assert lines(folder / "samples.jsonl")[0]["answer"] == "kept"

    (tmp_path / "my_tasks.py").unlink()  # a report needs no module
    sys.modules.pop("my_tasks")
    assert main(["report", "out"]) == 0
    assert "Europe" in (tmp_path / "out" / "report" / "report.md").read_text()


def test_its_fields_are_options(evaluate, tmp_path, capsys):
    assert main(["evaluate", "--tasks", f"qa_1,{TASK}", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"--continents A [B ...] whose countries are asked, by default Europe Asia ({TASK})" in shown
    assert f"{TASK}" in shown.split("--limit LIMIT")[1].split("--text")[0]
    assert evaluate("--continents", "Asia", "--limit", "1k")[0] == 0
    settings = json.loads((tmp_path / "out" / "v2" / TASK / "results.json").read_text())["settings"]
    assert (settings["continents"], settings["limit"]) == (["Asia"], 1024)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "my_tasks.Capitols"], "cannot import the class my_tasks.Capitols"),
        (["--tasks", "nowhere.Capitals"], "run mm in the folder of nowhere.py"),
        (["--tasks", "my_tasks.Item"], "my_tasks.Item is not derived from mm_lightning.evaluation.task.Task"),
        (["--limit", "many"], "--limit takes whole numbers, such as 4096 or 4k, got 'many'"),
        (["--shots", "3"], f"--shots is for none of the tasks {TASK}"),
    ],
)
def test_mistakes_are_one_line(evaluate, options, words, tmp_path):
    status, shown = evaluate(*options)
    assert (status, shown.err.count("\n")) == (2, 1)
    assert words in shown.err
    assert not (tmp_path / "out").exists()


def test_a_name_of_its_own_is_refused(evaluate, tmp_path):
    text = (tmp_path / "my_tasks.py").read_text()
    (tmp_path / "my_tasks.py").write_text(
        text.replace("    continents: list", '    name = "capitals"\n    continents: list')
    )
    status, shown = evaluate()
    assert (status, "leave its name out" in shown.err) == (2, True)


def test_it_is_asked_while_a_network_trains(tiny, tmp_path):  # noqa: F811
    values = yaml.safe_load(tiny.read_text())
    settings = {"continents": "Asia", "limit": 1}
    callback = {"class_path": "Evaluation", "init_args": {"tasks": [TASK], "every_n_steps": 3, "settings": settings}}
    values["trainer"]["callbacks"].append(callback)
    tiny.write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(tiny)]) == 0
    (metrics,) = (path for path in (tmp_path / "run").rglob("metrics.jsonl"))
    values = {line["step"]: line for line in lines(metrics) if f"evaluation/{TASK}/continent=Asia/exact_match" in line}
    assert sorted(values) == [3, 6]
    (samples,) = lines(metrics.parent / "evaluations" / "step=6" / TASK / "samples.jsonl")
    assert samples["capital"] == "Tokyo"

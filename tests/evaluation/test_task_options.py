"""Settings of tasks as `mm evaluate` and as YAML have them."""

import dataclasses
import re
import typing

import pytest
import yaml

from mm_lightning.callbacks import Evaluation
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.definitions import DEFINITIONS
from mm_lightning.evaluation.registry import TASKS, find_task
from mm_lightning.evaluation.task_options import left_out, make_tasks

SETTINGS = """
- {contexts: [4k, 8192, 16K], shots: 3, labels: anonymous, strategies: [space, newline], limit: 50, text: "a,b"}
- {contexts: "4k,8192,16k", shots: [3], labels: [anonymous], strategies: "space,newline", limit: "50", text: ["a,b"]}
- {contexts: [4k, "8k,16k"], shots: ["3"], labels: [anonymous], strategies: [space, newline], limit: 50, text: "a,b"}
"""


@pytest.mark.parametrize("settings", yaml.safe_load(SETTINGS))
@pytest.mark.parametrize("tasks", ["loss_by_position,goemotions", ["loss_by_position", "goemotions"]])
def test_forms_of_settings(settings, tasks):
    loss, classes = Evaluation(tasks, settings=settings).tasks
    assert (loss.contexts, loss.limit, loss.text) == ([4096, 8192, 16384], 50, ["a,b"])
    assert (classes.shots, classes.labels, classes.strategies) == ([3], ["anonymous"], ["space", "newline"])


def test_groups_leave_out_what_runs_code_unless_it_may(capsys):
    groups = "persistent,other"
    without = make_tasks(groups, {})
    assert {task.name for task in make_tasks(groups, {"run_code": True})} - {task.name for task in without} == {
        "humaneval_plus",
        "mbpp",
    }
    assert left_out(groups, {}) == ["humaneval_plus", "mbpp"]
    assert left_out(["other", "persistent"], {"run_code": False}) == ["mbpp", "humaneval_plus"]
    assert left_out("persistent", {"run_code": True}) == left_out("qa_1", {}) == []
    assert len(make_tasks(groups, {"run_code": False})) == len(without) == 17
    assert len(Evaluation(groups).tasks) == 17
    assert "Evaluation: left out: humaneval_plus, mbpp, which run programs" in capsys.readouterr().out
    for named in ("mbpp", ["persistent", "humaneval_plus"], "other,mbpp"):
        with pytest.raises(UserError, match="--run_code"):
            make_tasks(named, {})


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        ([], {}, "tasks names nothing"),
        ("qa_1", {"limit": "many"}, "limit takes whole numbers, such as 4096 or 4k, got 'many'"),
        ("qa_1", {"limit": True}, "limit takes whole numbers"),
        ("qa_1", {"contexts": [[4096]]}, "contexts takes whole numbers"),
        ("qa_1", {"contexts": {"4k": 1}}, "contexts takes whole numbers"),
        ("qa_1", {"contexts": []}, "contexts must be one or more numbers"),
        ("qa_1", {"limit": 0}, "limit takes a whole number of at least 1"),
        ("qa_1", {"data_dir": 3}, "data_dir takes words, got 3"),
        ("goemotions", {"labels": [1]}, "labels takes words, got 1"),
        ("goemotions", {"shots": 0}, "shots takes a whole number of at least 1"),
        ("mbpp", {"run_code": "yes"}, "run_code takes true or false, got 'yes'"),
        ("qa_1", {"gold_position": "first"}, "gold_position"),
    ],
)
def test_mistakes(tasks, settings, message):
    with pytest.raises(UserError, match=message):
        make_tasks(tasks, settings)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in DEFINITIONS or name in ("arc_easy", "mbpp")])
def test_nonsense_for_a_number_of_a_task_is_refused_by_its_option(name):
    """As `mm evaluate` and YAML give it: words, and numbers."""
    names = [field.name for field in dataclasses.fields(find_task(name))]
    numbers = [n for n in names if re.search(r"\bint\b", str(typing.get_type_hints(find_task(name))[n]))]
    assert numbers
    for option in numbers:
        for value in ("-1", "1" + "0" * 30, "true", "1.5", "", "k", -1, True, 1.5, 10**30):
            with pytest.raises(UserError, match=f"^--{option} takes (a )?whole number"):
                make_tasks(name, {option: value, "run_code": name == "mbpp"}, "--")


@pytest.mark.parametrize(
    ("words", "shown", "hidden"),
    [
        ([], [], ["contexts", "shots"]),
        (["--tasks", "long_ppl"], ["contexts", "evaluator"], ["shots"]),
        (["--help", "all"], ["contexts", "evaluator", "shots"], []),
    ],
)
def test_help_shows_the_options_of_the_tasks_that_are_named(words, shown, hidden, capsys):
    assert main(["evaluate", *words, *(["--help"] if "--help" not in words else [])]) == 0
    text = capsys.readouterr().out
    options = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    assert {"checkpoint", "tasks", "output", *shown} <= options
    assert options.isdisjoint(hidden)
    assert "type:" not in text
    assert "null" not in text

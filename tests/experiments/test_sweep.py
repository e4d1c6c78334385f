"""The folder of a sweep: what is begun there is not changed, and one sweep at a time works in it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mm_lightning.errors import UserError
from mm_lightning.experiments.sweep import check_overwritable, differences, locked, prepare_folder
from mm_lightning.experiments.sweep_file import Change, Sweep
from mm_lightning.experiments.sweep_runs import Run


def run(variant, seed, steps=4):
    config = {"seed_everything": seed, "run": "runs/default", "trainer": {"max_steps": steps}}
    return Run(variant, seed, f"{variant}/seed-{seed}", {}, config, SimpleNamespace(), 10, 60, steps, 8)


@pytest.fixture
def declared():
    return Sweep(base=["base.yaml"], runs={"a": Change(), "b": Change()}, path="trial.yaml")


@pytest.mark.parametrize("sweep", ["sweep.json", "bandwidth"])
def test_a_sweep_file_of_the_users_is_not_replaced(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {"base": "a.yaml", "declared": {}, "runs": {}}
    (tmp_path / "sweep.json").write_text(json.dumps(own if "." in sweep else {"a": 1}))
    with pytest.raises(UserError, match="mm sweep, which would replace it, did not write it"):
        check_overwritable(Path("sweep.json"), sweep)
    check_overwritable(Path("other.json"), sweep)


def test_configs_are_written_once_and_never_changed(tmp_path, declared, capsys):
    works = prepare_folder(tmp_path, declared, [run("a", 1), run("b", 1)])
    assert {name: work.steps for name, work in works.items()} == {"a, seed 1": 4, "b, seed 1": 4}
    config = yaml.safe_load((tmp_path / "a" / "seed-1" / "config.yaml").read_text())
    assert config["run"] == str(tmp_path / "a" / "seed-1")
    assert json.loads((tmp_path / "sweep.json").read_text())["baseline"] == "a"
    # another seed is welcome; a variant that is left out is named
    prepare_folder(tmp_path, declared, [run("a", 1), run("a", 2)])
    assert "left out of the report: b/seed-1" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "sweep.json").read_text())["runs"]) == 2
    with pytest.raises(UserError, match=r"begun with other settings \(trainer.max_steps 4, now 9\)"):
        prepare_folder(tmp_path, declared, [run("a", 1, steps=9)])


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [
        ("data.path", {"a": 1.0}, {"a": 1.0, "b": 2.0}),
        ("model.network.init_args.spans", {"far": {"delay": 4}}, {"far": {"delay": 4}, "near": {"window": 2}}),
        ("model.network.init_args.keys", {"class_path": "my.Keys"}, {"class_path": "my.Keys", "init_args": {"n": 2}}),
        ("model.optimizer", {"class_path": "SGD", "init_args": {"momentum": 0.9}}, {"class_path": "SGD"}),
    ],
)
def test_what_is_added_to_a_mapping_is_a_difference(key, before, now):
    def config(value):
        for name in reversed(key.split(".")):
            value = {name: value}
        return value

    assert differences(config(before), config(now)) == [f"{key} {before}, now {now}"]
    assert differences(config(now), config(before)) == [f"{key} {now}, now {before}"]


def test_differences_leave_out_where_the_run_is_kept():
    before = {"run": "x", "trainer": {"max_steps": 1, "run": 2}, "gone": 1}
    assert differences(before, {"run": "y", "trainer": {"max_steps": 3, "run": 5}, "new": 1}) == [
        "trainer.max_steps 1, now 3",
        "trainer.run 2, now 5",
    ]


def test_one_sweep_at_a_time(tmp_path):
    with (
        locked(tmp_path / "out"),
        pytest.raises(UserError, match="another mm sweep is at work"),
        locked(tmp_path / "out"),
    ):
        pass
    with locked(tmp_path / "out"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"), locked(tmp_path / "file"):
        pass

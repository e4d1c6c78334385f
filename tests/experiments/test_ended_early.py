"""A run that a callback or trainer.max_time ends before its last step is reported at the step where it ended."""

import json

import pytest
from fake_runs import curve, write_run, write_sweep

from mm_lightning.checkpoint.run_folder import has_finished
from mm_lightning.experiments.launchers import Work
from mm_lightning.experiments.provenance import remarks
from mm_lightning.experiments.read_study import read_study
from mm_lightning.experiments.statistics import summarize
from mm_lightning.experiments.study import Study
from mm_lightning.experiments.tables import run_record, steps_text, table, variant_record


def test_steps_and_tokens_are_those_that_were_trained(tmp_path):
    write_run(tmp_path / "run" / "0", curve({10: 3.0, 20: 2.0}), "trainer: {max_steps: 1000}")
    study = read_study([tmp_path / "run"])
    (run,) = study.runs
    assert (run.step, run.steps, run.tokens) == (20, 1000, 200)
    (remark,) = remarks(study)
    assert remark.startswith("Ended before the steps that were planned")
    assert remark.endswith("1 of 1 finished runs.")


def end(run, **content):
    (run / "finished.json").write_text(json.dumps({"seconds": 1.0, **content}))


def test_means_say_the_steps_they_stand_on(tmp_path):
    for name, steps in (("a-1", 20), ("a-2", 1000), ("b-1", 1000)):
        path = tmp_path / "runs" / name[0] / f"seed-{name[2]}" / "0"
        write_run(path, curve({20: 3.0, steps: 2.0}), f"seed_everything: {name[2]}\ntrainer: {{max_steps: 1000}}")
        end(path, step=steps, max_steps=1000, tokens=steps * 10)
    study = read_study([tmp_path / "runs"])
    rows = summarize(study)
    assert [steps_text(row) for row in rows] == ["20 to 1,000 of 1,000", "1,000"]
    columns, lines = table(study, rows)
    assert [line[columns.index("steps")] for line in lines] == ["20 to 1,000 of 1,000", "1,000"]
    record = variant_record(study, rows[0])
    assert (record["steps_fewest"], record["steps_most"], record["steps_planned"]) == (20, 1000, 1000)


@pytest.mark.parametrize(
    ("content", "steps", "finished"),
    [
        ({"step": 100, "max_steps": 100}, 100, True),
        ({"step": 28, "max_steps": 100}, 100, True),  # a callback or max_time
        ({"step": 28, "max_steps": 100}, 200, False),  # the sweep asks for more steps now
        ({"step": 28}, 100, False),  # of an earlier version, which may have been killed
        ({"step": 300, "max_steps": 300}, 200, True),
    ],
)
def test_a_run_of_a_sweep_is_finished_for_the_sweep_where_it_is_for_the_report(tmp_path, content, steps, finished):
    run = {"variant": "a", "seed": 1, "steps": steps, "parameters": 1, "training_flops_per_token": 1, "step_tokens": 10}
    sweep = write_sweep(tmp_path / "s", [{**run, "lines": curve({20: 3.0})}])
    (place,) = [path.parent for path in sweep.rglob("finished.json")]
    end(place, **content)
    work = Work(place.parent, steps)
    (found,) = read_study([sweep]).runs
    assert (work.finished(), has_finished(place, steps), found.finished) == (finished,) * 3
    work.failure.write_text("1")  # of an earlier try
    (found,) = read_study([sweep]).runs
    assert found.status == ("finished" if finished else "failed")


def test_an_end_that_is_cut_off_is_none(tmp_path):
    assert not has_finished(tmp_path, 1)
    (tmp_path / "finished.json").write_text('{"step": 1')
    assert not has_finished(tmp_path, 1)


def test_an_unfinished_run_is_as_far_as_its_newest_checkpoint(tmp_path):
    """It logs every 10 steps, and was killed after it had saved step 28; a copy with a name of its own says nothing."""
    path = tmp_path / "run" / "0"
    write_run(path, curve({10: 3.0, 20: 2.0}), "trainer: {max_steps: 1000}", seconds=None)
    (path / "checkpoints").mkdir()
    for name in ("step=28.ckpt", "step=25.ckpt", "step=900-copy.ckpt", "milestone.ckpt"):
        (path / "checkpoints" / name).touch()
    (run,) = read_study([tmp_path / "run"]).runs
    assert (run.status, run.step, run.tokens) == ("unfinished", 28, 280)


def test_epochs_and_sessions_are_not_taken_for_what_they_are_not(tmp_path):
    path = tmp_path / "run" / "0"
    write_run(path, curve({10: 3.0, 20: 2.0}), "trainer: {max_steps: -1, max_epochs: 3}")
    (run,) = read_study([tmp_path / "run"]).runs
    assert (run.steps, remarks(read_study([tmp_path / "run"]))) == (None, [])
    assert run_record(Study("s", [run]), run)["wall_seconds"] is not None
    (path / "environment.json").write_text(json.dumps({"earlier": [{}]}))
    (run,) = read_study([tmp_path / "run"]).runs
    assert run_record(Study("s", [run]), run)["wall_seconds"] is None  # of the last session alone

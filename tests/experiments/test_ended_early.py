"""A run that a callback or trainer.max_time ends before its last step is reported at the step where it ended."""

from fake_runs import curve, write_run

from mm_lightning.experiments.provenance import remarks
from mm_lightning.experiments.read_study import read_study


def test_steps_and_tokens_are_those_that_were_trained(tmp_path):
    write_run(tmp_path / "run" / "0", curve({10: 3.0, 20: 2.0}), "trainer: {max_steps: 1000}")
    study = read_study([tmp_path / "run"])
    (run,) = study.runs
    assert (run.step, run.steps, run.tokens) == (20, 1000, 200)
    (remark,) = remarks(study)
    assert remark.startswith("Ended before the steps that were planned")
    assert remark.endswith("1 of 1 finished runs.")

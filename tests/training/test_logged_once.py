"""After kills and resumes, TensorBoard and metrics.jsonl have one value a step of everything that is logged."""

import contextlib
import json
from collections import Counter

import yaml
from resuming import Killed

from mm_lightning.checkpoint.run_folder import RunFolder, tensorboard_folder
from mm_lightning.cli import main
from mm_lightning.training.loggers import MetricsFile, tensorboard_tag


def tensorboard(folder) -> dict[str, list[int]]:
    """The steps of each tag, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    events = EventAccumulator(str(tensorboard_folder(folder)), {"tensors": 0}).Reload()
    return {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


def test_two_kills(tiny, tmp_path):
    values = yaml.safe_load(tiny.read_text())
    callbacks = [
        {"class_path": "Samples", "init_args": {"prompt": "1", "tokens": 2}},
        {"class_path": "MemoryStatistics", "init_args": {"every_n_steps": 3, "sequences": 1}},
        {"class_path": "Checkpoints", "init_args": {"every_n_steps": 3, "keep": 0}},
    ]
    values["trainer"]["max_steps"] = 12
    values["data"]["micro_batch_size"] = 8
    folder = tmp_path / "run" / "0"
    # the first is killed after the validation of step 3 was logged, the second right before that of step 9
    for killed_after in (5, 9, 100):
        trail = {
            "class_path": "resuming.Trail",
            "init_args": {"folder": str(tmp_path / "trail"), "until": killed_after},
        }
        values["trainer"]["callbacks"] = [trail, *callbacks]
        tiny.write_text(yaml.safe_dump(values))
        with contextlib.suppress(Killed):
            assert main(["fit", "--config", str(tiny), *(["--resume"] if folder.exists() else [])]) == 0

    logged = tensorboard(folder)
    every, thirds = list(range(1, 13)), [3, 6, 9, 12]
    assert logged["train/loss"] == every
    assert logged[tensorboard_tag("train/gradient_norm")] == every
    assert logged["validation/loss"] == thirds
    assert next(steps for tag, steps in logged.items() if "samples" in tag) == thirds
    assert logged[tensorboard_tag("memory/long/alpha")] == [0, *thirds]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    count = Counter((line["step"], name) for line in lines for name in line)
    assert {n for (_, name), n in count.items() if name != "step"} == {1}
    assert [step for step, name in count if name == "train/loss"] == every
    assert [step for step, name in count if name == "validation/loss"] == thirds


def test_lines_of_later_steps_and_half_lines_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [{"step": 4, "a": 1}, {"step": 5, "b": 1}, {"step": 5, "c": 1}, {"step": 6, "a": 1}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(text + '{"step": 5, "d": 3')
    logger = MetricsFile(RunFolder(tmp_path, tmp_path))
    logger.drop_later_steps(5)
    assert file.read_text() == "".join(text.splitlines(keepends=True)[:3])
    assert logger.logged == {"step", "b", "c"}

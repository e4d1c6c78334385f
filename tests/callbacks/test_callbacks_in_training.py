"""Evaluation, RetrievalProfile, MemoryStatistics and Samples in a training run, on one process and on two."""

import json
from pathlib import Path

import forks
import pytest
import torch
import yaml
from launch import mm
from runs import metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mm_lightning.callbacks import after_validation, evaluation
from mm_lightning.cli import main
from mm_lightning.data import load_tokenizer
from mm_lightning.evaluation.long_documents import of_folder
from mm_lightning.inspection.distributions import effective_pairs, memory_distributions
from mm_lightning.networks import MemoryMosaicConfig
from mm_lightning.training.evaluation_mode import evaluation_mode

EVALUATION = {
    "class_path": "Evaluation",
    "init_args": {
        "tasks": ["loss_by_position"],
        "every_n_steps": 3,
        "settings": {"contexts": [64, 128], "limit": 4},
        "batch_size": 2,
    },
}
WATCHERS = [
    EVALUATION,
    {"class_path": "RetrievalProfile", "init_args": {"distances": 8}},
    {"class_path": "MemoryStatistics", "init_args": {"every_n_steps": 3}},
    {"class_path": "Samples", "init_args": {"prompt": "1 2", "tokens": 4}},
]
KEPT = "evaluations/step={}/loss_by_position/samples.jsonl"


def watch(tiny: Path, path: Path, run: Path) -> Path:
    """Write the config of the tiny run with everything that looks at its network."""
    values = yaml.safe_load(tiny.read_text())
    values["trainer"] = {**values["trainer"], "callbacks": [*values["trainer"]["callbacks"], *WATCHERS]}
    path.write_text(yaml.safe_dump({**values, "run": str(run)}))
    return path


@pytest.fixture
def watched(tiny, tmp_path) -> Path:
    """The config of a watched run."""
    return watch(tiny, tmp_path / "watched.yaml", tmp_path / "run")


@pytest.fixture(scope="module")
def seen(finished_once, tmp_path_factory) -> tuple[Path, list[int]]:
    """The folder of a watched run, and the steps after which something borrowed its network."""
    lent = []

    def lend(trainer, module):
        lent.append(trainer.global_step)
        return evaluation_mode(trainer, module)

    folder = tmp_path_factory.mktemp("seen")
    config = watch(finished_once.parents[1] / "tiny.yaml", folder / "watched.yaml", folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        for borrower in (evaluation, after_validation):
            patch.setattr(borrower, "evaluation_mode", lend)
        assert main(["fit", "--config", str(config)]) == 0
    return folder / "run" / "0", lent


def evaluations(folder: Path) -> dict[int, float]:
    return metrics(folder, "evaluation/loss_by_position/context=128/loss")


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), {"histograms": 0})
    events.Reload()
    return events


def test_watching_changes_nothing_and_writes_everything(finished_once, seen):
    folder, lent = seen
    assert lent == [3, 3, 6, 6]  # for Evaluation, and for all others together
    for name in ("train/loss", "validation/loss"):
        assert metrics(folder, name) == metrics(finished_once, name)
    found = board(folder)
    tags = found.Tags()
    names = ("alpha", "gamma", "bandwidth", "gate", "decay", "effective_pairs")
    assert {f"watch_memory/{level}/{name}" for level in ("long", "short") for name in names} <= set(tags["histograms"])
    figures = {"watch_retrieval_profile/long", "watch_retrieval_profile/short", "watch_evaluation/loss_by_position"}
    assert figures <= set(tags["images"])
    assert {"watch_samples/text_summary", "watch_evaluation/loss_by_position/text_summary"} <= set(tags["tensors"])
    groups = sorted(
        {tag.split("/")[0] for kind in ("scalars", "histograms", "images", "tensors") for tag in tags[kind]}
    )
    assert groups[:2] == ["train", "validation"]  # which TensorBoard opens
    assert [event.step for event in found.Scalars("watch_evaluation/share")] == [3, 6]
    assert 0 < found.Scalars("watch_evaluation/share")[-1].value < 1
    counts = [event.step for event in found.Histograms("watch_memory/long/effective_pairs")]
    assert counts == [3, 6]


def test_the_callback_finds_what_the_command_finds(seen, tmp_path):
    folder, _ = seen
    within = json.loads((folder / "evaluations/step=6/loss_by_position/results.json").read_text())
    asked = ["--tasks", "loss_by_position", "--contexts", "64", "128", "--limit", "4", "--device", "cpu"]
    assert main(["evaluate", "--checkpoint", str(folder), *asked, "--output", str(tmp_path / "after")]) == 0
    after = json.loads(next((tmp_path / "after").glob("*/loss_by_position/results.json")).read_text())
    assert within["settings"] == after["settings"]
    for one, two in zip(within["rows"], after["rows"], strict=True):
        assert one["group"] == two["group"]
        assert one["value"] == pytest.approx(two["value"], rel=1e-5)
    assert within["network"]["tokens"] == 6 * 8 * 32
    assert len(lines(folder / KEPT.format(3))) == 4


@pytest.mark.slow
def test_two_processes_share_the_questions(watched, seen, tmp_path):
    values = yaml.safe_load(watched.read_text())
    spy = {"class_path": "spies.AskedSpy", "init_args": {"folder": str(tmp_path / "asked")}}
    values["trainer"]["callbacks"].append(spy)
    watched.write_text(yaml.safe_dump(values))
    statuses = forks.ranks(main, fit_together(watched, tmp_path, "ddp"), folder=tmp_path)
    assert statuses == [0, 0], (tmp_path / "rank0.log").read_text()[-3000:]
    compare(seen[0], tmp_path)
    one, other = (lines(tmp_path / "asked" / f"{rank}.jsonl") for rank in (0, 1))
    for step, parts in zip((3, 6), zip(one, other, strict=True), strict=True):
        kept = [sample["key"] for sample in lines(tmp_path / "together" / "0" / KEPT.format(step))]
        assert len(kept) == 4
        assert all(parts)
        assert sorted(key for part in parts for key in part) == sorted(kept)


@pytest.mark.slow
def test_zero_3_lends_a_whole_copy(watched, seen, tmp_path):
    done = mm(*fit_together(watched, tmp_path, "deepspeed_stage_3"))
    assert done.returncode == 0, done.stderr[-3000:]
    compare(seen[0], tmp_path)


def fit_together(watched, tmp_path, strategy) -> list[str]:
    devices = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.micro_batch_size", "2"]
    return ["fit", "--config", str(watched), "--run", str(tmp_path / "together"), *devices]


def compare(alone, tmp_path):
    both = tmp_path / "together" / "0"
    assert evaluations(both).keys() == evaluations(alone).keys() == {3, 6}
    assert list(evaluations(both).values()) == pytest.approx(list(evaluations(alone).values()), rel=2e-5)
    assert "watch_memory/short/effective_pairs" in board(both).Tags()["histograms"]
    assert "watch_samples/text_summary" in board(both).Tags()["tensors"]


def test_evaluation_by_tokens_is_due_at_the_first_step_that_reaches_a_multiple():
    from mm_lightning.callbacks import Evaluation

    evaluation = Evaluation(["loss_by_position"], every_n_tokens=100)
    assert [step for step in range(1, 12) if evaluation._due(step, step * 30, 30)] == [4, 7, 10]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every_n_tokens": 100}, "give one of every_n_steps and every_n_tokens"),
        ({"tasks": ["loss_by_positio"]}, "did you mean loss_by_position"),
        ({"settings": {"contexts": ["4q"]}}, "contexts takes whole numbers, such as 4096 or 4k, got '4q'"),
        ({"settings": {"shots": 3}}, "shots is for none of the tasks"),
    ],
)
def test_mistakes_are_told_before_training(watched, tmp_path, capsys, change, message):
    values = yaml.safe_load(watched.read_text())
    one = next(c for c in values["trainer"]["callbacks"] if c["class_path"] == "Evaluation")
    one["init_args"] |= change
    watched.write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(watched)]) == 2
    assert message in capsys.readouterr().err


def test_effective_pairs():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert effective_pairs(weights).tolist() == pytest.approx([4, 1, 0])


def test_distributions_count_queries_with_something_to_read():
    config = MemoryMosaicConfig(
        vocab_size=16, layers=2, dim=8, heads=2, persistent_dim=8, short_term_window=4, inference_delay=3
    )
    found = memory_distributions(config.build().eval(), torch.randint(16, (2, 10)))
    # long: positions 3 .. 9 of 10 read; short: 1 .. 9; of 2 rows, 2 heads, 2 layers
    assert len(found["long/effective_pairs"]) == len(found["long/bandwidth"]) == 7 * 8
    assert len(found["short/effective_pairs"]) == 9 * 8
    assert len(found["long/gate"]) == len(found["short/decay"]) == 10 * 8
    assert found["short/effective_pairs"].max() <= 3 + 1e-4
    assert found["long/decay"].max() <= 1


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_prompt_of_nothing_is_continued(prompt, tiny, tmp_path, capsys):
    overlay = tmp_path / "samples.yaml"
    samples = {"class_path": "Samples", "init_args": {"prompt": prompt, "tokens": 3}}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [samples, "Summary"]}}))
    assert main(["fit", "--config", str(tiny), "--config", str(overlay), "--trainer.max_steps", "1"]) == 0
    assert "a sample:" in capsys.readouterr().out


def test_without_a_prompt_a_document_of_the_data_is_continued(tiny, prepared, tmp_path, capsys):
    overlay = tmp_path / "samples.yaml"
    samples = {"class_path": "Samples", "init_args": {"tokens": 3}}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [samples, "Summary"]}}))
    assert main(["fit", "--config", str(tiny), "--config", str(overlay), "--trainer.max_steps", "1"]) == 0
    output = capsys.readouterr().out
    document = bytes(of_folder(prepared, load_tokenizer("bytes")).parts[0][:16].tolist()).decode()
    assert f"a sample:\n  {document}" in output
    assert f"--prompt '{document}'" in output


def test_tokens_of_samples_are_looked_at_before_the_first_step(tiny, tmp_path, capsys):
    overlay = tmp_path / "samples.yaml"
    samples = {"class_path": "Samples", "init_args": {"prompt": "a", "tokens": 0}}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [samples]}}))
    assert main(["fit", "--config", str(tiny), "--config", str(overlay)]) == 2
    captured = capsys.readouterr()
    assert "trainer.callbacks.Samples.tokens takes a whole number of at least 1, got 0" in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()

import json
import re
from collections import Counter

import pytest
import torch
from asked import Answering, run

from mm_lightning.cli import main
from mm_lightning.data.facts import syllable_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.new_knowledge.generated_facts import GeneratedFacts
from mm_lightning.evaluation.new_knowledge.long_text_task import TENTHS
from mm_lightning.evaluation.registry import find_task, task_names
from mm_lightning.experiments.drawing import drawing
from mm_lightning.experiments.evaluated.heat_maps import NOT_ASKED, heat_maps
from mm_lightning.networks import MemoryMosaicConfig


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return syllable_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def copying(prompt):
    name, attribute = re.search(r"\? (\w+) (\w+)$", prompt).groups()
    (value,) = re.findall(rf" {name} {attribute} (\w+) \.", prompt)
    return f" {value} .\n? more"


@pytest.mark.parametrize("kind", ["own", "bytes"])
def test_a_model_that_copies_is_always_right(own, kind):
    tokenizer = own if kind == "own" else "bytes"
    task = GeneratedFacts(contexts=[512, 2048], limit=30)
    records, rows = run(task, copying, tokenizer)
    for length in (512, 2048):
        assert rows[length, None, "accuracy"].value == 1
    for record in records:
        *lines, question = record["prompt"].split("\n")
        assert len(lines) == record["documents"]
        names = [re.fullmatch(r"#( (\w+) [a-z]{4,5} \w{4} \.){4}", line)[2] for line in lines]
        assert len(set(names)) == len(names)
        assert record["question"] == question
        assert [record["answer"].strip()] == record["references"]
        # one more document would not fit
        longest = 80 if kind == "bytes" else 26
        assert record["group"]["length"] - longest < record["tokens"] <= record["group"]["length"]


def test_the_first_word_must_be_the_value(own):
    task = GeneratedFacts(contexts=[512], limit=4)
    assert run(task, lambda prompt: " no" + copying(prompt), own)[1][512, None, "accuracy"].value == 0
    _, rows = run(task, lambda prompt: "", own)
    assert rows[512, None, "accuracy"].value == rows[512, None, "accuracy_gold_alone"].value == 0


def test_some_value_of_the_text_is_right_as_often_as_there_are_facts(own):
    task = GeneratedFacts(contexts=[256], limit=200)
    records, rows = run(task, lambda prompt: " " + re.findall(r"(\w+) \.", prompt)[5], own)
    assert {record["documents"] for record in records} == {9}
    assert rows[256, None, "accuracy"].value == pytest.approx(1 / 36, abs=0.03)


def test_depths_are_even(own):
    records, _ = run(GeneratedFacts(contexts=[512], limit=190), copying, own)
    places = Counter(round(record["depth"] * 19 - 0.5) for record in records)
    assert {record["documents"] for record in records} == {19}
    assert set(places) == set(range(19))
    assert all(9 <= count <= 11 for count in places.values())


def test_too_short_and_too_long(own):
    with pytest.raises(UserError, match="32 tokens are too few for a document and a question"):
        GeneratedFacts(contexts=[32]).items(Answering(copying, own))
    with pytest.raises(UserError, match="too few names for contexts of 1,048,576 tokens"):
        GeneratedFacts(contexts=[1048576]).items(Answering(copying, own))


def test_a_network_answers_the_same_in_any_batch(own):
    torch.manual_seed(0)
    config = MemoryMosaicConfig(
        vocab_size=174, layers=1, dim=16, heads=2, persistent_dim=16, short_term_window=8, long_term_delay=(2, 4),
        inference_delay=2,
    )  # fmt: skip
    network = config.build().eval()
    task = GeneratedFacts(contexts=[96, 128], limit=5)
    found = []
    for batch_size in (1, 4):
        model = Model(network, own, batch_size=batch_size)
        found.append(list(task.ask(model, task.items(model))))
    assert found[0] == found[1]
    assert any(record["answer"].strip() for record in found[0])


def test_the_heat_map(own, figures_are_drawn):
    pytest.importorskip("matplotlib")
    task = GeneratedFacts(contexts=[256, 1024], limit=4)
    records, _ = run(task, copying, own)
    rows = [row for row in task.rows(records) if "depth" in row.group]
    found = {(row.group["length"], row.group["depth"]): row.value for row in rows}
    figure = heat_maps({"one": found, "two": found})
    first, second, _ = figure.axes
    assert [axes.get_title() for axes in (first, second)] == ["one", "two"]
    assert [label.get_text() for label in first.get_xticklabels()] == ["256", "1k"]
    # all tenths, also those that were never asked, which are drawn grey: the ground of axes is transparent in a page
    assert [label.get_text() for label in first.get_yticklabels()] == list(TENTHS)
    shown = first.collections[0].get_array()
    assert shown.shape == (10, 2)
    assert 0 < shown.mask.sum() < 20
    assert (shown.compressed() == 100).all()
    (ground,) = first.patches
    assert (ground.get_width(), ground.get_height()) == (2, 10)
    svg = drawing(figure, "map", "").svg
    assert svg.count(NOT_ASKED) == 2


def test_by_command(runs, tmp_path, capsys):
    out = tmp_path / "results"
    options = ["--output", str(out), "--tasks", "generated_facts,niah_single_1", "--limit", "3"]
    options += ["--contexts", "640,768"]
    assert main(["evaluate", "--checkpoint", str(runs / "v2"), "--seed", "5", "--device", "cpu", *options]) == 0
    (folder,) = out.glob("*/generated_facts")
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert sorted(record["key"] for record in records) == sorted(f"5:{n}:{k}" for n in (640, 768) for k in range(3))
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert {row["metric"] for row in rows} == {"accuracy", "accuracy_gold_alone", "tokens"}
    text = (out / "report" / "report.md").read_text()
    assert "niah_single_1-depth.svg" in text
    assert "Gray: not asked." in text
    assert "length=768" in capsys.readouterr().out
    # the same command finds everything there
    before = (folder / "results.json").stat().st_mtime_ns
    assert main(["evaluate", "--checkpoint", str(runs / "v2"), "--seed", "5", "--device", "cpu", *options]) == 0
    assert (folder / "results.json").stat().st_mtime_ns == before


def test_options_that_no_task_has(runs, capsys):
    options = ["--tasks", "generated_facts", "--gold_position", "even"]
    assert main(["evaluate", "--checkpoint", str(runs / "v2"), *options]) == 2
    assert "gold_position is for none of the tasks generated_facts" in capsys.readouterr().err


def test_groups():
    assert task_names(["new_knowledge,qa_1", "generated_facts"]) == ["qa_1", "qa_2", "generated_facts"]
    assert len(task_names(["needles"])) == 8
    with pytest.raises(UserError, match="did you mean new_knowledge"):
        find_task("new_knowlege")

"""`mm report` on results of `mm evaluate` with known numbers."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from fake_results import (
    LONG,
    network,
    removed,
    row,
    share,
    write,
    write_in_context,
    write_partial,
    write_qa,
)
from fake_runs import curve, write_sweep

from mm_lightning.cli import main
from mm_lightning.evaluation.intervals import share_interval
from mm_lightning.experiments.evaluated import plots
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.evaluation_report import parts
from mm_lightning.experiments.evaluated.load_results import load_results
from mm_lightning.experiments.evaluated.persistent_section import BENCHMARKS
from mm_lightning.experiments.page import Drawing, Heading, Points, Text
from mm_lightning.experiments.report import write_report

V2 = network("v2")


@pytest.fixture
def no_figures(monkeypatch):
    """They take most of the time of a report."""
    sections = (
        "persistent_section",
        "in_context_section",
        "long_text_sections",
        "position_sections",
        "default_section",
    )
    for module in (*sections, "scaling_plots", "plots"):
        monkeypatch.setattr(f"mm_lightning.experiments.evaluated.{module}.drawing", lambda *a, **k: None)
    monkeypatch.setattr("mm_lightning.experiments.evaluated.long_text_sections.heat_maps", lambda maps: None)
    monkeypatch.setattr(plots, "side_legend", lambda *a: None)


def grids(*folders):
    """The tables of a report by name."""
    return {part.name: part for part in parts(load_results(folders)) if isinstance(part, EstimateTable)}


def cells(grid, first):
    """The line whose first cells are these, by column."""
    first = [first] if isinstance(first, str) else list(first)
    (found,) = [line for line in grid.rows if line[: len(first)] == first]
    return dict(zip(grid.heads, found, strict=True))


def benchmarks(folder, run, about, right, leave=(), **settings):
    """Of each benchmark so many right of 200; other scores beside it."""
    for number, (name, (task, metric)) in enumerate(BENCHMARKS.items()):
        if name not in leave:
            rows = [share(1, 200, "acc,other"), share(right + number, 200, metric), share(2, 9, metric, task="a part")]
            write(
                folder, run, task, rows, about, **{"limit": 200, "fewshot": number % 3, "data_hash": task, **settings}
            )


def test_persistent_knowledge(tmp_path, no_figures):
    benchmarks(tmp_path, "v2", V2, 40)
    benchmarks(tmp_path, "v2-no-long-term", removed(V2), 20, leave=("obqa", "squad"))
    grid = grids(tmp_path)["persistent"]
    assert list(grid.heads[1:3]) == ["v2", "v2, long-term memory removed"]
    assert grid.heads[3:-1] == [f"published: {name}" for name in NAMES]
    obqa = cells(grid, "obqa")
    assert obqa["our task and score"] == "openbookqa acc_norm, 0-shot"
    assert str(obqa["v2"]) == "20.0 [15.0, 26.1]"
    assert obqa["v2, long-term memory removed"] is None
    assert obqa["published: v2 large"] == 45.4
    # 40 + 0 .. 12, 40 + 13 .. 18 and 40 + 0 .. 18 right of 200
    means = {name: cells(grid, name) for name in ("mean of these 13", "mean of these 6", "mean of 19")}
    assert [100 * found["v2"].value for found in means.values()] == pytest.approx([23.0, 27.75, 24.5])
    mean = means["mean of these 13"]["v2"]
    assert (mean.low, mean.high) == pytest.approx(share_interval(0.23, [13 * 200]), abs=1e-6)  # of equal counts
    off = [found["v2, long-term memory removed"] for found in means.values()]
    assert [e.note for e in off] == ["12 of 13", "5 of 6", "17 of 19"]
    assert means["mean of these 13"]["published: v2 large, long-term memory removed"] == 56.6
    assert means["mean of 19"]["published: transformer small"] == 37.8
    assert means["mean of 19"]["published: v2 large, long-term memory removed"] is None


NAMES = (
    "transformer small",
    "v2 small",
    "transformer large",
    "v2 large",
    "v2 large, long-term memory removed",
)


def test_other_shots_and_other_meanings_of_a_benchmark(tmp_path, no_figures):
    cut = share(20, 200, "prompts cut")
    write(tmp_path, "v2", "arc_easy", [share(40, 200, "acc_norm,none"), cut], V2, fewshot=0)
    write(tmp_path, "v2", "mmlu", [share(50, 200, "acc")], V2, fewshot=5)
    write(tmp_path, "v1", "race_high", [share(60, 200, "acc")], network("v1"), fewshot=0)
    grid = grids(tmp_path)["persistent"]
    assert cells(grid, "arc easy")["v2"].value == 0.2
    assert cells(grid, "race high")["v1"].value == 0.3
    mmlu = cells(grid, "mmlu (in no mean)")
    assert (mmlu["v2"].value, mmlu["our task and score"]) == (0.25, "mmlu acc, 5-shot")
    assert cells(grid, "mmlu alt")["v2"] is None
    text = " ".join(item for part in parts(load_results([tmp_path])) if isinstance(part, Points) for item in part.items)
    assert "arc_easy of v2: the beginning of 10% of the prompts was cut off." in text
    write(tmp_path, "v1", "arc_easy", [share(40, 200, "acc_norm")], network("v1"), fewshot=25)
    assert sorted(name for name in grids(tmp_path) if name.startswith("persistent")) == [
        "persistent",
        "persistent-2",
        "persistent-3",
    ]


def test_new_knowledge(tmp_path, no_figures):
    write_qa(tmp_path, "v2", V2, {"qa_1": [100, 50, 25], "qa_2": [200, 150]})
    write_qa(tmp_path, "v2-no-long-term", removed(V2), {"qa_1": [10], "qa_2": [20]})
    found = grids(tmp_path)
    ours = cells(found["new-knowledge"], "v2")
    assert (100 * ours["4k"].value, 100 * ours["8k"].value) == pytest.approx((30.0, 20.0))
    assert ours["16k"] is None  # asked in one of the two only
    assert (ours["trained at"], ours["questions"]) == ("512", "1,000")
    assert cells(found["new-knowledge"], "v2, long-term memory removed")["4k"].value == pytest.approx(0.03)
    theirs = cells(found["new-knowledge"], ("published: v2 large", "32k"))
    assert (theirs["4k"], theirs["64k"]) == (58.9, 46.4)
    assert cells(found["new-knowledge"], ("published: transformer large", "32k"))["64k"] == "fails"
    assert cells(found["qa_1"], "v2")["16k"].value == 0.05
    assert not found["qa_1"].published_rows


def test_other_settings_are_other_tables(tmp_path, no_figures):
    write_qa(tmp_path, "v2", V2, {"qa_1": [100], "qa_2": [200]})
    write_qa(tmp_path, "v1", network("v1"), {"qa_1": [20], "qa_2": [40]}, count=100, limit=100)
    write_qa(tmp_path, "more", network("more"), {"qa_1": [100, 90], "qa_2": [200, 90]})  # lengths do not matter
    shown = parts(load_results([tmp_path]))
    tables = {part.name: part for part in shown if isinstance(part, EstimateTable)}
    assert [line[0] for line in tables["new-knowledge"].rows if "published" not in line[0]] == ["more", "v2"]
    assert [line[0] for line in tables["new-knowledge-2"].rows if "published" not in line[0]] == ["v1"]
    titles = [part.text for part in shown if isinstance(part, Heading)]
    assert sum(title.endswith("settings 2 of 2") for title in titles) == 1
    text = " ".join(part.text for part in shown if isinstance(part, Text))
    assert "limit 500, seed 0, gold position even" in text
    assert "limit 100, seed 0, gold position even" in text
    assert "qa_1 was asked under 2 different settings" in " ".join(load_results([tmp_path]).notes)


def test_other_questions_are_other_tables(tmp_path, no_figures):
    """Because other ones fit for another tokenizer; networks of one tokenizer stand in one table."""
    places = {}
    for name, tokenizer in (("a", "t" * 64), ("b", "t" * 64), ("c", "u" * 64)):
        excluded = row(4, None, 3, "excluded_questions", length=4096)
        about = network(name, tokenizer=tokenizer)
        places[name] = write(tmp_path, name, "qa_1", [share(1, 3, length=4096), excluded], about, **LONG)
    for name, keys in (("a", "123"), ("b", "123"), ("c", "345")):
        records = [
            {"key": f"0:4096:{key}", "group": {"length": 4096}, "scores": {"accuracy": float(key == "1")}, "gold": []}
            for key in keys
        ]
        (places[name] / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = load_results([tmp_path])
    asked = [[e.network.name for e in group.evaluations] for group in found.groups()]
    assert asked == [["a", "b"], ["c"]]
    assert any("a and c were asked different questions, 1 of 5 in common" in note for note in found.notes)
    tables = grids(tmp_path)
    assert cells(tables["qa_1"], "a")["do not fit"] == "4"
    assert [line[0] for line in tables["qa_1-2"].rows] == ["c"]
    (line,) = tables["qa_1-differences"].rows  # of three answers that are alike: 1.96 / (3 + 2)
    assert str(line[-1]) == "+0.0 [-39.2, +39.2]"


def test_percent_is_shown_as_it_is(tmp_path, no_figures):
    """What earlier versions wrote of squadv2, without unit."""
    write(tmp_path, "v2", "squadv2", [row(100.0, 0.0, 3, "f1,none")], V2, fewshot=0)
    assert str(cells(grids(tmp_path)["persistent"], "squadv2 (in no mean)")["v2"]) == "100.0 [43.9, 100.0]"


def test_other_data_are_other_tables(tmp_path, no_figures):
    write_qa(tmp_path, "v2", V2, {"qa_1": [100], "qa_2": [200]})
    write(tmp_path, "v1", "qa_1", [share(9, 500, length=4096)], network("v1"), **LONG, data_hash="another")
    found = load_results([tmp_path]).groups()
    asked = [[(e.task, e.network.name) for e in group.evaluations] for group in found]
    assert asked == [[("qa_1", "v1")], [("qa_1", "v2")], [("qa_2", "v2")]]


def test_in_context(tmp_path, no_figures):
    curves = {"semantic": {1: 0.1, 16: 0.5}, "anonymous": {1: 0.05}}
    write_in_context(tmp_path, "v2", "banking77", V2, curves)
    found = grids(tmp_path)
    line = cells(found["banking77"], ("semantic", "most likely label", "v2"))
    assert (line["1 shot"].value, line["16 shots"].value) == pytest.approx((0.13, 0.53))  # the best adds 3 points
    half = 1.96 * 0.02
    assert (line["16 shots"].low, line["16 shots"].high) == pytest.approx((0.53 - half, 0.53 + half), abs=1e-3)
    assert line["answers"] == "1,500"
    assert cells(found["banking77"], ("anonymous", "exact match of greedy decoding", "v2"))["16 shots"] is None
    every = cells(found["banking77-strategies"], ("semantic", "most likely label", "v2", 1))
    assert [every[name].value for name in ("newline", "newline-shuffled", "space", "space-shuffled")] == pytest.approx(
        [0.1, 0.11, 0.12, 0.13]
    )


def test_partial_results_say_so(tmp_path, no_figures):
    write(tmp_path, "v2", "niah_single_1", [share(9, 10, length=4096)], V2, **LONG)
    records = [
        {
            "key": f"0:256:{n}",
            "group": {"length": 256},
            "scores": {"accuracy": float(n < 3)},
            "tokens": 250,
            "excluded": 0,
            "gold": [{"references": ["x"], "depth": n / 10, "found": float(n < 3)}],
        }
        for n in range(10)
    ]
    write_partial(tmp_path, "v2", "generated_facts", records, V2, contexts=[256, 512], limit=100, seed=0)
    place = write_report(tmp_path)
    text = (place / "report.md").read_text()
    assert r"| v2 (partial: 10 answers) | 512 | 10 | 0 | 30.0 \[10.8, 60.3\] |" in text
    assert r"generated_facts of v2 is partial: its numbers are those of the first 10 answers." in text
    assert "1 of 2 evaluations are partial" in text
    with open(place / "numbers.csv", newline="") as file:
        numbers = list(csv.DictReader(file))
    assert {n["partial"] for n in numbers if n["task"] == "generated_facts"} == {"10"}


def test_the_same_asked_twice_counts_once(tmp_path, no_figures):
    for folder, day, right in (("a", "2026-01-01", 1), ("b", "2026-02-01", 2)):
        started = {"started": f"{day}T00:00:00+00:00"}
        write(tmp_path / folder, "v2", "qa_1", [share(right, 10, length=4096)], V2, session=started, **LONG)
    # other networks of the same name
    write(tmp_path / "b", "v3", "qa_1", [share(5, 10, length=4096)], network("w3"), **LONG)
    write(tmp_path / "c", "v3", "qa_1", [share(6, 10, length=4096)], network("w4"), **LONG)
    found = load_results([tmp_path])
    assert [(e.network.name, e.rows[0].value) for e in found.evaluations] == [
        ("v2", 0.2),
        ("v3, b", 0.5),
        ("v3, c", 0.6),
    ]
    assert "a/v2/qa_1 is left out" in found.notes[0]


def test_evaluations_in_training(tmp_path, no_figures):
    run = tmp_path / "runs/tiny/0"
    for step in (100, 200):
        about = network("", checkpoint=f"runs/tiny/0/checkpoints/step={step}.ckpt", step=step)
        about = {name: about[name] for name in about.keys() - {"training_tokens", "run_folder", "long_term"}}
        about |= {"weights": f"in training, step {step}", "tokens": 64 * step}
        write(run / "evaluations", f"step={step}", "qa_1", [share(step // 10, 50, length=256)], about, **LONG)
    found = load_results([run])
    assert [n.name for n in found.networks] == ["tiny-0-step100", "tiny-0-step200"]
    assert [n.number("training_tokens") for n in found.networks] == [6400, 12800]
    assert len({n.run for n in found.networks}) == 1


def test_the_network_to_compare_with_stands_first(tmp_path):
    other = network("other")
    for run, about in (("a", V2), ("b", other), ("b-no-long-term", removed(other))):
        write(tmp_path, run, "qa_1", [share(5, 10, length=4096)], about, **LONG)
    results = load_results([tmp_path])
    assert [one.name for one in results.networks] == ["a", "b", "b, long-term memory removed"]
    results.put_first(results.find("b"))
    assert [one.name for one in results.networks] == ["b", "b, long-term memory removed", "a"]
    assert results.find("b-no-long-term").name == "b, long-term memory removed"  # also by its folder
    assert results.find("c") is None


def test_the_head_says_how_small_the_networks_are(tmp_path, no_figures):
    write_qa(tmp_path, "v2", V2, {"qa_1": [100], "qa_2": [200]})
    text = (write_report(tmp_path) / "report.md").read_text()
    assert "v2 has 1.5 M parameters, 6,600 times fewer than v2 large" in text
    assert "the longest training is 1.02 M tokens, 980,000 times fewer" in text
    assert "| v2 | MemoryMosaic, levels long short | 1.5 M | 1.02 M | 512 | 3 M |" in text
    assert "| *published: v2 large* | *Memory Mosaics v2* | *9.9 B* | *1 T* | *32k* | *18.9 B* |" in text


class Links(HTMLParser):
    """Gathers ids and what is referred to."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.published = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href"):
                self.links.append(value)
            elif name == "class" and tag in ("td", "th"):
                self.published += "published" in value.split()


@pytest.mark.slow
def test_whole_report(tmp_path, capsys):
    """Every form once, with figures; as a page, as Markdown, as CSV."""
    small = network("small", parameters=300_000, forward_flops_per_token=600_000)
    for name, about, right in (("v2", V2, 100), ("small", small, 50)):
        write_qa(tmp_path, name, about, {"qa_1": [right, right // 2], "qa_2": [right, right // 2]})
    write_in_context(tmp_path, "v2", "banking77", V2, {"semantic": {1: 0.1, 2: 0.2}})
    write(tmp_path, "v2", "arc_easy", [share(50, 200, "acc_norm")], V2, limit=200)
    places = [row(4.0 - n, 0.1, 8, "loss", position=p) for n, p in enumerate(("1-32", "33-64"))]
    write(tmp_path, "v2", "loss_by_position", [row(3.5, 0.1, 8, "loss", context=64), *places], V2, contexts=[64])
    profile = [row(1 / n, 0.01, 8, "weight", context=64, level="short", distance=f"{n}-{n}") for n in (1, 2, 4)]
    write(tmp_path, "v2", "retrieval_profile", profile, V2)
    write(tmp_path, "v2", "regbench", [share(8 + n, 16, strings=n) for n in (1, 2, 4)], V2, limit=4)
    assert main(["report", str(tmp_path)]) == 0
    assert "new-knowledge" in capsys.readouterr().out

    place = tmp_path / "report"
    page = (place / "index.html").read_text()
    found = Links(page)
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert len(found.ids) == len(set(found.ids))
    assert not re.findall(r"url\((?!['\"]?#)|@import|<script|<link", page)
    assert found.published > 100

    names = re.findall(r"\(figures/([\w-]+)\.svg\)", (place / "report.md").read_text())
    assert {"new-knowledge", "new-knowledge-scaling", "qa_1-depth", "banking77", "persistent"} <= set(names)
    assert {"loss_by_position", "retrieval-profile", "regbench-accuracy-by-strings"} <= set(names)
    for name in names:
        assert len(list(ElementTree.parse(place / f"figures/{name}.svg").iter())) > 50
        assert (place / f"figures/{name}.png").read_bytes()[:4] == b"\x89PNG"
    svg = (place / "figures/new-knowledge.svg").read_text()
    assert all(f">{label}</text>" in svg for label in ("v2", "small", "published: v2 large", "32k"))

    with open(place / "tables/new-knowledge.csv", newline="") as file:
        lines = {line["network"]: line for line in csv.DictReader(file)}
    assert (lines["v2"]["source"], float(lines["v2"]["4k"]), lines["v2"]["4k count"]) == ("ours", 20.0, "1000")
    assert float(lines["v2"]["4k low"]) < 20 < float(lines["v2"]["4k high"])
    assert lines["published: v2 large"]["source"] == "published"
    assert (place / "numbers.csv").read_text().count("\n") > 60


def test_checkpoints_of_a_run_by_step(tmp_path):
    for step, right in ((1, 100), (2, 150), (800, 160)):
        about = network(f"ft{step}", step=step, run_folder="runs/ft/0", fine_tuned_from=V2["checkpoint"])
        write_qa(tmp_path, f"ft-step{step}", about, {"qa_1": [right], "qa_2": [right]})
    write_qa(tmp_path, "base", V2, {"qa_1": [10], "qa_2": [20]})
    figures = {part.name: part for part in parts(load_results([tmp_path])) if isinstance(part, Drawing)}
    steps = figures["new-knowledge-steps"].svg
    assert all(f">{label}</text>" in steps for label in ("0", "1", "2", "800", "runs/ft/0"))
    assert "ft-step800" in figures["new-knowledge"].svg
    assert "ft-step2<" not in figures["new-knowledge"].svg


def test_the_steps_of_networks_without_their_long_term_memory_or_in_two_precisions(tmp_path):
    for step in (1, 800):
        about = removed(network(f"ft{step}", step=step, run_folder="runs/ft/0"))
        write_qa(tmp_path, f"ft-step{step}", about, {"qa_1": [10], "qa_2": [10]})
    for precision in ("32", "bf16"):  # one checkpoint: no steps to draw
        about = network("w", precision=precision)
        write_qa(tmp_path, f"w-{precision}", about, {"qa_1": [10], "qa_2": [10]})
    figures = {part.name: part for part in parts(load_results([tmp_path])) if isinstance(part, Drawing)}
    steps = figures["new-knowledge-steps"].svg
    assert ">runs/ft/0, long-term memory removed</text>" in steps
    assert "runs/w/0" not in steps
    assert "w-bf16" in figures["new-knowledge"].svg
    assert "w-32" in figures["new-knowledge"].svg


def test_a_metric_with_a_slash_has_a_figure(tmp_path):
    rows = [row(0.5, 0.1, 4, "top/1 word", size=size) for size in (1, 2, 4)]
    write(tmp_path, "one", "own", rows, V2)
    assert (write_report(tmp_path) / "figures" / "own-top-1-word-by-size.svg").is_file()


def test_runs_and_evaluations_in_one_page(tmp_path, no_figures, monkeypatch):
    monkeypatch.setattr("mm_lightning.experiments.report.draw", lambda study, rows, looks: [])
    monkeypatch.setattr("mm_lightning.experiments.report.write_hparams", lambda *a: None)
    run = {"variant": "base", "seed": 1, "lines": curve({10: 3.0, 20: 2.0})}
    sweep = write_sweep(tmp_path / "s", [run])
    alone = (write_report(sweep, tmp_path / "alone") / "report.md").read_text()
    assert "Networks" not in alone
    assert sorted(p.name for p in (tmp_path / "alone").iterdir()) == [
        "figures",
        "index.html",
        "report.csv",
        "report.md",
        "runs.csv",
        "runs.json",
    ]
    write(sweep / "base/seed-1/0/evaluations", "base", "qa_1", [share(5, 10, length=4096)], V2, **LONG)
    text = (write_report(sweep) / "report.md").read_text()
    assert text.index("| base | 1 | 20 | 2.0000 |") < text.index("## Evaluation") < text.index("### qa_1")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["results", "--baseline", "v1"], ["--baseline v1", "there are v2"]),
        (["results", "empty", "--output", "out"], ["empty", "no runs", "no evaluations"]),
        (["damaged"], ["damaged", "results.json"]),
        (["foreign"], ["foreign", "has no run, network"]),
    ],
)
def test_mistakes(args, words, tmp_path, monkeypatch, capsys, no_figures):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "results", "v2", "qa_1", [share(5, 10, length=4096)], V2, **LONG)
    for name, text in (("damaged", "{"), ("foreign", json.dumps({"task": "x", "rows": [], "settings": {}}))):
        (tmp_path / name / "v2" / "qa_1").mkdir(parents=True)
        (tmp_path / name / "v2" / "qa_1" / "results.json").write_text(text)
    assert main(["report", *args]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in words)

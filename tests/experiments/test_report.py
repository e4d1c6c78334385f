"""`mm report` on run folders with known numbers."""

import csv
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from fake_runs import ENVIRONMENT, curve, write_run, write_sweep

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.experiments.figures import draw
from mm_lightning.experiments.hparams import write_hparams
from mm_lightning.experiments.network_looks import looks_of
from mm_lightning.experiments.page import NOTHING
from mm_lightning.experiments.read_study import read_study
from mm_lightning.experiments.report import write_report
from mm_lightning.experiments.statistics import paired_difference, summarize
from mm_lightning.experiments.tables import table
from mm_lightning.training.tensorboard_hparams import write_run_hparams


def run(variant, seed, losses, **more):
    return {"variant": variant, "seed": seed, "lines": losses and curve(losses), **more}


def three_seeds():
    """Differences 0.1, 0.2, 0.6: mean 0.3, standard deviation sqrt(0.07)."""
    finals = {"base": (2.0, 2.1, 2.2), "other": (2.1, 2.3, 2.8)}
    return [run(v, s, {10: 3.0, 20: value}) for v, values in finals.items() for s, value in enumerate(values, 1)]


@pytest.fixture
def no_figures(monkeypatch):
    """They take most of the time of a report."""
    monkeypatch.setattr("mm_lightning.experiments.report.draw", lambda study, rows, looks: [])


def records(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_means_and_paired_interval(tmp_path):
    base, other = summarize(read_study([write_sweep(tmp_path / "s", three_seeds())]))
    assert base.metrics["validation/loss"].mean == pytest.approx(2.1)
    assert base.metrics["validation/loss"].deviation == pytest.approx(0.1)
    assert base.difference is None
    assert other.metrics["validation/loss"].deviation == pytest.approx(math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2))
    assert other.difference.mean == pytest.approx(0.3)
    half = 4.302653 * math.sqrt(0.07) / math.sqrt(3)  # t of 2 degrees of freedom, from a printed table
    assert other.difference.low == pytest.approx(0.3 - half, rel=1e-6)
    assert other.difference.high == pytest.approx(0.3 + half, rel=1e-6)
    assert (other.planned, other.done) == (3, 3)
    assert other.tokens == 200
    assert other.training_flops == 200 * 6000
    assert other.tokens_per_second == 100
    assert other.seconds == pytest.approx(2.0)


def crossed():
    """The README's sweep: keys x window. Losses: 2 + 0.1 for leaky keys + 0.01 for each step away from window 64."""
    runs = []
    for keys, extra in (("gated", 0.0), ("leaky", 0.1)):
        for window, more in ((64, 0.0), (16, 0.01), (256, 0.02)):
            name = f"{'v2' if keys == 'gated' else 'keys=leaky'}, window={window}"
            values = {"keys": keys, "window": window}
            runs += [run(name, s, {20: 2 + extra + more + s / 100}, values=values) for s in (1, 2)]
    return runs


def test_a_numeric_axis_beside_another_is_compared(tmp_path, no_figures):
    axes = {"keys": ["gated", "leaky"], "window": [64, 16, 256]}
    folder = write_sweep(tmp_path / "s", crossed(), axes=axes)
    study = read_study([folder])
    base, *others = summarize(study)
    assert base.difference is None
    assert [round(row.difference.mean, 6) for row in others] == [0.01, 0.02, 0.1, 0.1, 0.1]
    write_report([folder], tmp_path / "report")
    _, lines = table(study, [base, *others])
    assert [line[0] for line in lines if "baseline" in line] == ["v2, window=64"]
    assert [record["difference_from"] for record in records(tmp_path / "report" / "report.csv")] == [
        "",
        "v2, window=64",
        "v2, window=64",
        "v2, window=64",
        "v2, window=16",
        "v2, window=256",
    ]
    assert study.reference_in_words == "keys=gated at the same window (where window alone differs: v2, window=64)"


def test_an_axis_of_true_and_false_is_not_of_numbers(tmp_path):
    values = [{"compile": c, "width": w} for c in (False, True) for w in (1, 2)]
    runs = [run(f"{v['compile']} {v['width']}", 1, {20: 2.0}, values=v) for v in values]
    study = read_study([write_sweep(tmp_path / "s", runs, axes={"compile": [False, True], "width": [1, 2]})])
    assert study.numeric_axes == ["width"]
    assert study.reference("True 2") == "False 2"
    assert study.reference("False 2") == "False 1"


def test_published_numbers_stand_beside_ours(tmp_path, no_figures):
    published = {"source": "A paper, Figure 9", "validation/loss": {"base": 1.95, "an LSTM": 3}}
    folder = write_sweep(tmp_path / "sweep", three_seeds(), declared={"published": published})
    write_report(folder)
    report = (folder / "report" / "report.md").read_text()
    study = read_study([folder])
    columns, lines = table(study, summarize(study))
    at = columns.index("published")
    assert columns[at - 1] == "validation loss"
    assert [line[at] for line in lines] == ["1.95", NOTHING]
    assert re.search(r"\| published: an LSTM +\| validation loss +\| 3 ", report)
    assert "Published: A paper, Figure 9." in report
    assert [record.get("validation/loss published") for record in records(folder / "report" / "report.csv")] == [
        "1.95",
        "",
    ]


def test_published_numbers_of_any_metric_are_shown_and_those_of_several_sweeps_too(tmp_path, no_figures):
    published = {
        "source": "A paper",
        "validation/perplexity": {"base": 29.4},
        "validation/nothing": {"base": 7, "x": 8},
    }
    runs = [run("base", 1, {20: 2.0}), run("other", 1, {20: 2.25})]
    runs[0]["lines"] = curve({20: 2.0}, perplexity=7.4)
    folders = [write_sweep(tmp_path / name, runs, declared={"published": published}) for name in ("one", "two")]
    for place, name in ((folders[0], "base"), (folders, "one/base")):
        report = write_report(
            [str(f) for f in folders] if place is folders else place, tmp_path / "out", overwrite=True
        )
        text = (report / "report.md").read_text()
        assert re.search(rf"\| {name} .*\| 7\.4000 \| 29\.4 \|", text)
        assert re.search(rf"\| published: {name} +\| validation nothing +\| 7 ", text)
        assert re.search(r"\| published: x +\| validation nothing +\| 8 ", text)
        assert "Published: A paper." in text


def test_a_metric_that_is_not_a_number(tmp_path, no_figures):
    runs = [run("base", 1, {20: 2.0}), run("other", 1, {10: 2.0, 20: math.nan})]
    text = (write_report(write_sweep(tmp_path / "s", runs)) / "runs.json").read_text()

    def refuse(constant):
        raise ValueError(constant)

    both = json.loads(text, parse_constant=refuse)["runs"]  # JSON as all languages have it
    assert [(one["status"], one["validation/loss"]) for one in both] == [("finished", 2.0), ("diverged", None)]


def test_pairs_are_the_common_seeds():
    found = paired_difference({1: 2.0, 2: 2.5, 4: 9.0}, {1: 1.0, 2: 1.0, 3: -9.0})
    assert found.values == {1: 1.0, 2: 1.5}
    half = 12.7062 * math.sqrt(0.125) / math.sqrt(2)
    assert (found.low, found.high) == pytest.approx((1.25 - half, 1.25 + half), rel=1e-5)
    assert paired_difference({1: 2.0}, {1: 1.5}).low is None
    assert paired_difference({1: 2.0}, {2: 1.5}) is None


def test_later_lines_of_a_step_count(tmp_path):
    # killed after step 30, resumed from step 10 at half the speed; the last line was cut short
    lines = [*curve({10: 3.0, 20: 2.5, 30: 9.0}), *curve({20: 2.4, 30: 2.2}, speed=50.0)]
    sweep = write_sweep(tmp_path / "s", [{"variant": "a", "seed": 1, "lines": lines, "steps": 30}])
    with open(sweep / "a/seed-1/0/metrics.jsonl", "a") as file:
        file.write('{"step": 30, "valid')
    (found,) = read_study([sweep]).runs
    assert found.curve("validation/loss") == {10: 3.0, 20: 2.4, 30: 2.2}
    assert found.final()["validation/loss"] == 2.2
    assert found.seconds_at(30) == pytest.approx(100 / 100 + 100 / 50 + 100 / 50)
    assert found.seconds_at(15) == pytest.approx(100 / 100 + 50 / 50)
    assert found.tokens_per_second == 50


def test_newest_numbered_folder_counts(tmp_path):
    sweep = write_sweep(tmp_path / "s", [run("a", 1, {20: 3.0})])
    for number, loss in (("9", 2.0), ("10", 1.0)):
        write_run(sweep / "a/seed-1" / number, curve({20: loss}))
    assert read_study([sweep]).runs[0].final()["validation/loss"] == 1.0


def test_what_did_not_finish_is_listed_and_in_no_mean(tmp_path, no_figures):
    runs = [
        *three_seeds(),
        run("other", 4, {10: 99.0}, seconds=None, log="step 10\n\nRuntimeError: out of | memory\n"),
        run("other", 5, {10: 2.0, 20: math.nan}),
        run("other", 6, None),
        run("never", 1, None),
    ]
    sweep = write_sweep(tmp_path / "s", runs)
    study = read_study([sweep])
    assert [r.status for r in study.runs[6:]] == ["unfinished", "diverged", "not started", "not started"]
    rows = summarize(study)
    assert rows[1].metrics["validation/loss"].mean == pytest.approx(2.4)
    assert (rows[1].done, rows[1].planned) == (3, 6)
    place = write_report(sweep)
    text = (place / "report.md").read_text()
    assert "| other | 3 of 6 | 20 | 2.4000 ± 0.3606 | +0.3000 \\[-0.3572, +0.9572\\] |" in text
    assert "| other/seed-4 | unfinished | 10 of 20 | RuntimeError: out of \\| memory |" in text
    assert "| other/seed-5 | diverged | 20 of 20 |" in text
    assert "| never | 0 of 1 | – | – |" in text
    assert {r["folder"]: r["status"] for r in records(place / "runs.csv")}["other/seed-5"] == "diverged"
    assert len(records(place / "runs.csv")) == 10


def test_one_seed_has_no_interval(tmp_path, capsys, monkeypatch, no_figures):
    monkeypatch.setenv("COLUMNS", "160")
    sweep = write_sweep(tmp_path / "s", [run("base", 1, {20: 2.0}), run("other", 1, {20: 2.25})])
    assert main(["report", str(sweep)]) == 0
    assert "+0.2500 (1 seed)" in capsys.readouterr().out
    text = (sweep / "report/report.md").read_text()
    assert "| other | 1 | 20 | 2.2500 | +0.2500 (1 seed) |" in text
    assert "no interval is given" in text
    assert records(sweep / "report/report.csv")[1]["difference_low"] == ""


def test_csv_holds_the_whole_numbers(tmp_path, no_figures):
    place = write_report(write_sweep(tmp_path / "s", three_seeds()), tmp_path / "out", baseline="other")
    first, second = records(place / "report.csv")
    assert float(first["difference"]) == pytest.approx(-0.3)
    assert float(first["validation/loss mean"]) == pytest.approx(2.1)
    assert int(second["parameters"]) == 1000
    assert [float(r["validation/loss"]) for r in records(place / "runs.csv")] == [2.0, 2.1, 2.2, 2.1, 2.3, 2.8]
    content = json.loads((place / "runs.json").read_text())
    assert content["facts"]["Runs"] == "6 of 6 finished"
    for run, last in zip(content["runs"], [2.0, 2.1, 2.2, 2.1, 2.3, 2.8], strict=True):
        assert run["validation/loss"] == last
        assert run["curves"]["validation/loss"][-1] == [run["tokens"], last]


class Page(HTMLParser):
    """Checks that tags are closed in order; gathers ids and what is referred to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def grid():
    """Two networks at three sizes, with an accuracy and lines to compare it with."""
    runs = []
    for network in ("v2", "v1"):
        for size in (100, 1000, 10000):
            lines = curve({5: 3.0, 10: 2.5, 20: 2.0}, accuracy=0.5, perplexity=7.4)
            values = {"network": network, "documents": size}
            references = {"validation/accuracy": {"oracle": 0.95}}
            runs.append({"variant": f"{network} <{size}>", "seed": 1, "lines": lines, "values": values})
            runs[-1]["references"] = references
    return runs


def test_page_stands_alone(tmp_path):
    axes = {"network": ["v2", "v1"], "documents": [100, 1000, 10000]}
    sweep = write_sweep(tmp_path / "s", grid(), axes=axes, stop={"tokens": 200})
    place = write_report(sweep)
    text = (place / "index.html").read_text()
    found = Page(text)
    assert found.links
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert len(found.ids) == len(set(found.ids))
    assert not re.findall(r"url\((?!['\"]?#)|@import|<script|<link", text)
    assert "#24292f" not in text  # the page's own color, light or dark
    assert "v1 &lt;100&gt;" in text

    markdown = (place / "report.md").read_text()
    names = re.findall(r"\(figures/([\w-]+\.svg)\)", markdown)
    assert {"final.svg", "validation-loss-flops.svg", "validation-accuracy-by-documents.svg"} <= set(names)
    assert found.tags.count("figure") == len(names)
    for name in names:
        ElementTree.parse(place / "figures" / name)
    accuracy = (place / "figures/validation-accuracy-by-documents.svg").read_text()
    assert all(f">{label}</text>" in accuracy for label in ("v2", "v1", "oracle", "100", "1K", "10K"))
    assert "| oracle | validation accuracy | 0.9500 |" in markdown
    assert "**Stop rule**: 200 tokens" in markdown
    assert "perplexity" not in markdown
    assert markdown.index("mm sweep trial.yaml") < markdown.index("## Results")


def test_the_same_runs_give_the_same_figures(tmp_path):
    sweep = write_sweep(tmp_path / "s", [run("base", 1, {20: 2.0}), run("other", 1, {20: 2.25})])
    study = read_study([sweep])
    first, second = (draw(study, summarize(study), looks_of(study=study))[-1] for _ in range(2))
    assert first.name == "final"
    assert first == second


def test_runs_that_differ_in_code_or_hardware_say_so(tmp_path, no_figures):
    other = {"code": {"commit": "f" * 40, "dirty": True}, "gpus": [{"name": "GPU A"}, {"name": "GPU A"}]}
    runs = [run("base", 1, {20: 2.0}), run("other", 1, {20: 2.25}, environment=other)]
    text = (write_report(write_sweep(tmp_path / "s", runs)) / "report.md").read_text()
    assert "commit 0123456789ab (in 1 of 2), commit ffffffffffff with uncommitted changes (in 1 of 2)" in text
    assert "2 x GPU A (in 1 of 2)" in text
    assert "The runs differ in code." in text
    assert "The runs differ in hardware: tokens/s and training times do not compare." in text


def test_resumed_runs_count_once_for_each_commit(tmp_path, no_figures):
    earlier = [
        {**ENVIRONMENT, "started": "2026-01-30T00:00:00+00:00", "code": {"commit": "e" * 40, "dirty": False}}
    ] * 3
    runs = [run("base", 1, {20: 2.0}), run("other", 1, {20: 2.25}, environment={"earlier": earlier})]
    text = (write_report(write_sweep(tmp_path / "s", runs)) / "report.md").read_text()
    assert "**Code**: commit 0123456789ab (in 2 of 2), commit eeeeeeeeeeee (in 1 of 2)" in text
    assert "**Trained**: 2026-01-30 to 2026-01-31" in text
    assert "The runs differ in code." in text


CONFIG = """
seed_everything: {seed}
trainer: {{max_steps: 20}}
model:
  network:
    class_path: mm_lightning.networks.MemoryMosaicConfig
    init_args: {{vocab_size: 258, layers: 1, dim: 16, heads: 2, persistent_dim: {width}}}
data: {{path: somewhere, context_length: 32, global_batch_size: 1, micro_batch_size: 1}}
"""


def test_any_run_folders(tmp_path):
    for name, seed, width, steps in (("a/0", 1, 32, 20), ("a/1", 1, 32, 20), ("a/2", 2, 32, 20), ("b/0", 1, 48, 10)):
        lines = curve({10: 3.0, **({20: 2.0 + int(name[-1])} if steps == 20 else {})})
        config, seconds = CONFIG.format(seed=seed, width=width), 60.0 if steps == 20 else None
        write_run(tmp_path / "runs" / name, lines, config, seconds=seconds)
    study = read_study([tmp_path / "runs"])
    assert study.baseline == "a"
    assert [(r.variant, r.seed, r.name, r.status) for r in study.runs] == [
        ("a", 1, "a/1", "finished"),
        ("a", 2, "a/2", "finished"),
        ("b", 1, "b/0", "unfinished"),
    ]
    assert "a/0 is left out: a/1 is newer" in study.notes[0]
    assert study.runs[2].parameters - study.runs[0].parameters == 3 * 16 * 16  # 16 more of a SwiGLU's width
    assert study.runs[0].training_flops_per_token > 6 * 3 * 16 * 32

    together = read_study([tmp_path / "runs/a/0", tmp_path / "runs/b"])
    assert together.variants == ["a/0", "b"]
    assert read_study([tmp_path / "runs/a", tmp_path / "runs/b"], "b").variants == ["a", "b"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], ["no folder", "nowhere"]),
        (["empty"], ["empty", "no runs"]),
        (["s", "empty"], ["--output"]),
        (["s", "--baseline", "othr"], ["othr", "base, other"]),
    ],
)
def test_mistakes(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_sweep(tmp_path / "s", three_seeds())
    assert main(["report", *args]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(word in message for word in words)


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    sweep = write_sweep(tmp_path / "s", three_seeds())
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"mm-lightning\[report\]"):
        write_report(sweep)


def test_hparams_read_back(tmp_path, no_figures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    sweep = write_sweep(tmp_path / "s", [run("v2", 7, {10: 3.0, 20: 2.5}, values={"bandwidth": "fixed"})])
    write_report(sweep)
    folder = sweep / "v2/seed-7/0"
    metrics = {"validation/loss": 2.25}
    write_run_hparams(folder, {"model.learning_rate": 1.0})  # a resumed run, of which a report has said more
    assert len(list(folder.glob("events*"))) == 1
    write_hparams(folder, {"bandwidth": "adaptive", "seed": 7, "parameters": 1000, "delay": [1, 2]}, metrics)
    assert len(list(folder.glob("events*"))) == 1

    events = EventAccumulator(str(folder)).Reload()
    data = {tag: HParamsPluginData.FromString(content) for tag, content in events.PluginTagToContent("hparams").items()}
    start = data["_hparams_/session_start_info"].session_start_info.hparams
    assert start["bandwidth"].string_value == "adaptive"
    assert start["delay"].string_value == "[1, 2]"
    assert (start["seed"].number_value, start["parameters"].number_value) == (7, 1000)
    names = [info.name.tag for info in data["_hparams_/experiment"].experiment.metric_infos]
    assert names == ["validation/loss"]
    assert [(event.step, event.value) for event in events.Scalars("validation/loss")] == [(20, 2.25)]

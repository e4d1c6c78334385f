"""`mm evaluate` from the command line, on networks that know nothing."""

import csv
import dataclasses
import json
import math
import multiprocessing
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fake_results import network, row, write
from saved_networks import save
from torch.nn import functional as F

from mm_lightning.checkpoint import load_network
from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.evaluation import processes, registry, task
from mm_lightning.evaluation.intervals import t_quantile
from mm_lightning.evaluation.long_documents import Texts, stretches
from mm_lightning.evaluation.loss_by_position import LossByPosition, edges, relative_bins
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.processes import run_processes
from mm_lightning.evaluation.run import EvaluatedModel, Job, fingerprint, run
from mm_lightning.evaluation.samples import Samples
from mm_lightning.experiments.evaluated.estimate_table import EstimateTable
from mm_lightning.experiments.evaluated.evaluation_report import parts
from mm_lightning.experiments.evaluated.load_results import load_results

TEXTS = ["the cat sat on the mat. " * 20, "a long day " * 16, "one, two, three, four; " * 9, "and so on " * 12]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for n, text in enumerate(TEXTS):
        (folder / f"{n}.txt").write_text(text)
    return [str(folder / f"{n}.txt") for n in range(len(TEXTS))]


@pytest.fixture
def evaluate(runs, files, tmp_path, capsys):
    """Runs `mm evaluate` on the named networks; the exit status and what it said."""

    def call(*names, more=(), output="out"):
        given = ["--checkpoint", *(str(runs / name) for name in names)]
        given += [] if "--tasks" in more else ["--tasks", "loss_by_position"]
        given += ["--contexts", "128", "256", "--text", *files, "--device", "cpu", "--output", str(tmp_path / output)]
        status = main(["evaluate", *given, *more])
        return status, capsys.readouterr().err

    return call


def read(path):
    """The content of a results.json without what changes from run to run, and of its samples."""
    found = json.loads((path / "results.json").read_text())
    return found["rows"], [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["v2", "v1", "transformer"])
def test_losses_are_those_of_one_forward_pass(name, runs, evaluate, tmp_path):
    assert evaluate(name)[0] == 0
    rows, samples = read(tmp_path / "out" / f"{name}-0-step1" / "loss_by_position")
    network, _ = load_network(runs / name)
    tokens = [list(text.encode()) for text in TEXTS]
    sequences = [tokens[0][:256], (tokens[1] + tokens[2])[:256]]  # one is long enough, the last alone is too short
    with torch.no_grad():
        logits = [network(torch.tensor([[256, *s[:-1]]]))[0] for s in sequences]
    losses = torch.stack(
        [F.cross_entropy(x, torch.tensor(s), reduction="none") for x, s in zip(logits, sequences, strict=True)]
    ).double()

    def value(metric="loss", **group):
        group = {key.replace("_", " "): item for key, item in group.items()}
        (row,) = [row for row in rows if row["group"] == group and row["metric"] == metric]
        return row

    for context in (128, 256):
        means = losses[:, :context].mean(1)
        assert value(context=context)["value"] == pytest.approx(float(means.mean()), abs=1e-4)
        assert value(context=context)["stderr"] == pytest.approx(float(means.std() / math.sqrt(2)), abs=1e-4)
    assert value(position="33-45")["value"] == pytest.approx(float(losses[:, 32:45].mean()), abs=1e-4)
    assert value(training_context=64)["value"] == pytest.approx(float(losses[:, 32:64].mean()), abs=1e-4)
    assert value(of_the_training_context="2-4")["value"] == pytest.approx(float(losses[:, 128:256].mean()), abs=1e-4)
    rise = losses[:, 181:256].mean(1) - losses[:, 32:64].mean(1)
    found = value("above the training context", position="182-256")
    assert (found["value"], found["stderr"]) == pytest.approx(
        (float(rise.mean()), float(rise.std() / 2**0.5)), abs=1e-4
    )
    assert value("share", sequences="joined of several documents")["value"] == 0.5
    assert [sample["documents"] for sample in samples] == [[0], [1, 2]]


def test_an_interrupted_run_goes_on(evaluate, tmp_path, monkeypatch):
    assert evaluate("v2", "v1", output="whole")[0] == 0
    ask, asked = LossByPosition.ask, []

    def killed(self, model, items):
        for number, record in enumerate(ask(self, model, items)):
            asked.append(record["key"])
            yield record
            if number == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(LossByPosition, "ask", killed)
    status, said = evaluate("v2", "v1")
    assert status == 130
    assert "1 answers are kept" in said
    folder = tmp_path / "out" / "v2-0-step1" / "loss_by_position"
    with open(folder / "samples.jsonl", "a") as file:
        file.write('{"key": "256 tokens of document 1, torn')
    monkeypatch.setattr(LossByPosition, "ask", lambda *a: (asked.append(r["key"]) or r for r in ask(*a)))
    assert evaluate("v2", "v1")[0] == 0
    assert len(asked) == 2 * 2
    for name in ("v2-0-step1", "v1-0-step1"):
        place = f"{name}/loss_by_position"
        assert read(tmp_path / "out" / place) == read(tmp_path / "whole" / place)
    assert len(json.loads((folder / "results.json").read_text())["sessions"]) == 2
    # and once more, with nothing left to do
    assert "already there" in evaluate("v2", "v1")[1]
    assert len(asked) == 2 * 2


def test_two_processes_find_what_one_finds(evaluate, tmp_path, monkeypatch):
    """The second one first, so that the first has nothing to wait for."""
    assert evaluate("v2", output="one")[0] == 0
    assert evaluate("v2", more=["--rank", "1", "--world_size", "2"])[0] == 0
    folder = tmp_path / "out" / "v2-0-step1" / "loss_by_position"
    assert sorted(path.name for path in folder.iterdir()) == ["samples.1.jsonl"]
    (second,) = [json.loads(line)["key"] for line in (folder / "samples.1.jsonl").read_text().splitlines()]
    ask, asked = LossByPosition.ask, []
    monkeypatch.setattr(LossByPosition, "ask", lambda *a: asked.extend(a[2]) or ask(*a))
    assert evaluate("v2", more=["--rank", "0", "--world_size", "2"])[0] == 0
    (first,) = [item.key for item in asked]
    assert sorted(p.name for p in folder.iterdir()) == ["results.json", "samples.jsonl", "settings.json"]
    (rows, samples), (wanted_rows, wanted) = read(folder), read(tmp_path / "one" / "v2-0-step1" / "loss_by_position")
    assert [sample["key"] for sample in samples] == [sample["key"] for sample in wanted] == [first, second]
    assert [row["value"] for row in rows] == pytest.approx([row["value"] for row in wanted_rows], abs=1e-5)


def test_a_launcher_says_the_rank(evaluate, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert evaluate("v2")[0] == 0
    assert [p.name for p in tmp_path.glob("out/*/*/*")] == ["samples.1.jsonl"]


@pytest.mark.slow
def test_real_processes(evaluate, tmp_path):
    assert evaluate("v2", output="one")[0] == 0
    assert evaluate("v2", more=["--processes", "2"])[0] == 0
    rows, wanted = (read(tmp_path / out / "v2-0-step1" / "loss_by_position")[0] for out in ("out", "one"))
    assert [row["value"] for row in rows] == pytest.approx([row["value"] for row in wanted], abs=1e-5)


def test_the_batch_size_changes_nothing(evaluate, tmp_path):
    found = []
    for size in ("1", "8"):
        assert evaluate("v2", more=["--batch_size", size], output=size)[0] == 0
        found.append([row["value"] for row in read(tmp_path / size / "v2-0-step1" / "loss_by_position")[0]])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_tables_and_figures_of_several_networks(evaluate, tmp_path, figures_are_drawn):
    assert evaluate("v2", more=["--names", "mosaic-no-long-term", "--long_term", "off"])[0] == 0
    assert evaluate("v2", "transformer", more=["--names", "mosaic", "baseline"])[0] == 0  # the first is compared with
    report = tmp_path / "out" / "report"
    text = (report / "report.md").read_text()
    names = ["mosaic", "mosaic, long-term memory removed", "baseline"]
    for name in names:
        assert f"| {name} | 2 | 50% | 64 |" in text  # sequences, of which joined, training context
    rows = list(csv.DictReader((report / "numbers.csv").open()))
    losses = {row["network"]: row for row in rows if row["group"] == "context=256"}
    assert set(losses) == set(names)
    assert len({row["value"] for row in losses.values()}) == 3
    assert {row["unit"] for row in losses.values()} == {"nats"}
    for kind in ("png", "svg"):
        assert (report / "figures" / f"loss_by_position.{kind}").stat().st_size > 1000
        assert (report / "figures" / f"loss_by_position-differences.{kind}").stat().st_size > 1000
    # sequence by sequence, so that the difference is known better than the numbers
    with open(report / "tables" / "loss_by_position-differences.csv") as file:
        lines = {line["context"]: line for line in csv.DictReader(file) if line["context"]}
    line, column = lines["256"], "baseline minus mosaic"
    means = [[s["scores"]["256"] for s in read(tmp_path / "out" / n / "loss_by_position")[1]] for n in names[::-2]]
    apart = [a - b for a, b in zip(*means, strict=True)]
    assert float(line[column]) == pytest.approx(sum(apart) / 2, abs=1e-5)
    assert "Differences from mosaic on the same items" in text
    half = 12.706 * abs(apart[0] - apart[1]) / 2
    assert float(line[f"{column} high"]) - float(line[column]) == pytest.approx(half, abs=1e-4)


@dataclasses.dataclass
class Counted(task.Task):
    """More groups than a terminal shows."""

    name = "counted"

    def items(self, model):
        return [task.Item(f"{n}/{k}", {"length": n}) for n in range(50) for k in range(4)]

    def ask(self, model, items):
        return (item.record({"exact_match": item.key.endswith("/0")}) for item in items)


def test_results_are_shown(runs, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(registry.TASKS, "counted", (f"{__name__}:Counted", ""))
    given = ["--checkpoint", str(runs / "v2"), str(runs / "transformer"), "--names", "mosaic", "baseline"]
    given += ["--tasks", "loss_by_position,counted", "--contexts", "128", "--text", *files, "--device", "cpu"]
    assert main(["evaluate", *given, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["task", "group", "metric", "mosaic", "baseline"] in lines
    expected = []
    for name in ("mosaic", "baseline"):
        (row,) = [r for r in read(tmp_path / name / "loss_by_position")[0] if r["group"] == {"context": 128}]
        half = 12.7062 * row["stderr"] if row["count"] == 2 else t_quantile(row["count"] - 1) * row["stderr"]
        ends = f"[{row['value'] - half:.3f},", f"{row['value'] + half:.3f}]"
        expected += [f"{row['value']:.3f}", *ends, f"({row['count']})"]
    assert ["loss_by_position", "context=128", "loss,", "nats/token", *expected] in lines
    assert not [line for line in lines if "position=1-32" in line]  # in the report
    quarter = ["25.0", "[4.6,", "69.9]", "(4)"]  # Wilson's of one of four
    assert ["counted", "length=0", "exact", "match,", "%", *quarter, *quarter] in lines
    assert ["(10", "more", "in", "numbers.csv)"] in [line[:4] for line in lines]
    assert out.index("(10 more") < out.index(str(tmp_path / "report" / "index.html"))
    assert main(["evaluate", *given, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == out  # also where all was there


def test_where_a_network_breaks(tmp_path):
    rows = [row(2.0, 0.1, 3, "loss", **{"training context": 64})]
    for place, rise in (("65-91", 0.02), ("92-128", 0.09), ("129-181", 0.12), ("182-256", 0.05)):
        rows += [row(2 + rise, 0.1, 3, "loss", position=place)]
        rows += [row(rise, 0.1, 3, "above the training context", position=place)]
    rows.append(row(0.25, None, 3, "share", sequences="joined of several documents"))
    rows.append(row(2.0, 0.1, 3, "loss", context=256))
    write(tmp_path, "a", "loss_by_position", rows, network("a", context_length=64))
    write(tmp_path, "b", "loss_by_position", [*rows[:5], *rows[-2:]], network("b", context_length=64))
    tables = (part for part in parts(load_results([tmp_path])) if isinstance(part, EstimateTable))
    found = {table.name: table.block().rows for table in tables}
    loss = "2.000 [1.570, 2.430]"  # Student's t of 2 degrees: 4.303
    assert found["loss-by-position-breaks"] == [
        ["a", "3", "25%", "64", loss, "129 (+0.12)"],
        ["b", "3", "25%", "64", loss, "not up to 128"],
    ]


@pytest.mark.parametrize(
    ("lengths", "trained"), [([128, 256], 64), ([1000], 100), ([4096, 32768], 4096), ([300], None)]
)
def test_bins(lengths, trained):
    bins = edges(lengths, trained)
    assert bins[0] == 0
    assert bins[-1] == lengths[-1]
    assert set(lengths) <= set(bins)
    assert all(high > 1.1 * low for low, high in pairwise(bins[1:]))
    if trained:
        assert {edge for part in relative_bins(trained, lengths[-1]) for edge in part} <= set(bins)


def test_sequences_of_documents():
    parts = [torch.arange(n).numpy() for n in (9, 2, 5, 8, 3, 7, 1, 2)]
    found = stretches(Texts("numbers", parts), 5, 10)
    assert [x.documents for x in found] == [[0], [2], [3], [5], [1, 4]]
    assert found[4].tokens.tolist() == [0, 1, 0, 1, 2]
    assert [x.documents for x in stretches(Texts("numbers", parts), 5, 2)] == [[0], [3]]
    assert stretches(Texts("numbers", parts), 50, 2) == []


@dataclasses.dataclass
class Tallied(task.Task):
    """Each process notes in a file of its own what it is asked."""

    name = "tallied"
    folder: str = ""

    def items(self, model):
        return [task.Item(str(n), {}) for n in range(7)]

    def ask(self, model, items):
        with open(Path(self.folder) / f"{os.getpid()}.txt", "a") as file:
            file.writelines(f"{item.key}\n" for item in items)
        return (item.record({"score": 1}) for item in items)


@pytest.mark.slow
def test_real_processes_ask_each_question_once(runs, tmp_path):
    (tmp_path / "asked").mkdir()
    subject = EvaluatedModel(runs / "v2" / "0" / "checkpoints" / "step=1.ckpt", "v2", {"precision": "32"})
    run_processes(Job([subject], [Tallied(str(tmp_path / "asked"))], tmp_path / "out", device="cpu"), 2)
    parts = sorted(path.read_text().split() for path in (tmp_path / "asked").iterdir())
    assert parts == [["0", "2", "4", "6"], ["1", "3", "5"]]
    assert [sample["key"] for sample in read(tmp_path / "out" / "v2" / "tallied")[1]] == list("0123456")


@dataclasses.dataclass
class Killed(Tallied):
    """The process that is asked about item 3 is killed, once."""

    name = "killed"

    def ask(self, model, items):
        mark = Path(self.folder) / "killed"
        for item in items:
            if item.key == "3" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().ask(model, [item])


@pytest.mark.slow
def test_a_killed_process_is_named_and_its_answers_are_kept(runs, tmp_path):
    (tmp_path / "asked").mkdir()
    subject = EvaluatedModel(runs / "v2" / "0" / "checkpoints" / "step=1.ckpt", "v2", {"precision": "32"})
    job = Job([subject], [Killed(str(tmp_path / "asked"))], tmp_path / "out", device="cpu")
    with pytest.raises(
        UserError, match=r"^process 1 of 2 was killed by SIGKILL, perhaps for lack of memory: .* goes on"
    ):
        run_processes(job, 2)
    run_processes(job, 2)
    asked = [key for path in (tmp_path / "asked").glob("*.txt") for key in path.read_text().split()]
    assert asked.count("1") == 1  # which was answered before
    assert [sample["key"] for sample in read(tmp_path / "out" / "v2" / "killed")[1]] == list("0123456")


def test_what_a_process_said_before_it_ended():
    for said in ("a mistake", None):
        end, other = multiprocessing.Pipe(duplex=False)
        if said:
            other.send(said)
        other.close()
        assert processes._mistake(end) == said


@dataclasses.dataclass
class Nothing(task.Task):
    """A task without settings."""

    name = "nothing"

    def items(self, model):
        return [task.Item(str(n), {}) for n in range(3)]

    def ask(self, model, items):
        return (item.record({"score": 1}) for item in items[1:])


@dataclasses.dataclass
class Failing(task.Task):
    """A task that fails before its first answer, unless told otherwise."""

    name = "failing"
    fail: ClassVar[bool] = True
    limit: int | None = None

    def items(self, model):
        return [task.Item(str(n), {}) for n in range(self.limit or 3)]

    def ask(self, model, items):
        if self.fail:
            raise UserError("no room left")
        return (item.record({"hit": True}) for item in items)


def test_a_failed_task_blocks_no_folder_and_no_table(evaluate, runs, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.TASKS, "failing", (f"{__name__}:Failing", ""))
    given = ["evaluate", "--checkpoint", str(runs / "v2"), "--contexts", "128", "--text", *files, "--device", "cpu"]
    given += ["--output", str(tmp_path), "--tasks", "loss_by_position,failing", "--limit"]
    assert main([*given, "2"]) == 2
    out, err = capsys.readouterr()
    assert "no room left" in err
    assert "context=128" in out  # of what was finished
    assert (tmp_path / "report" / "index.html").exists()
    monkeypatch.setattr(Failing, "fail", False)
    given[-2] = "failing"
    given = [word for word in given if word not in ("--contexts", "128", "--text", *files)]
    assert main([*given, "1k"]) == 0  # other questions: the folder holds no answer
    assert json.loads((tmp_path / "v2-0-step1" / "failing" / "results.json").read_text())["network"]["items"] == 1024


def test_all_data_are_looked_for_first(runs, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LossByPosition, "ask", lambda *a: pytest.fail("asked before all data were looked for"))
    given = ["evaluate", "--checkpoint", str(runs / "v2"), str(runs / "transformer"), "--contexts", "128"]
    given += ["--text", *files, "--device", "cpu", "--output", str(tmp_path / "out"), "--limit", "2"]
    given += ["--tasks", "loss_by_position,niah_single_2", "--essays", str(tmp_path / "nowhere")]
    assert main(given) == 2
    assert "name other .txt files (--essays)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_loaded_once(evaluate, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "mm_lightning.evaluation.model.load_weights", lambda network, path: loaded.append(path.parents[2].name)
    )
    assert evaluate("v2", "transformer")[0] == 0
    assert loaded == ["v2", "transformer"]


def test_seconds_add_up(tmp_path):
    samples = Samples(tmp_path / "x")
    for seconds in (2.0, 3.0):
        samples.claim({"task": "a"}, {"started": "2026-01-01T00:00:00+00:00"})
        samples.close_session(seconds)
    samples.claim({"task": "a"}, {"started": "2026-01-01T00:00:00+00:00"})  # and is killed
    (tmp_path / "x" / "samples.jsonl").write_text('{"key": "1"}\n')
    os.utime(tmp_path / "x" / "samples.jsonl", (1767225607, 1767225607))  # 7 s after it started
    samples.claim({"task": "a"}, {"started": "2026-01-02T00:00:00+00:00"})
    samples.close_session(1.0)
    assert [session["seconds"] for session in samples.sessions()] == [2.0, 3.0, 7.0, 1.0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "loss_by_positon"], "there is no task 'loss_by_positon': did you mean loss_by_position?"),
        (["--tasks", "nothing"], "contexts is for none of the tasks nothing"),
        (["--contexts", "4q"], "contexts takes whole numbers, such as 4096 or 4k, got '4q'"),
        (["--contexts", "4k", "64k"], "not enough for a sequence of 65,536"),
        (["--contexts", "8"], "begin with 64 tokens"),
        (["--limit", "0"], "limit takes a whole number of at least 1"),
        (["--text", "nowhere.txt"], "there is no file or folder nowhere.txt"),
        (["--checkpoint", "nowhere"], "there is no checkpoint or run folder nowhere"),
        (["--names", "a", "b"], "--names has 2 for 1 checkpoints"),
        (["--names", "../a"], "cannot be a folder's name"),
        (["--processes", "0"], "processes takes a whole number of at least 1"),
        (["--batch_size", "0"], "batch_size takes a whole number of at least 1"),
        (["--rank", "2", "--world_size", "2"], "rank must be below world_size 2"),
        (["--device", "quantum"], "there is no device 'quantum'"),
        (["--precision", "64"], "64"),
        (["--contxts", "4k"], "did you mean --contexts?"),
    ],
)
def test_mistakes(evaluate, more, message, monkeypatch):
    monkeypatch.setitem(registry.TASKS, "nothing", (f"{__name__}:Nothing", ""))
    status, said = evaluate("v2", more=more)
    assert status == 2
    assert message in said.splitlines()[-1]


def test_a_mistake_leaves_nothing_behind(evaluate, tmp_path):
    """The same command without it needs no other folder."""
    status, said = evaluate("v2", more=["--text", "nowhere.txt"])
    assert (status, said.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "report").mkdir(parents=True)
    (tmp_path / "out" / "report" / "mine.md").write_text("mine")
    status, said = evaluate("v2")
    assert (status, said.count("\n")) == (2, 1)
    assert "report" in said
    assert "has no report.md" in said
    assert [p.read_text() for p in (tmp_path / "out").rglob("*.md")] == ["mine"]


def test_answers_stay_where_beginning_anew_fails_without_one(evaluate, tmp_path):
    assert evaluate("v2")[0] == 0
    folder = tmp_path / "out" / "v2-0-step1" / "loss_by_position"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert evaluate("v2", more=["--overwrite", "--text", "nowhere.txt"])[0] == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_long_term_memory_to_remove(evaluate):
    status, said = evaluate("v1", more=["--long_term", "off"])
    assert status == 2
    assert "no long-term memory to remove" in said


def test_other_settings_than_trained_with(evaluate, runs, files, tmp_path):
    """A transformer with YaRN, beside itself as it was trained."""
    stretched = {"yarn_factor": 4, "yarn_context": 64}
    assert evaluate("transformer")[0] == 0
    assert evaluate("transformer", more=["--network", json.dumps(stretched)])[0] == 0
    names = ["transformer-0-step1", "transformer-0-step1-yarn_factor4-yarn_context64"]
    networks = {network.name: network for network in load_results([tmp_path / "out"]).networks}
    assert networks.keys() == set(names)
    assert [networks[name].about.get("settings") for name in names] == [None, stretched]
    trained, tokenizer = load_network(runs / "transformer")
    network = dataclasses.replace(trained.config, **stretched).build().eval()
    network.load_state_dict(trained.state_dict())
    task, model = LossByPosition([128, 256], text=files), Model(network, tokenizer, 64)
    records = {record["key"]: record["scores"] for record in task.ask(model, task.items(model))}
    for name, same in zip(names, (False, True), strict=True):
        for record in Samples(tmp_path / "out" / name / "loss_by_position").read().values():
            assert (record["scores"] == pytest.approx(records[record["key"]], abs=1e-5)) == same


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("transformer", {"dim": 32}, "dim of"),
        ("v2", {"yarn_factor": 4}, "yarn_factor of"),
        ("transformer", {"yarn_factor": 4}, "yarn_factor and yarn_context go together"),
        ("transformer", {"rope_base": "many"}, "rope_base"),
    ],
)
def test_settings_that_cannot_be_given_after_training(evaluate, name, settings, message):
    status, said = evaluate(name, more=["--network", json.dumps(settings)])
    assert (status, said.count("\n")) == (2, 1)
    assert message in said


def test_other_settings_and_other_weights_are_not_continued(evaluate, runs, tmp_path):
    assert evaluate("v2")[0] == 0
    status, said = evaluate("v2", more=["--limit", "1"])
    assert status == 2
    assert "answers to something else (settings.limit 32, not 1)" in said
    status, said = evaluate("v1", more=["--names", "v2-0-step1"])
    assert status == 2
    assert "network.weights" in said
    assert evaluate("v1", more=["--names", "v2-0-step1", "--overwrite"])[0] == 0
    assert len(read(tmp_path / "out" / "v2-0-step1" / "loss_by_position")[1]) == 2
    (tmp_path / "out" / "v2-0-step1" / "loss_by_position" / "results.json").unlink()
    with open(tmp_path / "out" / "v2-0-step1" / "loss_by_position" / "samples.jsonl", "a") as file:
        file.write("{damaged}\n")
    status, said = evaluate("v1", more=["--names", "v2-0-step1"])
    assert status == 2
    assert "samples.jsonl, line 3 is damaged" in said


def test_every_byte_of_small_weights_counts(tmp_path):
    path = tmp_path / "weights"
    found = set()
    for place in range(4):
        path.write_bytes(bytes(place) + b"x" + bytes(3 - place))
        found.add(fingerprint(path))
    assert len(found) == 4


def test_gathered_records_are_in_the_order_of_the_items(tmp_path):
    samples = Samples(tmp_path)
    for rank, keys in enumerate(("ca", "db")):
        with samples.writer(rank, 2) as write:
            for key in keys:
                write({"key": key})
    assert [record["key"] for record in samples.gather("abcd", samples.read())] == list("abcd")
    assert [json.loads(line)["key"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == list("abcd")


def test_a_network_without_its_run_folder(tmp_path, capsys):
    path, _ = save("v2", tmp_path / "alone")
    given = ["--checkpoint", str(path), "--tasks", "loss_by_position", "--output", str(tmp_path / "out")]
    assert main(["evaluate", *given, "--device", "cpu"]) == 2
    assert "lies in no run folder that says what data" in capsys.readouterr().err


def test_a_task_must_answer_everything(runs, tmp_path):
    job = Job(
        [EvaluatedModel(runs / "v2" / "0" / "checkpoints" / "step=1.ckpt", "v2")], [Nothing()], tmp_path, device="cpu"
    )
    with pytest.raises(ValueError, match="nothing left 1 items without an answer, the first '0'"):
        run(job)


def test_validation_documents_of_the_run(tmp_path, tokenizer, capsys):
    """A sequence of the run's own data begins as a document of it does."""
    (tmp_path / "text").mkdir()
    for n in range(12):
        (tmp_path / "text" / f"{n}.txt").write_text(f"text {n} is a document. " * 40)
    data = tmp_path / "data"
    options = ["--output", str(data), "--validation_fraction", "0.5", "--progress", "false", "--workers", "1"]
    assert main(["data", "prepare", str(tmp_path / "text"), *options]) == 0
    path, network = save("v2", tmp_path / "run" / "0" / "checkpoints")
    (path.parent.parent / "config.yaml").write_text(json.dumps({"data": {"path": str(data)}}))
    items = LossByPosition(contexts=[128], limit=3).items(Model(network, tokenizer, checkpoint=path))
    assert len(items) == 3
    assert {item.group["documents"] for item in items} == {"whole"}
    for item in items:
        text = tokenizer.decode(item.content[1].tokens.tolist())
        number = text.split()[1]
        assert text == (f"text {number} is a document. " * 40)[:128]

"""Benchmarks as tasks: the same for any number of processes and any batch, interrupted runs, and what is refused."""

import json
import pickle
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from benchmark_documents import EVERYTHING, questions, write
from byte_networks import build

from mm_lightning.cli import main
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.evaluation.model import Model
from mm_lightning.evaluation.persistent.benchmark_task import CUT
from mm_lightning.evaluation.registry import find_task


@pytest.fixture(scope="module")
def network():
    return build("v2")


def asked(network, task, batch_size=4, part=slice(None)):
    model = Model(network, load_tokenizer("bytes"), 512, batch_size=batch_size)
    items = task.items(model)
    return {record["key"]: record for record in task.ask(model, items[part])}, [item.key for item in items]


def test_records_depend_on_nothing_but_the_question(network, data):
    task = find_task("arc_easy")(data_dir=str(data), fewshot=0)
    whole, keys = asked(network, task)
    assert keys == [f"arc_easy/{n}" for n in range(7)]
    parts = [
        asked(network, task, batch_size, part)[0] for batch_size, part in ((1, slice(0, 7, 2)), (8, slice(1, 7, 2)))
    ]
    for key, record in (parts[0] | parts[1]).items():
        assert record["scores"] == whole[key]["scores"]
        for (one, _), (other, _) in zip(record["answers"], whole[key]["answers"], strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    record = whole["arc_easy/3"]
    assert record["prompt"] == "Question: Which is 3?\nAnswer:"
    assert record["asked"] == [" one", " a 9", " three of them", " é"]
    assert record["reference"] == 3
    best = max(range(4), key=lambda n: record["answers"][n][0])
    assert record["scores"]["acc"] == (best == 3)


def test_drawn_examples_do_not_depend_on_who_asks(network, data):
    task = find_task("nq_open")(data_dir=str(data), max_length=0)
    task.tasks()["nq_open"].config.generation_kwargs["max_gen_toks"] = 3
    whole, _ = asked(network, task)
    last, _ = asked(network, task, 1, slice(2, 3))
    assert last["nq_open/2"] == whole["nq_open/2"]
    prompt = whole["nq_open/2"]["prompt"]
    assert prompt.startswith("Answer these questions:\n\nQ: who was the 1")
    assert prompt.count("\nA: Anna 1") == 5
    assert prompt.endswith("\nQ: who was the 2th?\nA:")
    other, _ = asked(network, find_task("nq_open")(data_dir=str(data), seed=1, max_length=8), 1, slice(2, 3))
    assert other["nq_open/2"]["prompt"] != prompt
    assert other["nq_open/2"]["tokens_cut"] > 100
    rows = task.rows(list(other.values()))
    assert [row.value for row in rows if row.metric == CUT] == [1.0]


def test_settings_make_the_task_again(data, tmp_path):
    task = find_task("arc_easy")(data_dir=str(data), limit=3)
    settings = task.settings()
    again = find_task("arc_easy")(**{name: value for name, value in settings.items() if name != "version"})
    assert again.limit == 3
    assert pickle.loads(pickle.dumps(task)) == task
    write(tmp_path / "data" / "ai2_arc" / "ARC-Easy", "test", questions(6))
    other = find_task("arc_easy")(data_dir=str(tmp_path / "data"), limit=3).settings()
    assert {name for name in settings if settings[name] != other[name]} == {"data_dir", "data_hash"} - (
        {"data_dir"} if data.name == "data" else set()
    )
    with pytest.raises(UserError, match="hash"):
        find_task("arc_easy")(data_dir=str(tmp_path / "data"), data_hash=settings["data_hash"]).settings()


def test_what_is_refused(network, data, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--run_code"):
        find_task("humaneval_plus")()
    with pytest.raises(UserError, match="limit"):
        find_task("arc_easy")(limit=0)
    with pytest.raises(
        UserError, match=r"train documents of allenai/ai2_arc \(ARC-Easy\) into .*ARC-Easy/train\.jsonl"
    ):
        find_task("arc_easy")(data_dir=str(data), fewshot=1).settings()
    with pytest.raises(UserError, match="no documents for examples"):
        find_task("race_high")(data_dir=str(data), fewshot=1).settings()
    rows = questions(4)
    rows[2]["answerKey"] = "E"
    write(tmp_path / "ai2_arc" / "ARC-Easy", "test", rows)
    with pytest.raises(UserError, match=r"arc_easy: .*ARC-Easy/test\.jsonl, row 3 cannot be asked"):
        asked(network, find_task("arc_easy")(data_dir=str(tmp_path)))
    for changes, message in (
        ({"question": None}, "row 2: 'question' is null"),
        ({"choices": {"text": ["a", "", "c", "d"], "label": list("ABCD")}}, "row 2: an answer to choose is empty"),
    ):
        rows = questions(4)
        rows[1] |= changes
        write(tmp_path / "ai2_arc" / "ARC-Easy", "test", rows)
        with pytest.raises(UserError, match=message):
            asked(network, find_task("arc_easy")(data_dir=str(tmp_path)))
    piqa = {"goal": "Eat", "sol1": "bread", "sol2": "sand", "label": 0}
    for changes, message in (
        ({"label": -1}, "right answer is -1, not one of"),
        ({"sol2": ""}, "answer to choose"),
    ):
        write(tmp_path / "piqa", "validation", [piqa, {**piqa, **changes}])
        with pytest.raises(UserError, match=f"piqa: .*validation.jsonl, row 2: .*{message}"):
            asked(network, find_task("piqa")(data_dir=str(tmp_path)))
    write(tmp_path / "ai2_arc" / "ARC-Easy", "test", [{"text": "no question"}])
    with pytest.raises(UserError, match=r"ARC-Easy/test\.jsonl, row 1 \(UndefinedError: 'question' is undefined\)"):
        asked(network, find_task("arc_easy")(data_dir=str(tmp_path)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match=r"race_high needs ehovy/race .* --data_dir DIR, .* DIR/race/high/test\.jsonl"):
        find_task("race_high")().tasks()


@pytest.mark.parametrize(
    ("name", "place", "field", "value", "message"),
    [
        ("hellaswag", "hellaswag/validation", "ctx_b", None, "row 3, where 'ctx_b' is null"),
        ("hellaswag", "hellaswag/validation", "endings", ["a", None, "c", "d"], "row 3, where 'endings' has a null"),
        ("hellaswag", "hellaswag/validation", "ctx_b", ..., r"row 1 \(KeyError: 'ctx_b'\)"),
        ("race_middle", "race/middle/test", "question", None, "row 3, where 'question' is null"),
        ("race_middle", "race/middle/test", "options", ["a", None], "row 3, where 'options' has a null"),
        ("race_middle_questions", "race/middle/test", "answer", None, "row 3, where 'answer' is null"),
        ("race_middle", "race/middle/test", "answer", ..., r"row 1 \(KeyError: 'answer'\)"),
        ("race_high", "race/high/test", "problems", "[{'question': None}]", r"row 3: a null in 'question'"),
    ],
)
def test_nulls_and_missing_fields_are_named(name, place, field, value, message, tmp_path):
    ((_, _, documents),) = EVERYTHING[name.removesuffix("_questions")]
    rows = [dict(documents[0]) for _ in range(3)]  # of one article
    for row in rows if value is ... else rows[2:]:
        row[field] = value
        if value is ...:
            del row[field]
    path = write(tmp_path / Path(place).parent, Path(place).name, rows)
    with pytest.raises(UserError, match=f"{name} cannot use the documents of {path}.*{message}"):
        find_task(name)(data_dir=str(tmp_path)).tasks()


def test_an_unreachable_hub_is_asked_once(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def no_answer(self, name, timeout):
        asked.append(timeout)
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_answer)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match="arc_easy needs allenai/ai2_arc from the Hub"):
        find_task("arc_easy")().tasks()
    assert asked == [5]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.interfaces
def test_a_run_goes_on_where_it_was(runs, data, tmp_path, capsys):
    command = ["evaluate", "--checkpoint", str(runs / "v2"), "--tasks", "arc_easy", "--data_dir", str(data)]
    command += ["--output", str(tmp_path), "--device", "cpu"]
    main(command)
    folder = tmp_path / "v2-0-step1" / "arc_easy"
    whole = json.loads((folder / "results.json").read_text())["rows"]
    assert {row["metric"]: row["count"] for row in whole} == {"acc": 7, "acc_norm": 7}
    (folder / "results.json").unlink()
    lines = (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "samples.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])
    main(command)
    assert "7 items, 4 already answered" in capsys.readouterr().err
    assert json.loads((folder / "results.json").read_text())["rows"] == whole
    assert main([*command, "--fewshot", "1"]) == 2
    assert "train documents" in capsys.readouterr().err

"""Local data: where they lie, and what is refused."""

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

import pyarrow
from benchmark_documents import write
from datasets import Dataset
from pyarrow import parquet

from mm_lightning.errors import UserError
from mm_lightning.evaluation.persistent.code import CodeEval, load_metric, passes
from mm_lightning.evaluation.persistent.data import digest, find_files, read
from mm_lightning.evaluation.persistent.race import articles, questions
from mm_lightning.evaluation.persistent.squad import exact_and_f1

ROWS = [{"a": "x", "b": 1}, {"a": None, "b": 2.5}]


def test_layouts_of_repositories(tmp_path):
    with pytest.raises(
        UserError, match=r"put the test documents of you/things \(small\) into .*things/small/test\.jsonl"
    ):
        find_files(tmp_path, "you/things", "small", "test")
    for place in ("things/small", "plain", "plain2/data", "plain3/plain3"):
        path = write(tmp_path / place, "test", ROWS)
        name, _, configuration = place.partition("/")
        assert find_files(tmp_path, f"you/{name}", "small" if configuration == "small" else None, "test") == [path]
    table = pyarrow.Table.from_pylist(ROWS)
    for n in (1, 0):
        (tmp_path / "shards").mkdir(exist_ok=True)
        parquet.write_table(table, tmp_path / "shards" / f"test-0000{n}-of-00002.parquet")
    found = find_files(tmp_path, "you/shards", None, "test")
    assert [path.name[:10] for path in found] == ["test-00000", "test-00001"]
    assert read({"test": list(map(str, found))})["test"].to_list() == ROWS * 2
    (tmp_path / "list.json").write_text('[{"a": "x"}]', encoding="utf-8")
    assert read({"test": [str(tmp_path / "list.json")]}, version=1)["test"].to_list() == [{"a": "x"}]
    (tmp_path / "rows.json").write_bytes(b'\xef\xbb\xbf\n{"a": "x"}\r\n\n{"a": "y"}\n \n')
    assert read({"test": [str(tmp_path / "rows.json")]})["test"].to_list() == [{"a": "x"}, {"a": "y"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": 1', r"row 2: not JSON"),
        ('{"a": 1}\n\n{"b": 1}\n', r"row 3 has no field 'a'"),
        ('{"a": 1}\n{"a": 2}\n{"a": "2"}\n', r"row 3: 'a' is str, in the first row int"),
        ('{"a": 1}\n[1]\n', r"row 2 is not an object"),
        ('{"a": [1]}\n{"a": ["x"]}\n', r"rows are not alike"),
        ("", "is empty"),
    ],
)
def test_bad_rows_are_named(text, message, tmp_path):
    (tmp_path / "test.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read({"test": [str(tmp_path / "test.jsonl")]})


def test_digest_is_of_the_content(tmp_path):
    one, other = (write(tmp_path / name, "test", ROWS) for name in ("one", "other"))
    assert digest([one]) == digest([other]) != digest([one, other])


def test_questions_of_an_article():
    rows = [
        {"article": article, "question": f"Q{n}?", "options": list("wxyz"), "answer": "C", "example_id": str(n)}
        for n, article in enumerate(("one", "one", "two"))
    ]
    found = articles(Dataset.from_list(rows))
    assert found["article"][:] == ["one", "two"]
    assert [problems.count("question") for problems in found["problems"]] == [2, 1]
    assert articles(found).to_list() == found.to_list()  # in this form already
    alone = questions(found)
    assert alone["article"][:] == ["one", "one", "two"]
    assert [problems[15:17] for problems in alone["problems"]] == ["Q0", "Q1", "Q2"]


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        (" The  Dog.", ["a dog"], 100, 100),
        ("big dog", ["dog", "the big red dog"], 0, 80),  # 2 * 2 / (2 + 3)
        ("dog dog", ["dog"], 0, 200 / 3),
        ("", [], 100, 100),
        ("the", [], 100, 100),
        ("unanswerable", [], 0, 0),
        ("", ["dog"], 0, 0),
    ],
)
def test_squad_metric_on_hand_made_answers(answer, references, exact, f1):
    assert exact_and_f1(answer, references) == (exact, pytest.approx(f1))


def test_programs(monkeypatch):
    assert passes("def f():\n    return 1\nassert f() == 1")
    for program in ("assert False", "def f(:", "raise SystemExit(0)", "import os; os._exit(0)", "bytearray(8 << 30)"):
        assert not passes(program)
    assert not passes("import os\nassert len(os.environ) > 5")  # nothing of ours is seen
    monkeypatch.setattr("mm_lightning.evaluation.persistent.code.SECONDS", 0.3)
    assert not passes("while True: pass")
    tests = ["assert f() == 1"] * 2
    found, _ = load_metric("code_eval").compute(tests, [["def f(): return 1"], ["def f(): return 2"]], [1])
    assert found == {"pass@1": 0.5}
    with pytest.raises(ValueError, match="pass@1"):
        CodeEval().compute([], [], [2])
    with pytest.raises(ValueError, match="rouge"):
        load_metric("rouge")

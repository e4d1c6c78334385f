import dataclasses
from typing import ClassVar

import pytest

from mm_lightning.errors import UserError
from mm_lightning.evaluation.measurement import Measurement
from mm_lightning.evaluation.metrics import Metric
from mm_lightning.evaluation.registry import GROUPS, find_task, task_names
from mm_lightning.evaluation.task import Item, Task


@dataclasses.dataclass
class Hits(Task):
    name = "hits"
    metrics: ClassVar = {"loss": Metric("loss", "nats", False)}

    def items(self, model):
        return []

    def ask(self, model, items):
        return iter(())


def records(*hits):
    return [Item(str(n), {"length": 4}).record({"hit": hit, "loss": n / 2}) for n, hit in enumerate(hits)]


def test_means_standard_errors_and_units():
    items = [Item(str(n), {"length": 4 if n < 4 else 8}) for n in range(5)]
    rows = Hits().rows([item.record({"hit": n % 2 == 0, "loss": n / 2}) for n, item in enumerate(items)])
    assert [(row.group["length"], row.metric, row.value, row.count, row.unit) for row in rows] == [
        (4, "hit", 0.5, 4, "share"),  # because it is true or false
        (4, "loss", 0.75, 4, "nats"),
        (8, "hit", 1.0, 1, "share"),
        (8, "loss", 2.0, 1, "nats"),
    ]
    # of 1, 0, 1, 0: the deviations are 1/2 each, so their variance is 4/4 / 3
    assert rows[0].stderr == pytest.approx((1 / 3 / 4) ** 0.5)
    assert (rows[0].low, rows[0].high) == pytest.approx((0.15, 0.85), abs=5e-3)  # Wilson's of 2 of 4
    assert (rows[2].stderr, rows[2].high) == (None, 1.0)
    assert (rows[3].stderr, rows[3].low) == (None, None)


def test_differences_are_paired():
    one, other = (Hits().measurements(records(*hits)) for hits in ((True, False, True), (True, True, True, False)))
    hit = other[0].difference(one[0])
    assert (hit.value, hit.count, hit.unit) == (pytest.approx(1 / 3), 3, "share")
    assert hit.low < 1 / 3 < hit.high
    loss = other[1].difference(one[1])
    assert (loss.value, loss.low, loss.high, loss.count) == (0, 0, 0, 3)
    assert Measurement({}, one[0].metric, {"x": 1.0}).difference(one[0]) is None
    same, wide = ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 4.0, "c": 9.0})
    weighted = Measurement({}, one[1].metric, {key: x + 0.5 for key, x in same.items()}, {"a": 1.0, "b": 3.0})
    row = weighted.difference(Measurement({}, one[1].metric, same))
    assert (row.value, row.low, row.high) == pytest.approx((0.5, 0.5, 0.5))  # whatever the weights of equal differences
    row = weighted.difference(Measurement({}, one[1].metric, wide))
    assert row.value == pytest.approx((0.5 * 1 - 1.5 * 3) / 4)
    # deviations 1.5 * 1 / 2 and 0.5 * 3 / 2 from the mean -1, so a standard error of 0.75, 12.71 times
    assert row.high - row.low == pytest.approx(2 * 12.7062 * 0.75, rel=1e-5)
    percent = [Measurement({}, Metric("f1", "percent"), {"a": x, "b": 50.0}).row() for x in (0.0, 100.0)]
    assert [row.value for row in percent] == [25.0, 75.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bananas", "there is no task 'bananas'"),
        ("rulr", "did you mean ruler"),
        ("obqa", "did you mean openbookqa"),
        ("squad", "did you mean squadv2 or qa_1"),
        ("SQuAD", "qa_1 or squad_completion"),
    ],
)
def test_an_unknown_task(name, words):
    with pytest.raises(UserError) as error:
        find_task(name)
    assert words in str(error.value)
    assert "redocred?" not in str(error.value)


def test_ruler_names_its_tasks():
    assert task_names(["ruler"]) == [*GROUPS["new_knowledge"], *GROUPS["needles"]]


def test_a_folder_of_texts_is_its_files_in_order(tmp_path, capsys):
    from mm_lightning.data.tokenizer import load_tokenizer
    from mm_lightning.evaluation.long_documents import of_files

    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n')
    (tmp_path / "d.pdf").write_text("no text")
    (tmp_path / "nothing.txt").write_text("")  # passed over, as by `mm data prepare`
    found = of_files([str(tmp_path)], load_tokenizer("bytes"))
    assert [bytes(part.tolist()) for part in found.parts] == [b"one", b"two", b"three"]
    assert "are left out: 1 .pdf" in capsys.readouterr().err
    for places in (["*.txt", "c.jsonl"], ["[a-c].*"]):  # as quoted for a shell
        of_pattern = of_files([str(tmp_path / place) for place in places], load_tokenizer("bytes"))
        assert [bytes(part.tolist()) for part in of_pattern.parts] == [b"one", b"two", b"three"]
    with pytest.raises(UserError, match=r"nothing\.txt is empty"):
        of_files([str(tmp_path / "nothing.txt")], load_tokenizer("bytes"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to read in"):
        of_files([str(tmp_path / "empty")], load_tokenizer("bytes"))


def test_json_lines_are_documents(tmp_path):
    from mm_lightning.data.tokenizer import load_tokenizer
    from mm_lightning.evaluation.long_documents import of_files

    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    found = of_files([str(tmp_path / "x.jsonl")], load_tokenizer("bytes"))
    assert [bytes(part.tolist()) for part in found.parts] == [b"one", b"two"]
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    with pytest.raises(UserError, match="row 2: no key 'text'; it has body"):
        of_files([str(tmp_path / "x.jsonl")], load_tokenizer("bytes"))

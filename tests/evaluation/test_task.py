import pytest

from mm_lightning.errors import UserError
from mm_lightning.evaluation.task import Item, Result, Row, find_task, mean_rows, table


def test_means_and_standard_errors():
    items = [Item(str(n), {"length": 4 if n < 4 else 8}) for n in range(5)]
    records = [item.record({"hit": n % 2 == 0, "loss": n / 2}) for n, item in enumerate(items)]
    rows = mean_rows(records)
    assert [(row.group["length"], row.metric, row.value, row.count) for row in rows] == [
        (4, "hit", 0.5, 4),
        (4, "loss", 0.75, 4),
        (8, "hit", 1.0, 1),
        (8, "loss", 2.0, 1),
    ]
    # of 1, 0, 1, 0: the deviations are 1/2 each, so their variance is 4/4 / 3
    assert rows[0].stderr == pytest.approx((1 / 3 / 4) ** 0.5)
    assert rows[2].stderr is None


def test_a_table_of_two_networks():
    first = Result("a", [Row({"length": 4}, "hit", 0.5, 0.25, 4)], {})
    second = Result("b", [Row({"length": 4}, "hit", 1, None, 1), Row({"length": 8}, "hit", 0, 0, 3)], {})
    assert table([first, second]).splitlines() == [
        "| length | metric | a | b |",
        "| --- | --- | ---: | ---: |",
        "| 4 | hit | 0.5000 ± 0.2500 (4) | 1.0000 (1) |",
        "| 8 | hit |  | 0.0000 ± 0.0000 (3) |",
    ]


def test_an_unknown_task():
    with pytest.raises(UserError, match="there is no task 'bananas'"):
        find_task("bananas")


def test_a_folder_of_texts_is_its_files_in_order(tmp_path):
    from mm_lightning.data.tokenizer import load_tokenizer
    from mm_lightning.evaluation.long_documents import of_files

    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.md").write_text("no text")
    found = of_files([str(tmp_path)], load_tokenizer("bytes"))
    assert [bytes(part.tolist()) for part in found.parts] == [b"one", b"two"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without"):
        of_files([str(tmp_path / "empty")], load_tokenizer("bytes"))

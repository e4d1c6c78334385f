import json

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")


def choices(n):
    return {"text": ["one", f"a {n * n}", "three of them", "é"], "label": list("ABCD")}


def questions(count):
    """Documents of ARC."""
    return [
        {"id": str(n), "question": f"Which is {n}?", "choices": choices(n), "answerKey": "ABCD"[n % 4]}
        for n in range(count)
    ]


def people(count, start=0):
    """Documents of NQ."""
    return [{"question": f"who was the {n}th", "answer": [f"Anna {n}", "A"]} for n in range(start, start + count)]


def write(folder, split, rows):
    """Writes DATA/.../SPLIT.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with ARC and NQ."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "ai2_arc" / "ARC-Easy", "test", questions(7))
    write(folder / "nq_open", "validation", people(3))
    write(folder / "nq_open", "train", people(12, 100))
    return folder

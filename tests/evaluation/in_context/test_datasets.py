"""Data sets as published, hand-made ones, and what is wrong with a file."""

import json
from collections import Counter

import pytest

from mm_lightning.errors import UserError
from mm_lightning.evaluation.in_context.custom import read_dataset
from mm_lightning.evaluation.in_context.datasets import READERS
from mm_lightning.evaluation.in_context.files import read_table
from mm_lightning.evaluation.in_context.in_context_task import Tacred

# Classes, demonstrations and questions: the published counts, less what the readers say they leave out.
COUNTS = {
    "banking77": (77, 10003, 3080),
    "goemotions": (28, 36308, 4590),
    "semeval2010_task8": (18, 7999, 2716),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_files(data, name):
    found = READERS[name](data / name)
    assert (len(found.labels), len(found.train), len(found.test)) == COUNTS[name]
    assert all(e.question.startswith(found.asks) and "\n" not in e.question + e.lead for e in found.train + found.test)


def test_redocred(data):
    found = READERS["redocred"](data / "redocred")
    counts = Counter(example.label for example in found.train)
    assert len(found.labels) == 41
    assert min(counts.values()) >= 16  # shots
    assert counts["located in the administrative territorial entity"] == 611
    assert found.train[0].lead == 'the relation between Wilfried " Willi " Schneider and 13 March 1963 is:'
    assert found.train[0].label == "date of birth"
    assert not [label for label in found.labels if label[1:].isdigit()]


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_goemotions_keeps_single_labels(tmp_path):
    write(tmp_path, {"labels.txt": "joy\nfear\n", "train.tsv": 'a "b\t0\tx\nc\t0,1\ty\n', "test.tsv": "d\t1\tz\n"})
    found = READERS["goemotions"](tmp_path)
    assert [(e.question, e.label) for e in found.train + found.test] == [
        ('comment: a "b', "joy"),
        ("comment: d", "fear"),
    ]
    assert found.labels == ("joy", "fear")


def test_semeval(tmp_path):
    block = '{}\t"The <e1>axe</e1> hit the <e2>old tree</e2>."\r\n{}\r\nComment:\r\n\r\n'
    train = "".join(
        block.format(n, label) for n, label in enumerate(["A(e1,e2)", "Other", "A(e1,e2)", "Other", "Rare"])
    )
    write(
        tmp_path, {"TRAIN_FILE.TXT": train, "TEST_FILE_FULL.TXT": block.format(9, "Other") + block.format(10, "Rare")}
    )
    found = READERS["semeval2010_task8"](tmp_path)
    assert found.labels == ("A(e1,e2)", "Other")
    assert len(found.test) == 1
    assert found.train[0].question == "sentence: The axe hit the old tree."
    assert found.train[0].lead == "the relation between axe and old tree is:"


def relation(label, **changed):
    token = ["Ann", "Lee", "-LRB-", "CEO", "-RRB-", "of", "Bo"]
    return {"token": token, "subj_start": 0, "subj_end": 1, "obj_start": 6, "obj_end": 6, "relation": label, **changed}


def tacred(folder, **changed):
    part = [relation("per:title"), relation("no_relation"), relation("org:founded")]
    write(folder, {f"{name}.json": json.dumps(part) for name in ("train", "dev")})
    write(folder, {"test.json": json.dumps([relation("per:title"), relation("per:title", **changed)])})


def test_tacred(tmp_path):
    tacred(tmp_path / "mine")
    found = Tacred(tacred=str(tmp_path / "mine")).data
    assert found.labels == ("org:founded", "per:title")
    assert (len(found.train), len(found.test)) == (4, 2)
    assert found.train[0].question == "sentence: Ann Lee ( CEO ) of Bo"
    assert found.train[0].lead == "the relation between Ann Lee and Bo is:"


@pytest.mark.parametrize("changed", [{"subj_start": 9, "subj_end": 9}, {"obj_start": None}])
def test_a_bad_row_of_tacred(tmp_path, changed):
    tacred(tmp_path, **changed)
    with pytest.raises(UserError, match=r"test\.json, row 2: "):
        READERS["tacred"](tmp_path)


def test_missing_tacred_names_the_stand_ins(tmp_path):
    with pytest.raises(UserError, match=r"no TACRED at .*--tacred.*in_context_free"):
        _ = Tacred(data_dir=str(tmp_path)).data


BAD = {
    "train.tsv": ("goemotions", "a\t0\tx\nb\t7\ty\n", "row 2: '7' is not a list of label ids from 0 to 1"),
    "test.tsv": ("goemotions", "a\t0\tx\nb\t1\n", "row 2: expected 3 columns"),
    "train.csv": ("banking77", "text,category\na,x\n ,y\n", "row 2: 'text' is empty"),
    "test.csv": ("banking77", "text,kind\na,x\n", "no column 'category'; its first line names text, kind"),
    "TRAIN_FILE.TXT": (
        "semeval2010_task8",
        '1\t"<e1>a</e1> <e2>b</e2>"\nOther\n\n2\t"<e1>a</e1> b"\nOther',
        "row 4: no <e2>",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(tmp_path, name):
    write(tmp_path, {"labels.txt": "joy\nfear\n", "train.tsv": "a\t0\tx\n", "test.tsv": "a\t0\tx\n"})
    write(tmp_path, {"train.csv": "text,category\na,x\nb,y\n", "test.csv": "text,category\na,x\n"})
    reader, text, message = BAD[name]
    write(tmp_path, {name: text})
    with pytest.raises(UserError, match=message) as error:
        READERS[reader](tmp_path)
    assert name in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"no file .*train\.csv: put it there"):
        READERS["banking77"](tmp_path)


YAML = """\
name: kinds
train: train.csv
test: data/test.jsonl
columns: {text: question, label: kind}
prompt: {instruction: "Given a question, please predict its kind.", text: "question:", label: "kind:"}
"""
TRAIN = 'question,kind\n"how\nmany?",number\nwho?,person\n\n'
TEST = '{"question": "when?", "kind": "number", "more": 1}\n'


@pytest.fixture
def kinds(tmp_path):
    write(tmp_path, {"kinds.yaml": YAML, "train.csv": TRAIN, "data/test.jsonl": TEST})
    return tmp_path / "kinds.yaml"


def test_five_lines_of_yaml(kinds):
    found = read_dataset(kinds)
    assert (found.name, found.asks, found.labels) == ("kinds", "question:", ("number", "person"))
    assert found.instruction.startswith("Given a question, please predict its kind. The predict answer must come from")
    assert [(e.question, e.lead, e.label) for e in found.train] == [
        ("question: how many?", "kind:", "number"),
        ("question: who?", "kind:", "person"),
    ]
    assert found.test[0].question == "question: when?"


MISTAKES = {
    "unknown key": ("kinds.yaml", YAML + "shots: 4\n", "shots is unknown: it needs name, train, test, columns"),
    "missing key": ("kinds.yaml", YAML.replace('text: "question:", ', ""), "prompt.text is missing"),
    "no mapping": ("kinds.yaml", "- a\n", "the file is not a mapping"),
    "no YAML": ("kinds.yaml", "a: [", "is not valid YAML"),
    "no text": ("kinds.yaml", YAML.replace("train.csv", "7"), "train must be a text, got 7"),
    "ending": ("kinds.yaml", YAML.replace("train.csv", "train.xls"), "the ending must be one of .csv, .tsv, .jsonl"),
    "new label": ("data/test.jsonl", TEST + TEST.replace("number", "place"), "row 2: no row of train.csv .* 'place'"),
    "no JSON": ("data/test.jsonl", TEST + "when?", "row 2: not JSON"),
    "no object": ("data/test.jsonl", "[1]", "row 1: a JSON object was expected"),
    "missing value": ("data/test.jsonl", TEST + '{"question": "a"}', "row 2: 'kind' is missing"),
    "no string": ("data/test.jsonl", '{"question": "a", "kind": null}', "row 1: 'kind' is null"),
    "truth": ("data/test.jsonl", TEST + '{"question": "a", "kind": true}', "row 2: 'kind' is true, neither a text nor"),
    "fraction": (
        "data/test.jsonl",
        '{"question": "a", "kind": 1.5}',
        "row 1: 'kind' is 1.5, neither a text nor",
    ),
    "list": ("data/test.jsonl", '{"question": "a", "kind": ["b"]}', r"row 1: 'kind' is \[\"b\"\], neither"),
    "half a pair": (
        "data/test.jsonl",
        TEST + '{"question": "a\\ud83d", "kind": "b"}',
        "row 2: question: half",
    ),
    "header only": ("train.csv", "question,kind\n", "train.csv has no rows under its header"),
    "columns": ("train.csv", TRAIN + "a,b,c\n", "train.csv, row 4: 3 columns where the header has 2"),
    "quotes": ("train.csv", TRAIN + '"a"b,c\n', "train.csv, row 4: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_a_user(kinds, mistake):
    name, text, message = MISTAKES[mistake]
    write(kinds.parent, {name: text})
    with pytest.raises(UserError, match=message):
        read_dataset(kinds)


def test_tables_in_all_formats(tmp_path):
    write(tmp_path, {"a.tsv": 'text\tlabel\na  "b"\tx\n"c\ty\n', "a.jsonl": '{"text": "a", "label": 3}\n'})
    assert list(read_table(tmp_path / "a.jsonl", "text", "label")) == [(1, "a", "3")]
    assert list(read_table(tmp_path / "a.tsv", "text", "label")) == [(1, 'a "b"', "x"), (2, '"c', "y")]


def test_blank_lines_and_a_byte_order_mark_are_left_out(tmp_path):
    mark = "\ufeff"
    files = {
        "a.jsonl": '\n{"text": "a", "label": "x"}\r\n  \n\n{"text": "b", "label": "y"}\n\n',
        "a.csv": "\ntext,label\r\na,x\r\n \n\nb,y\n\n",
        "a.tsv": "\ntext\tlabel\na\tx\n \n\nb\ty\n\n",
        "train.tsv": "\na\t0\t1\n\n  \nb\t1\t2\n\n",
        "test.tsv": "a\t1\t3\n",
        "labels.txt": "x\ny\n\n",
        "TRAIN_FILE.TXT": '\n1\t"<e1>a</e1> <e2>b</e2>"\nOther\n\n \n\n2\t"<e1>c</e1>"\nOther',
    }
    write(tmp_path, {name: mark + text for name, text in files.items()})
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        assert [(text, label) for _, text, label in read_table(tmp_path / name, "text", "label")] == [
            ("a", "x"),
            ("b", "y"),
        ]
    assert [row for row, _, _ in read_table(tmp_path / "a.jsonl", "text", "label")] == [2, 5]
    assert [row for row, _, _ in read_table(tmp_path / "a.csv", "text", "label")] == [1, 4]
    assert [(e.question, e.label) for e in READERS["goemotions"](tmp_path).train] == [
        ("comment: a", "x"),
        ("comment: b", "y"),
    ]
    with pytest.raises(UserError, match=r"TRAIN_FILE\.TXT, row 7: no <e2>"):
        READERS["semeval2010_task8"](tmp_path)
    # the number of a label is that of its line
    write(tmp_path, {"labels.txt": "x\n\ny\n"})
    with pytest.raises(UserError, match=r"train\.tsv, row 5: '1' is not a list of label ids"):
        READERS["goemotions"](tmp_path)

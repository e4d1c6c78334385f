"""`mm data fetch` from stand-ins of the published addresses: files, a server on this machine, an archive, memory."""

import dataclasses
import functools
import json
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from mm_lightning.cli import main
from mm_lightning.errors import UserError
from mm_lightning.evaluation import fetch
from mm_lightning.evaluation.fetch import DATA_SETS
from mm_lightning.evaluation.in_context.datasets import READERS
from mm_lightning.evaluation.new_knowledge.question_files import read_hotpot, read_squad

FACT = {"title": "T", "sents": [["A", "b"]], "labels": [{"r": "P1", "h": 0, "t": 1, "evidence": [0]}]}
FACT["vertexSet"] = [[{"sent_id": 0, "name": "A"}], [{"sent_id": 0, "name": "b"}]]
OTHER = {**FACT, "labels": [{"r": "P569", "h": 0, "t": 1, "evidence": []}]}
BLOCK = '{}\t"The <e1>axe</e1> hit the <e2>tree</e2>."\r\n{}\r\nComment:\r\n\r\n'
PARAGRAPH = {"context": "A dog.", "qas": [{"id": "1", "question": "Who?", "answers": [{"text": "A dog"}]}]}
HOTPOT = {
    "_id": "1",
    "question": "Who?",
    "answer": "dog",
    "supporting_facts": [["T", 0]],
    "context": [["T", ["A dog."]]],
}

CONTENT = {
    "squad/dev-v2.0.json": json.dumps({"data": [{"title": "T", "paragraphs": [PARAGRAPH]}]}),
    "hotpotqa/hotpot_dev_distractor_v1.json": json.dumps([HOTPOT]),
    "banking77/train.csv": 'text,category\r\n"a\nb",x\r\nc,y\r\n',
    "banking77/test.csv": "text,category\r\na,x\r\n",
    "goemotions/train.tsv": "a\t0\tx\nb\t1\ty\n",
    "goemotions/dev.tsv": "a\t0\tx\n",
    "goemotions/test.tsv": "a\t0\tx\n",
    "goemotions/labels.txt": "joy\nfear",
    "semeval2010_task8/TRAIN_FILE.TXT": "".join(BLOCK.format(n, label) for n, label in enumerate("AABB")),
    "semeval2010_task8/TEST_FILE_FULL.TXT": BLOCK.format(9, "A"),
    "redocred/dev_revised.json": json.dumps([FACT, OTHER]),
    "redocred/test_revised.json": json.dumps([FACT]),
    "redocred/pid2name.json": json.dumps({"P1": ["is", "of"]}),
    "fewrel/val_wiki.json": json.dumps({"P1": []}),
    "fewrel/pid2name.json": json.dumps({"P1": ["is", "of"]}),
}
ROWS = [1, 1, 2, 1, 2, 1, 1, 2, 4, 1, 2, 1, 1, 1, 1]
LOADERS = {
    "squad": lambda folder: read_squad(folder.parent),
    "hotpotqa": lambda folder: read_hotpot(folder.parent),
    **{name: READERS[name] for name in ("banking77", "goemotions", "semeval2010_task8", "redocred")},
}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """All files, with their rows instead of the published ones; returns the folder that serves as a mirror."""
    mirror = tmp_path / "mirror"
    for name, text in CONTENT.items():
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).write_bytes(text.encode())
    rows = dict(zip(CONTENT, ROWS, strict=True))
    for name, files in DATA_SETS.items():
        small = tuple(dataclasses.replace(file, rows=rows[f"{name}/{file.name}"]) for file in files)
        monkeypatch.setitem(DATA_SETS, name, small)
    return mirror


class Quiet(SimpleHTTPRequestHandler):
    """Keeps no log."""

    def log_message(self, *_):
        pass


@pytest.fixture
def server(published):
    """The address of a server on this machine that serves the mirror."""
    handler = functools.partial(Quiet, directory=str(published))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


def test_what_is_fetched_is_what_the_loaders_read(published, tmp_path, capsys):
    out = tmp_path / "data"
    assert main(["data", "fetch", "all", "--output", str(out), "--mirror", str(published)]) == 0
    assert {str(p.relative_to(out)): p.read_bytes().decode() for p in out.rglob("*") if p.is_file()} == CONTENT
    for name, load in LOADERS.items():
        assert load(out / name)
    assert f"{out}/banking77/train.csv: 2 rows" in capsys.readouterr().out
    (out / "squad" / "dev-v2.0.json").write_text("mine")
    assert main(["data", "fetch", "squad", "--output", str(out), "--mirror", str(published)]) == 0
    assert "dev-v2.0.json is there already" in capsys.readouterr().out
    assert (out / "squad" / "dev-v2.0.json").read_text() == "mine"
    assert main(["data", "fetch", "squad", "--output", str(out), "--mirror", f"file://{published}", "--overwrite"]) == 0
    assert (out / "squad" / "dev-v2.0.json").read_text() == CONTENT["squad/dev-v2.0.json"]


def test_addresses_of_a_server_and_archives(published, server, tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(published / "all.zip", "w") as archive:
        for file in DATA_SETS["semeval2010_task8"]:
            archive.writestr(file.member, CONTENT[f"semeval2010_task8/{file.name}"])
    zipped = tuple(dataclasses.replace(f, address=f"{server}/all.zip") for f in DATA_SETS["semeval2010_task8"])
    monkeypatch.setitem(DATA_SETS, "semeval2010_task8", zipped)
    plain = tuple(dataclasses.replace(f, address=f"{server}/banking77/{f.name}") for f in DATA_SETS["banking77"])
    monkeypatch.setitem(DATA_SETS, "banking77", plain)
    out = tmp_path / "data"
    assert main(["data", "fetch", "semeval2010_task8,banking77", "--output", str(out)]) == 0
    assert capsys.readouterr().err.count("all.zip") == 1  # an archive is downloaded once
    assert len(READERS["semeval2010_task8"](out / "semeval2010_task8").train) == 4
    assert len(READERS["banking77"](out / "banking77").train) == 2
    monkeypatch.setitem(DATA_SETS, "banking77", (dataclasses.replace(plain[0], member="nothing"),))
    assert main(["data", "fetch", "banking77", "--output", str(out), "--overwrite"]) == 2
    assert "is not the archive that was published" in capsys.readouterr().err.splitlines()[-1]


def test_any_store(published, tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe("/copy/fewrel/val_wiki.json", CONTENT["fewrel/val_wiki.json"].encode())
    store.pipe("/copy/fewrel/pid2name.json", CONTENT["fewrel/pid2name.json"].encode())
    assert main(["data", "fetch", "fewrel", "--output", str(tmp_path / "data"), "--mirror", "memory://copy/"]) == 0
    assert (tmp_path / "data" / "fewrel" / "val_wiki.json").read_text() == CONTENT["fewrel/val_wiki.json"]


WRONG = {
    "banking77/train.csv": (b"text,category\na,x\n", "has 1 rows where 2 were published"),
    "squad/dev-v2.0.json": (b"<html>not found</html>", "dev-v2.0.json: not JSON"),
    "hotpotqa/hotpot_dev_distractor_v1.json": (b"\xff\xfe", "not UTF-8"),
    "redocred/dev_revised.json": (b"3", "is not the file that was published"),
    "goemotions/train.tsv": (None, "cannot get"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_had_is_said_in_one_line(published, tmp_path, capsys, name):
    content, message = WRONG[name]
    (published / name).unlink()
    if content is not None:
        (published / name).write_bytes(content)
    out = tmp_path / "data"
    assert main(["data", "fetch", name.split("/")[0], "--output", str(out), "--mirror", str(published)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert f"{published}/{name}" in error
    assert f"put it at {out}/{name}" in error
    assert not list(out.rglob("*"))


def test_without_a_network_an_error_names_address_and_place(published, server, tmp_path, capsys):
    closed = "http://127.0.0.1:9/x"
    assert main(["data", "fetch", "squad", "--output", str(tmp_path), "--mirror", closed]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"mm: cannot get {closed}/squad/dev-v2.0.json (cannot be reached: ")
    )
    assert main(["data", "fetch", "squad", "--output", str(tmp_path), "--mirror", f"{server}/nowhere"]) == 2
    assert "not there (404)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tacred"], "TACRED needs a license"),
        (["squad", "sqaud"], "there is no data set 'sqaud' to fetch: choose squad, hotpotqa"),
        ([], "--names"),
        (["squad", "--output", "{file}"], "cannot write to"),
    ],
)
def test_mistakes(words, message, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["data", "fetch", *(word.format(file=tmp_path / "file") for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_missing_data_say_how_to_get_them(tmp_path):
    with pytest.raises(UserError, match=rf"`mm data fetch banking77 --output {tmp_path}` gets it; or put it there"):
        READERS["banking77"](tmp_path / "banking77")
    with pytest.raises(UserError, match=rf"`mm data fetch squad --output {tmp_path}` gets it"):
        read_squad(tmp_path)
    assert fetch.fetch_hint(Path("data/hotpotqa/x.json")) == "`mm data fetch hotpotqa` gets it; or "
    assert fetch.fetch_hint(tmp_path / "mine.csv") == ""
    assert fetch.fetch_hint(Path("my data/squad/x.json")) == "`mm data fetch squad --output 'my data'` gets it; or "

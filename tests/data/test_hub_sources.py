"""Sources and tokenizers of the Hugging Face Hub, of a Hub on this machine."""

import io
import json
import re
import sys

import hub_server
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from mm_lightning import retry
from mm_lightning.cli import main
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.source_files import ReadSettings, list_files
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.errors import UserError

ROWS = [f"row {n} " + "words and more " * 9 for n in range(120)]


def parquet(rows):
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), stream, row_group_size=20)
    return stream.getvalue()


def lines(rows):
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    yield from hub_server.serve(monkeypatch, tmp_path / "cache")


@pytest.fixture
def web(hub):
    """A data set of two parquet files, one of JSON lines, one of text, and what a repository holds besides."""
    hub.repositories["datasets/org/web"] = {
        "README.md": b"# no text",
        "sample/a.parquet": parquet(ROWS[:60]),
        "sample/b.parquet": parquet(ROWS[60:]),
        "other/c.jsonl": lines(ROWS),
        "other/d.txt": b"one document",
    }
    return hub


def prepare(*sources, output, **options):
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    always = ["--workers", "1", "--progress", "false", "--validation_fraction", "0"]
    return main(["data", "prepare", *sources, "--output", str(output), *always, *words])


@pytest.mark.parametrize(
    ("source", "documents"),
    [
        ("hf://datasets/org/web/sample/*.parquet", 120),
        ("hf://datasets/org/web/sample", 120),
        ("hf://datasets/org/web/sample/b.parquet", 60),
        ("hf://datasets/org/web@main/other/*", 121),
        (f"hf://datasets/org/web@{hub_server.COMMIT}/other/c.jsonl", 120),
        ("hf://datasets/org/web", 241),
    ],
)
def test_files_folders_globs_and_revisions(web, tmp_path, source, documents):
    assert prepare(source, output=tmp_path / "data") == 0
    made = Manifest.load(tmp_path / "data")
    assert made.splits["train"].documents == documents
    assert (made.sources[0]["source"], made.sources[0]["commit"]) == (source, hub_server.COMMIT)
    assert made.sources[0]["bytes"] == sum(file.size for file in list_files([source], ReadSettings()))


def test_every_file_is_read_of_the_commit_that_was_listed(web, tmp_path):
    assert prepare("hf://datasets/org/web/sample", output=tmp_path / "data") == 0
    read = [request for request in web.requests if "resolve" in request]
    assert read
    assert all(f"/resolve/{hub_server.COMMIT}/" in request for request in read)


def test_a_preparation_goes_on_and_notices_what_changed_there(web, tmp_path, monkeypatch, capsys):
    from mm_lightning.data import prepare as preparation

    monkeypatch.setattr(preparation, "_UNIT_BYTES", 1)
    source = "hf://datasets/org/web/sample"
    web.refused["datasets/org/web"] = (401, "GatedRepo")
    assert prepare(source, output=tmp_path / "data") == 2
    del web.refused["datasets/org/web"]
    real = preparation.run_units

    def interrupted(job, numbers, workers, report):
        real(job, numbers[:2], workers, report)
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "run_units", interrupted)
    assert prepare(source, output=tmp_path / "data") == 130
    monkeypatch.setattr(preparation, "run_units", real)
    capsys.readouterr()
    assert prepare(source, output=tmp_path / "data") == 0
    assert "going on: 2 of " in capsys.readouterr().err
    assert Manifest.load(tmp_path / "data").splits["train"].documents == 120
    assert prepare(source, output=tmp_path / "data") == 0
    web.repositories["datasets/org/web"]["sample/a.parquet"] = parquet(ROWS[:60][::-1])
    hub_server.forget()
    assert prepare(source, output=tmp_path / "data") == 2
    assert "prepared from something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("hf://datasets/org/none/a.parquet", "no such repository, or a private one: .*hf auth login.*HF_TOKEN"),
        ("hf://datasets/org/none/*.parquet", "no such repository, or a private one"),
        ("hf://datasets/org/gated/a.parquet", "gated: accept its terms"),
        ("hf://datasets/org/web@v9/sample", "no such revision"),
        ("hf://datasets/org/web@v9/sample/*.parquet", "no such revision"),
        ("hf://datasets/org/web/none.parquet", "not there"),
        ("hf://datasets/org/web/none/*.parquet", "not there"),
    ],
)
def test_one_line_says_what_to_do(web, tmp_path, capsys, source, reason):
    web.repositories["datasets/org/gated"] = {"a.parquet": parquet(ROWS)}
    web.refused["datasets/org/gated"] = (403, "GatedRepo")
    assert prepare(source, output=tmp_path / "data") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mm: ")]
    assert re.search(f"cannot read {re.escape(source)}: {reason}", line.replace(f"@{hub_server.COMMIT}", ""))


def test_without_a_network(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    hub.server_close()
    assert prepare("hf://datasets/org/web/*.parquet", output=tmp_path / "data") == 2
    assert re.search("cannot read hf://.*: cannot be reached: .*is there a network", capsys.readouterr().err)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_server.forget()
    assert prepare("hf://datasets/org/web/*.parquet", output=tmp_path / "data") == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


def tokenizer_json(folder):
    folder.mkdir(parents=True)
    return train_tokenizer(["some text of words " * 20], 270, folder / "tokenizer.json", progress=False)


def test_a_tokenizer_by_name_is_cached_and_kept_with_the_data(hub, tmp_path, monkeypatch):
    trained = tokenizer_json(tmp_path / "trained")
    hub.repositories["models/org/bpe"] = {"tokenizer.json": (tmp_path / "trained/tokenizer.json").read_bytes()}
    (tmp_path / "a.txt").write_text("some text")
    assert prepare(str(tmp_path / "a.txt"), output=tmp_path / "data", tokenizer="org/bpe") == 0
    made = Manifest.load(tmp_path / "data").tokenizer
    assert (made["name"], made["sha256"]) == ("org/bpe", trained.sha256)
    assert load_tokenizer(tmp_path / "data").sha256 == trained.sha256
    hub.requests.clear()
    hub.repositories.clear()
    assert load_tokenizer("org/bpe").sha256 == trained.sha256
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_tokenizer("org/bpe").sha256 == trained.sha256


def test_a_folder_here_comes_before_a_repository(hub, tmp_path, monkeypatch):
    trained = tokenizer_json(tmp_path / "org" / "bpe")
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer("org/bpe").sha256 == trained.sha256
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("org/none", "no such repository, or a private one"),
        ("org/gated", "gated: accept its terms"),
        ("org/plain", "not there"),
        ("org/plain@v9", "no such revision"),
        ("org/a--b", "Cannot have"),
    ],
)
def test_a_tokenizer_that_cannot_be_had(hub, name, reason):
    hub.repositories["models/org/plain"] = hub.repositories["models/org/gated"] = {"config.json": b"{}"}
    hub.refused["models/org/gated"] = (403, "GatedRepo")
    with pytest.raises(UserError, match=f"no tokenizer at {name}, neither a file nor a folder here.*: {reason}"):
        load_tokenizer(name)


@pytest.mark.parametrize("offline", [True, False])
def test_a_tokenizer_that_is_not_cached_without_a_network(hub, monkeypatch, offline):
    """huggingface_hub, which would try again for 23 seconds, does not wait."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    hub.shutdown()
    hub.server_close()
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(UserError, match=r"no tokenizer at org/bpe, .* not in the cache of huggingface_hub"):
        load_tokenizer("org/bpe")
    assert waits == []


def test_a_missing_file_is_not_asked_of_the_hub(hub, tmp_path):
    for place in ("gpt2/tokenizer.json", str(tmp_path / "none"), "~/none/x", "./data/web"):
        with pytest.raises(UserError, match="no tokenizer at"):
            load_tokenizer(place)
    assert hub.requests == []


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'mm-lightning\[hub\]'"):
        load_tokenizer("org/bpe")

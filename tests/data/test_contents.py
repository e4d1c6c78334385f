"""Sources that hold something else than before, under the same names and of the same sizes."""

import json
import os

import fsspec
import pytest
from corpus_samples import make_texts, write_lines
from prepare_texts import contents, run

from mm_lightning.data import prepare as room
from mm_lightning.data import tokenize_units
from mm_lightning.data.contents import Contents
from mm_lightning.data.datamodule import TextDataModule
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.source_files import ReadSettings, SourceFile, list_files
from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.errors import UserError


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(room, "_UNIT_BYTES", 3000)


def change(path):
    """Put other text of the same length into a file and give it back its times."""
    times = os.stat(path)
    path.write_bytes(path.read_bytes().replace(b"memory", b"mosaic"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def sources(tmp_path):
    for n in range(3):
        write_lines(tmp_path / f"{n}.jsonl", make_texts(60, seed=n))
    return [tmp_path / f"{n}.jsonl" for n in range(3)]


@pytest.mark.parametrize("tokenizer", ["bytes", "train"])
@pytest.mark.parametrize("place", ["unit", "shard"])
def test_an_interrupted_preparation_does_not_mix_old_and_new(sources, tmp_path, monkeypatch, capsys, tokenizer, place):
    from mm_lightning.data import shards

    config = {"tokenizer": tokenizer, "vocab_size": 300, "shard_tokens": 2000}
    where, name = (tokenize_units, "tokenize_unit") if place == "unit" else (shards, "_write_shard")
    original, calls = getattr(where, name), []

    def broken(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, broken)
        with pytest.raises(KeyboardInterrupt):
            run(sources, tmp_path / "out", **config)
    change(sources[0])
    run(sources, tmp_path / "out", **config)
    assert "0.jsonl changed since this preparation began: it begins anew" in capsys.readouterr().err
    run(sources, tmp_path / "fresh", **config)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_work_of_an_earlier_version_goes_on(sources, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(room, "_splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(sources, tmp_path / "out")
    plan = tmp_path / "out" / ".unfinished" / "plan.json"
    plan.write_text(json.dumps({"fingerprint": json.loads(plan.read_text())["fingerprint"]}))
    capsys.readouterr()
    run(sources, tmp_path / "out")
    assert "going on: " in capsys.readouterr().err


def test_a_finished_preparation_is_not_used_for_other_text(sources, tmp_path):
    made = run(sources, tmp_path / "out")
    assert run(sources, tmp_path / "out") == made
    sources[0].touch()
    assert run(sources, tmp_path / "out") == made  # other times are not other text
    change(sources[1])
    with pytest.raises(UserError, match="the source files hold something else now"):
        run(sources, tmp_path / "out")
    made.source_contents = None
    made.save(tmp_path / "out")  # as earlier versions did
    assert run(sources, tmp_path / "out") == made


def test_a_file_that_changes_while_it_is_prepared(sources, tmp_path, monkeypatch):
    original = room.run_units

    def slow(*args):
        original(*args)
        sources[2].write_bytes(sources[2].read_bytes().replace(b"memory", b"mosaic"))

    with monkeypatch.context() as patch:
        patch.setattr(room, "run_units", slow)
        with pytest.raises(UserError, match=r"2\.jsonl changed while it was being prepared"):
            run(sources, tmp_path / "out")
    run(sources, tmp_path / "out")
    run(sources, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_other_text_is_other_content_and_the_same_text_the_same(sources, tmp_path):
    one = run(sources, tmp_path / "one")
    change(sources[0])
    two = run(sources, tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert one.content != two.content
    sources[0].rename(tmp_path / "moved.jsonl")
    three = run([tmp_path / "moved.jsonl", *sources[1:]], tmp_path / "three")
    assert three.fingerprint != two.fingerprint
    assert three.content == two.content


def test_stores_that_mark_their_files_are_not_read_for_it(monkeypatch):
    file = SourceFile("nowhere://x", "x", "nowhere://x", 3, "text", None, '{"ETag": "1"}')
    other = SourceFile("nowhere://x", "x", "nowhere://x", 3, "text", None, '{"ETag": "2"}')
    assert Contents([other]).changed_since(Contents([file]).hashes) == "x"
    memory = fsspec.filesystem("memory")
    hashes = []
    for text in (b"one", b"two"):
        memory.pipe("/marks/a.txt", text)
        hashes += Contents(list_files(["memory://marks/a.txt"], ReadSettings())).hashes
    assert hashes[0] != hashes[1]


def test_a_tokenizer_that_was_edited_in_place(sources, tmp_path):
    path = tmp_path / "tokenizer.json"
    train_tokenizer(make_texts(30), 270, path, progress=False)
    settings = {"tokenizer": str(path), "validation_fraction": 0.1, "workers": 1}
    config = PrepareConfig([str(source) for source in sources], **settings)

    def start():
        TextDataModule(str(tmp_path / "out"), prepare=config).prepare_data()

    for _ in range(2):
        start()
    train_tokenizer(make_texts(30, seed=5), 280, path, progress=False)
    with pytest.raises(UserError, match="which is another tokenizer now"):
        start()
    path.unlink()
    start()
    assert Manifest.load(tmp_path / "out").tokenizer["vocab_size"] == 270

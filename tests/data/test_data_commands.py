import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_samples import make_texts, write_lines

from mm_lightning.cli import main
from mm_lightning.data import data_commands as commands
from mm_lightning.data.inspect import histogram
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError


def test_from_text_to_a_verified_folder(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", make_texts(60), key="body")
    tokenizer = str(tmp_path / "t" / "tokenizer.json")
    commands.train_tokenizer([source], tokenizer, vocab_size=300, text_key="body", progress=False)
    out = str(tmp_path / "out")
    commands.prepare(
        [source], out, tokenizer=tokenizer, text_key="body", validation_fraction=0.2, workers=1, progress=False
    )
    commands.verify(out)
    commands.inspect(out, samples=1)
    shown = capsys.readouterr().out
    assert load_tokenizer(tokenizer).sha256 in shown
    assert f"{out} is whole: 2 shards, checksums right" in shown
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert f"{manifest['splits']['train']['tokens']:,}" in shown
    with pytest.raises(UserError, match="exists: give another --output"):
        commands.train_tokenizer([source], tokenizer, text_key="body")
    (tmp_path / "out" / "train" / "chunk-0-0.bin").unlink()
    with pytest.raises(UserError, match=r"chunk-0-0\.bin is missing"):
        commands.verify(out)
    with pytest.raises(UserError, match=r"cannot read shard .*chunk-0-0\.bin"):
        commands.inspect(out)


def test_both_commands_count_what_they_skip(tmp_path, capsys):
    texts = make_texts(40)
    column = pa.array([text.encode() for text in texts] + [b"caf\xe9 au lait"])
    column = pa.Array.from_buffers(pa.string(), len(column), column.buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "in.parquet")
    source, settings = str(tmp_path / "in.parquet"), {"on_error": "skip", "progress": False}
    commands.train_tokenizer(source, str(tmp_path / "tokenizer.json"), 300, **settings)
    commands.prepare(
        source, str(tmp_path / "out"), tokenizer="train", vocab_size=300, validation_fraction=0.2, workers=1, **settings
    )
    said = capsys.readouterr().err
    assert said.count("skipped 1 files or rows; the first: ") == 2
    assert said.count("in.parquet row 41: not UTF-8") == 2
    for make in (commands.train_tokenizer, commands.prepare):
        with pytest.raises(UserError, match=r"in\.parquet row 41: not UTF-8"):
            make(source, str(tmp_path / "new"), progress=False)


def test_histogram_bars():
    lines = histogram([0, 0, 10, 1, 0, 20])
    assert len(lines) == 4
    assert lines[0].split() == ["4", "-", "7", "█" * 20, "10"]
    assert lines[2].split() == ["16", "-", "31", "0"]
    assert lines[3].count("█") == 40


def test_options_of_a_dataclass_take_words(tmp_path):
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "b.rst").write_text("two")
    (tmp_path / "c.txt").write_text("three")
    words = ["--suffixes", ".md", ".rst", "--validation_fraction", "0", "--workers", "1", "--progress", "false"]
    assert main(["data", "prepare", str(tmp_path), "--output", str(tmp_path / "out"), *words]) == 0
    assert Manifest.load(tmp_path / "out").splits["train"].documents == 2

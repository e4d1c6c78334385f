import json

import pytest
from corpus_samples import make_texts, write_lines

from mm_lightning.data import commands
from mm_lightning.data.inspect import histogram
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError


def test_from_text_to_a_verified_folder(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", make_texts(60), key="body")
    tokenizer = str(tmp_path / "t" / "tokenizer.json")
    commands.train_tokenizer([source], tokenizer, vocab_size=300, text_key="body", progress=False)
    out = str(tmp_path / "out")
    commands.prepare([source], out, tokenizer, text_key="body", validation_fraction=0.2, workers=1, progress=False)
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


def test_histogram_bars():
    lines = histogram([0, 0, 10, 1, 0, 20])
    assert len(lines) == 4
    assert lines[0].split() == ["4", "-", "7", "█" * 20, "10"]
    assert lines[2].split() == ["16", "-", "31", "0"]
    assert lines[3].count("█") == 40

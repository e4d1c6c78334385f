import json
import math

import pytest

from mm_lightning.data.manifest import Manifest, Shard, Split
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.data.verify import check, verify
from mm_lightning.errors import UserError


def test_saved_and_loaded(folder, tmp_path):
    manifest = Manifest.load(folder)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert verify(folder) == []


def test_bits_per_byte():
    # 10 documents, 110 tokens of which 100 are predicted, 400 bytes: 2 bits a token are half a bit a byte.
    split = Split(10, 110, 400, 0.0, 11, [], [])
    assert split.bits_per_byte(2 * math.log(2)) == pytest.approx(0.5)


def test_sequences_do_not_cross_shards():
    shards = [Shard("a", 0, 25, ""), Shard("b", 0, 9, ""), Shard("c", 0, 10, "")]
    assert Split(1, 44, 1, 0.0, 1, [], shards).sequences(10) == 3


def damage(path, how):
    chunk = path / "train" / "chunk-0-0.bin"
    index = path / "train" / "index.json"
    data = chunk.read_bytes()
    if how == "missing":
        chunk.unlink()
    elif how == "truncated":
        chunk.write_bytes(data[:-2])
    elif how == "too long":
        chunk.write_bytes(data + b"x")
    elif how == "is damaged":
        chunk.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif how == "not of this data set":
        (chunk.parent / "chunk-0-1.bin").write_bytes(data)
    elif how == "index.json is missing":
        index.unlink()
    elif how == "index.json is damaged":
        index.write_text("{")
    elif how == "does not list the shards":
        index.write_text(index.read_text().replace("chunk-0-0", "chunk-0-7"))
    elif how == "the manifest says uint16":
        index.write_text(index.read_text().replace("no_header_tensor:20", "no_header_tensor:16"))
    elif how == "is not the tokenizer":
        train_tokenizer(["other"], 260, path / "tokenizer.json", progress=False)
    elif how == "no tokenizer at":
        (path / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "truncated",
        "too long",
        "is damaged",
        "not of this data set",
        "index.json is missing",
        "index.json is damaged",
        "does not list the shards",
        "the manifest says uint16",
        "is not the tokenizer",
        "no tokenizer at",
    ],
)
def test_damage_is_found(copy, how):
    damage(copy, how)
    problems = verify(copy)
    assert len(problems) == 1
    assert how in problems[0]
    assert ("chunk-0" in problems[0]) == (
        how in ("missing", "truncated", "too long", "is damaged", "not of this data set")
    )
    if how == "is damaged":  # needs the checksum
        check(copy)
    else:
        with pytest.raises(UserError, match=f"{how}.*run mm data verify"):
            check(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is damaged"), ("{}", "is damaged"), ('{"format_version": 99}', "has format version 99")],
)
def test_unreadable_manifests_are_named(copy, content, message):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"manifest\.json {message}"):
        verify(copy)


def test_json_nested_too_deep_is_damage(copy):
    (copy / "train" / "index.json").write_text("[" * 100_000)
    assert any("index.json is damaged" in problem for problem in verify(copy))
    (copy / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(maximum recursion"):
        verify(copy)


def test_a_missing_folder_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=f"no prepared data in {tmp_path}/x: run `mm data prepare"):
        check(tmp_path / "x")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=f"run `mm data prepare {tmp_path} --output data/NAME` and name that"):
        check(tmp_path)


def test_a_run_folder_names_its_data(tmp_path):
    for number, path in enumerate(["data/old", {"data/a": 0.5, "data/b": 0.5}]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.yaml").write_text(json.dumps({"data": {"path": path}}))
    with pytest.raises(UserError, match=r"is a run folder, no prepared data: name its data, data/a or data/b"):
        Manifest.load(tmp_path)
    with pytest.raises(UserError, match=r"is a run folder, no prepared data: name its data, data/old"):
        Manifest.load(tmp_path / "0")


def test_shards_must_fit_the_model(folder, tmp_path):
    manifest = Manifest.load(folder)
    check(folder, load_tokenizer("bytes"), 100)
    other = train_tokenizer(["some text"], 260, tmp_path / "t.json", progress=False)
    with pytest.raises(UserError, match="were made with the tokenizer bytes"):
        check(folder, other)
    longest = manifest.splits["validation"].shards[0].tokens
    check(folder, context_length=longest - 1)
    with pytest.raises(UserError, match=f"context_length {longest} does not fit the validation split"):
        check(folder, context_length=longest)


def test_the_manifest_is_plain_json(folder):
    content = json.loads((folder / "manifest.json").read_text())
    assert content["tokenizer"]["name"] == "bytes"
    assert content["settings"]["validation_fraction"] == 0.1
    assert set(content["versions"]) == {"mm-lightning", "litdata", "tokenizers", "numpy"}

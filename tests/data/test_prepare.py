import collections
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corpus_samples import make_texts, write_lines
from litdata import StreamingDataset, TokensLoader
from prepare_texts import contents, run
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from mm_lightning.cli import main
from mm_lightning.data import folder as folders
from mm_lightning.data import prepare as room
from mm_lightning.data import shards, splitting, tokenize_units
from mm_lightning.data.inspect import read_shard
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.source_files import ReadSettings
from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.data.verify import verify
from mm_lightning.errors import UserError


def documents(folder, split):
    """The decoded documents of a split, and its tokens."""
    manifest, tokenizer = Manifest.load(folder), load_tokenizer(folder)
    info = manifest.splits[split]
    parts = [read_shard(Path(folder) / split / s.file, manifest.dtype, s.tokens) for s in info.shards]
    tokens = np.concatenate(parts).astype(int).tolist()
    found, begin = [], 0
    for n, token in enumerate(tokens):
        if token == tokenizer.eos and n > begin:
            assert tokens[begin] == tokenizer.bos
            found.append(tokenizer.decode(tokens[begin + 1 : n]))
            begin = n + 1
    return found, tokens


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(room, "_UNIT_BYTES", 3000)


def test_round_trip_and_statistics(folder):
    texts = make_texts(200)
    chosen = {name: documents(folder, name) for name in ("train", "validation")}
    assert sorted(chosen["train"][0] + chosen["validation"][0]) == sorted(texts)
    assert chosen["train"][0] == [text for text in texts if text in set(chosen["train"][0])]
    manifest = Manifest.load(folder)
    assert manifest.dtype == "uint16"
    for name, (found, tokens) in chosen.items():
        split = manifest.splits[name]
        lengths = [len(text.encode()) + 2 for text in found]
        assert (split.documents, split.tokens) == (len(found), len(tokens))
        assert split.bytes == sum(lengths) - 2 * len(found)
        assert split.longest_document == max(lengths)
        assert {k: n for k, n in enumerate(split.length_histogram) if n} == collections.Counter(
            int(math.log2(length)) for length in lengths
        )
        counts = collections.Counter(token for token in tokens if token != 256)
        total = sum(counts.values())
        entropy = -sum(n / total * math.log(n / total) for n in counts.values())
        assert split.unigram_entropy == pytest.approx(entropy)
        assert manifest.bits_per_byte(entropy, name) == pytest.approx(entropy / math.log(2) * total / split.bytes)
    assert 5 < len(chosen["validation"][0]) < 40


def test_litdata_reads_the_shards(folder):
    _, tokens = documents(folder, "train")
    stream = StreamingDataset(str(folder / "train"), item_loader=TokensLoader(block_size=17))
    assert [int(t) for block in stream for t in block] == tokens[: len(tokens) // 17 * 17]


def test_the_split_does_not_move_when_documents_are_added(folder, tmp_path):
    more = write_lines(tmp_path / "a.jsonl", make_texts(50, seed=1) + make_texts(200)[::-1])
    run([more], tmp_path / "more")
    assert set(documents(folder, "validation")[0]) <= set(documents(tmp_path / "more", "validation")[0])
    assert set(documents(folder, "train")[0]) <= set(documents(tmp_path / "more", "train")[0])


@pytest.mark.usefixtures("small_units")
def test_the_number_of_workers_does_not_matter(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", make_texts(100))
    config = {"tokenizer": "train", "vocab_size": 300, "shard_tokens": 1500}
    for workers in (1, 2):
        run([source], tmp_path / str(workers), workers=workers, **config)
    one = contents(tmp_path / "1")
    assert one == contents(tmp_path / "2")
    assert len([name for name in one if name.startswith("train/chunk")]) > 2
    assert verify(tmp_path / "1") == []
    assert sorted(documents(tmp_path / "1", "train")[0] + documents(tmp_path / "1", "validation")[0]) == sorted(
        make_texts(100)
    )


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("place", ["unit", "shard"])
def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch, place):
    source = write_lines(tmp_path / "in.jsonl", make_texts(100))
    config = {"tokenizer": "train", "vocab_size": 300, "shard_tokens": 2000}
    run([source], tmp_path / "whole", **config)
    where, name = (tokenize_units, "tokenize_unit") if place == "unit" else (shards, "_write_shard")
    original, calls = getattr(where, name), []

    def broken(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, broken)
        with pytest.raises(KeyboardInterrupt):
            run([source], tmp_path / "cut", **config)
    assert not (tmp_path / "cut" / "manifest.json").exists()
    with pytest.raises(UserError, match="no prepared data"):
        Manifest.load(tmp_path / "cut")
    with pytest.raises(UserError, match="unfinished preparation of something else"):
        run([source], tmp_path / "cut", vocab_size=301, tokenizer="train")
    done = []
    monkeypatch.setattr(tokenize_units, "tokenize_unit", lambda *args: (done.append(args), original_unit(*args)))
    run([source], tmp_path / "cut", **config)
    made = contents(tmp_path / "cut")
    assert made == contents(tmp_path / "whole")
    assert len(done) == (sum(1 for _ in room.plan_units(*_plan(source))) - 2 if place == "unit" else 0)


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("content", ["", '{"below"', "[]", "{}", "null"])
@pytest.mark.parametrize("name", ["plan.json", "split.json", "unit-000001.json"])
def test_torn_files_of_an_interrupted_preparation_are_made_anew(tmp_path, monkeypatch, name, content):
    source = write_lines(tmp_path / "in.jsonl", make_texts(100))
    run([source], tmp_path / "whole")
    calls = []

    def broken(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original_unit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tokenize_units, "tokenize_unit", broken)
        with pytest.raises(KeyboardInterrupt):
            run([source], tmp_path / "cut")
    (tmp_path / "cut" / ".unfinished" / name).write_text(content)
    run([source], tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_folder_of_others_is_left_as_it_was(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", make_texts(10))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.md").write_text("mine")
    with pytest.raises(UserError, match="not prepared data"):
        run([source], tmp_path / "mine")
    for command in ("regbench", "facts"):
        assert main(["data", command, "--output", str(tmp_path / "mine")]) == 2
    assert contents(tmp_path / "mine") == {"notes.md": b"mine"}


original_unit = tokenize_units.tokenize_unit


def _plan(source):
    settings = ReadSettings()
    return room.list_files([source], settings), settings, 3000


def test_nothing_is_overwritten(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", make_texts(100))
    first = run([source], tmp_path / "out")
    before = contents(tmp_path / "out")
    assert run([source], tmp_path / "out") == first
    assert "reusing" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"validation_fraction 0\.1, not 0\.2"):
        run([source], tmp_path / "out", validation_fraction=0.2)
    write_lines(tmp_path / "in.jsonl", make_texts(101))
    with pytest.raises(UserError, match="other source files"):
        run([source], tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    with pytest.raises(UserError, match=r"not empty and not prepared data \(it has notes\)"):
        run([source], tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to"):
        run([source], tmp_path / "file")


def test_edge_documents(tmp_path):
    texts = ["", "a", "<|end_of_text|> and <|begin_of_text|>", "\n", "é" * 1000]
    made = run([write_lines(tmp_path / "in.jsonl", texts)], tmp_path / "out", validation_fraction=0)
    assert list(made.splits) == ["train"]
    found, tokens = documents(tmp_path / "out", "train")
    assert found == texts[1:]
    assert made.empty_documents == 1
    assert tokens[:4] == [256, ord("a"), 257, 256]
    assert tokens.count(257) == tokens.count(256) == 4


def test_literal_special_tokens_stay_text(tmp_path):
    texts = ["say <|end_of_text|> or <|begin_of_text|>", *make_texts(30)]
    source = write_lines(tmp_path / "in.jsonl", texts)
    run([source], tmp_path / "out", validation_fraction=0, tokenizer="train", vocab_size=300)
    found, tokens = documents(tmp_path / "out", "train")
    assert found == texts
    assert tokens.count(load_tokenizer(tmp_path / "out").eos) == len(texts)


@pytest.mark.slow
def test_large_vocabularies_take_four_bytes(tmp_path):
    vocab = {f"w{n}": n for n in range(65_535)}
    for extra, dtype in ((["<s>"], "uint16"), (["<s>", "x"], "int32")):
        entries = {**vocab, **{name: 65_535 + n for n, name in enumerate(extra)}}
        inner = Inner(models.WordLevel({**entries, "</s>": 0, "w0": 1, "w1": 2}, unk_token="w1"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        inner.save(str(tmp_path / "tokenizer.json"))
        out = tmp_path / dtype
        texts = [f"w{n} w65534" for n in range(9, 20)]
        source = write_lines(tmp_path / "in.jsonl", texts)
        made = run([source], out, tokenizer=str(tmp_path / "tokenizer.json"), validation_fraction=0)
        assert (made.dtype, made.vocab_size) == (dtype, 65_535 + len(extra))
        assert documents(out, "train")[1][:4] == [65_535, 9, 65_534, 0]
        stream = StreamingDataset(str(out / "train"), item_loader=TokensLoader(block_size=4))
        assert [int(t) for t in stream[0]] == [65_535, 9, 65_534, 0]
        assert verify(out) == []


def test_boundaries_of_other_names(tmp_path):
    inner = Inner(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["[CLS]", "[SEP]"])
    inner.save(str(tmp_path / "tokenizer.json"))
    source = write_lines(tmp_path / "in.jsonl", ["a b", "b [SEP]"])
    settings = {"tokenizer": str(tmp_path / "tokenizer.json"), "validation_fraction": 0}
    with pytest.raises(UserError, match="--bos TOKEN"):
        run([source], tmp_path / "out", **settings)
    made = run([source], tmp_path / "out", **settings, bos="[CLS]", eos="[SEP]")
    assert (made.tokenizer["bos"], made.tokenizer["eos"]) == (3, 4)
    assert documents(tmp_path / "out", "train")[1] == [3, 1, 2, 4, 3, 2, 0, 4]
    assert run([source], tmp_path / "out", **settings, bos="[CLS]", eos="[SEP]") == made
    with pytest.raises(UserError, match=r"bos '\[CLS\]', not '\[SEP\]'"):
        run([source], tmp_path / "out", **settings, bos="[SEP]", eos="[SEP]")
    again = run([source], tmp_path / "again", tokenizer=str(tmp_path / "out"), validation_fraction=0)
    assert again.tokenizer["sha256"] == made.tokenizer["sha256"]
    with pytest.raises(UserError, match="with tokenizer bytes leave them out"):
        PrepareConfig([source], bos="[CLS]")


def test_a_preparation_is_known_by_the_same_settings_as_before():
    """Folders that were prepared earlier are found again: new settings are not among these unless they are given."""
    assert list(PrepareConfig(["x"]).identity()) == [
        "sources", "tokenizer", "vocab_size", "tokenizer_bytes", "validation_fraction", "text_key", "separator",
        "suffixes", "on_error", "shard_tokens",
    ]  # fmt: skip


def test_too_little_text_is_refused(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ["", ""])
    with pytest.raises(UserError, match="there is no text in"):
        run([source], tmp_path / "empty")
    one = write_lines(tmp_path / "one.jsonl", ["1"])
    with pytest.raises(UserError, match=r"1 bytes are too little for a validation split: .* validation_fraction 0"):
        run([one], tmp_path / "one", validation_fraction=1e-9)
    assert run([one], tmp_path / "one", validation_fraction=0).splits["train"].documents == 1  # as the message says
    with pytest.raises(UserError, match="vocab_size takes a whole number of at least 258"):
        run([one], tmp_path / "two", tokenizer="train", vocab_size=10)


def test_bad_input_is_listed_when_skipped(tmp_path):
    write_lines(tmp_path / "a.jsonl", make_texts(40))
    (tmp_path / "b.jsonl").write_bytes(b"nonsense\n")
    with pytest.raises(UserError, match=r"b\.jsonl row 1: not JSON"):
        run([tmp_path], tmp_path / "out")
    made = run([tmp_path / "*.jsonl"], tmp_path / "out2", on_error="skip")
    assert len(made.skipped) == 1
    assert "b.jsonl row 1" in json.loads((tmp_path / "out2" / "manifest.json").read_text())["skipped"][0]
    assert [(s["files"], s["bytes"]) for s in made.sources] == [
        (2, (tmp_path / "a.jsonl").stat().st_size + 9),
    ]


def test_names_of_files_that_are_not_utf_8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name, content in ((b"a\xe9.txt", b"some text " * 90), (b"b\xe9.txt", b"\xe9")):
        with open(folder + b"/" + name, "wb") as file:
            file.write(content)
    made = run([os.fsdecode(folder)], tmp_path / "out", on_error="skip")
    assert Manifest.load(tmp_path / "out") == made
    assert made.sources[0]["source"] == os.fsdecode(folder)
    assert "b\udce9.txt: not UTF-8" in made.skipped[0]


def test_a_full_disk_is_said_before_and_while(tmp_path, monkeypatch):
    source = write_lines(tmp_path / "in.jsonl", make_texts(40))
    with monkeypatch.context() as patch:
        patch.setattr(folders, "free_bytes", lambda folder: 100)
        with pytest.raises(UserError, match="GB are free"):
            run([source], tmp_path / "out")

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_shard", full)
        with pytest.raises(UserError, match="no space left for"):
            run([source], tmp_path / "out")
    run([source], tmp_path / "out")
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize(
    "wrong",
    [{"validation_fraction": 1.0}, {"on_error": "ignore"}, {"workers": 0}, {"separator": ""}, {"shard_tokens": 0}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        PrepareConfig(["x"], **wrong)


def test_the_split_is_a_hash_of_the_text():
    digest = hashlib.blake2b(b"some text", digest_size=8, person=b"split").digest()
    assert splitting.fraction_of("some text") == int.from_bytes(digest, "big") / 2**64
    shares = [splitting.fraction_of(f"text {n}") for n in range(4000)]
    assert np.histogram(shares, 10, (0, 1))[0] == pytest.approx(np.full(10, 400), rel=0.2)


def test_a_refused_preparation_goes_on_when_told_to_skip(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"no": 1}\n{"text": "two"}\n')
    with pytest.raises(UserError, match="--on_error skip"):
        run([tmp_path / "a.jsonl"], tmp_path / "out", validation_fraction=0.0)
    made = run([tmp_path / "a.jsonl"], tmp_path / "out", validation_fraction=0.0, on_error="skip")
    assert made.splits["train"].documents == 2
    assert len(made.skipped) == 1


def ended(group):
    """Whether no process of a group is left, after a while."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
        ),
    ],
)
def test_a_signal_to_all_processes_ends_a_preparation(tmp_path, number):
    """As Slurm and terminals send it; workers end with the process that started them, which says what is kept."""
    source = write_lines(tmp_path / "in.jsonl", make_texts(3000) * 8)
    words = ["data", "prepare", source, "--output", str(tmp_path / "out"), "--workers", "2", "--progress", "false"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mm_lightning.cli", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list((tmp_path / "out").glob(".unfinished/unit-*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 128 + number
    assert "are kept in" in said[-2]
    assert said[-1] == ("mm: interrupted" if number == signal.SIGINT else f"mm: {number.name}: ended")
    assert not [line for line in said if "Traceback" in line or "leaked" in line]
    assert ended(process.pid)
    assert run([source], tmp_path / "out", validation_fraction=0.01).splits["train"].documents >= 23_000


def test_a_token_for_each_character(tmp_path):
    """One file, of which the end is for validation: all its characters, and nothing else, are tokens."""
    text = "".join(f"Line {n}: to be, or not to be - that is the question;\n" for n in range(400)) + "ä\n"
    (tmp_path / "text.txt").write_text(text)
    config = PrepareConfig([str(tmp_path / "text.txt")], tokenizer="chars", validation_fraction=0.2, workers=1)
    made = room.prepare(config, tmp_path / "data", progress=False)
    tokenizer = load_tokenizer(tmp_path / "data")
    assert tokenizer.vocab_size == len(set(text)) + 2
    tokens = {
        name: read_shard(tmp_path / "data" / name / split.shards[0].file, made.dtype, split.tokens).tolist()
        for name, split in made.splits.items()
    }
    parts = {name: tokenizer.decode(ids) for name, ids in tokens.items()}
    assert parts["train"] + parts["validation"] == text
    assert len(tokens["validation"]) == len(parts["validation"]) + 2 > 0.15 * len(text)
    assert parts["validation"].startswith("Line")
    assert room.prepare(config, tmp_path / "data", progress=False).fingerprint == made.fingerprint

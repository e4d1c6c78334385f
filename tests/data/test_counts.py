"""The numbers of a manifest are those of its shards: edited ones are found, right ones of any tokenizer pass."""

import json
import re
import shutil
from copy import deepcopy

import pytest
from corpus_samples import make_texts, write_lines
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from mm_lightning.data.facts import FactsConfig
from mm_lightning.data.generator import generate_folder
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.regbench import RegBenchConfig
from mm_lightning.data.verify import check, verify
from mm_lightning.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Several shards of each split, of bytes. Not to be changed."""
    root = tmp_path_factory.mktemp("counts")
    source = write_lines(root / "in.jsonl", make_texts(200))
    prepare(PrepareConfig([source], validation_fraction=0.2, shard_tokens=1500, workers=1), root / "data", False)
    return root / "data"


def edited(folder, target, change):
    """A copy of a folder as an earlier version would have written it, without a checksum, and edited."""
    shutil.copytree(folder, target)
    content = json.loads((target / "manifest.json").read_text())
    del content["checksum"]
    change(content)
    (target / "manifest.json").write_text(json.dumps(content))
    return target


def put(*path):
    """A change of one number: `put("splits", "train", "bytes", 3)`, or of what it was."""

    def change(content):
        for key in path[:-2]:
            content = content[key]
        value = path[-1]
        content[path[-2]] = value(content[path[-2]]) if callable(value) else value

    return change


def turn(content):
    content["splits"]["train"]["shards"].reverse()


def double(content):
    listed = content["splits"]["train"]["shards"]
    listed[1] = deepcopy(listed[0])


EDITS = {
    "fewer bytes": (put("splits", "train", "bytes", lambda n: n // 2), "bytes of text"),
    "more bytes": (put("splits", "validation", "bytes", lambda n: n * 2), "bytes of text"),
    "more tokens": (put("splits", "train", "tokens", lambda n: n + 1), r"tokens, the shards have \d+"),
    "fewer documents": (put("splits", "train", "documents", lambda n: n - 1), "documents, the histogram has"),
    "entropy": (put("splits", "train", "unigram_entropy", lambda n: n * 1.01), "a unigram entropy of"),
    "longest document": (put("splits", "train", "longest_document", lambda n: n + 1), "tokens in the longest document"),
    "a histogram that sums up": (
        put("splits", "train", "length_histogram", lambda h: [h[0], h[1] + 1, *h[2:-1], h[-1] - 1]),
        "documents by length|longest document",
    ),
    "tokens of a shard": (put("splits", "train", "shards", 0, "tokens", lambda n: n + 1), "cannot have|tokens"),
    "reordered shards": (turn, "each once and in order"),
    "a shard twice": (double, "each once and in order"),
    "vocabulary": (put("tokenizer", "vocab_size", 300), "vocab_size of the tokenizer is 300, not 258"),
    "bos": (put("tokenizer", "bos", 1), "bos of the tokenizer is 1, not 256"),
    "tokenizer": (put("tokenizer", "sha256", "0" * 64), "is not the tokenizer"),
    "layout": (put("context_length", 10), "in rows of 11|tokens"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_number_is_found_without_a_checksum(shards, tmp_path, edit):
    change, said = EDITS[edit]
    problems = verify(edited(shards, tmp_path / "data", change))
    assert problems
    assert any(re.search(said, line) for line in problems), problems


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("splits", "train", "documents", -3), "train: documents is -3"),
        (put("splits", "train", "tokens", 3.5), r"train: tokens is 3\.5"),
        (put("splits", "train", "bytes", True), "train: bytes is True"),
        (put("splits", "train", "length_histogram", 0, "many"), r"train: length_histogram\[0\] is 'many'"),
        (put("splits", "train", "unigram_entropy", float("nan")), "train: unigram_entropy is nan"),
        (put("splits", "train", "shards", 0, "bytes", -1), r"train: bytes of chunk-0-0\.bin is -1"),
        (put("dtype", "uint8"), "dtype is 'uint8', not uint16 or int32"),
    ],
)
def test_impossible_values_are_refused_by_whoever_reads(shards, tmp_path, change, said):
    with pytest.raises(UserError, match=rf"manifest\.json is damaged \({said}"):
        Manifest.load(edited(shards, tmp_path / "data", change))


@pytest.mark.parametrize("edit", EDITS)
def test_a_manifest_knows_that_it_was_edited(shards, tmp_path, edit):
    folder = shutil.copytree(shards, tmp_path / "data")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content))
    assert verify(folder) == []  # the layout of the file is nobody's business
    EDITS[edit][0](content)
    (folder / "manifest.json").write_text(json.dumps(content))
    for read in (verify, check):
        with pytest.raises(UserError, match=r"manifest\.json is damaged \(its checksum is not that of its content\)"):
            read(folder)


def test_a_manifest_of_an_earlier_version_is_read(shards, tmp_path):
    folder = edited(shards, tmp_path / "data", lambda content: content.pop("source_contents"))
    assert verify(folder) == []
    assert Manifest.load(folder).content == Manifest.load(shards).content


def words(*special, unknown="[UNK]"):
    inner = Inner(models.WordLevel({"[UNK]": 0, "the": 1, "keys,": 2}, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([token for token in special if token != "[UNK]"])
    return inner


@pytest.mark.parametrize("kind", ["train", "words", "one boundary", "boundary within documents"])
def test_what_any_tokenizer_gives_is_whole(tmp_path, kind):
    source = write_lines(tmp_path / "in.jsonl", make_texts(100))
    tokenizer = {
        "words": lambda: words("<s>", "</s>"),
        "one boundary": lambda: words("<|endoftext|>"),
        "boundary within documents": lambda: words("[UNK]", "</s>"),
    }
    settings = {"tokenizer": "train", "vocab_size": 300}
    if kind != "train":
        tokenizer[kind]().save(str(tmp_path / "tokenizer.json"))
        settings = {"tokenizer": str(tmp_path / "tokenizer.json")}
    if kind == "boundary within documents":
        settings |= {"bos": "[UNK]", "eos": "</s>"}
    config = PrepareConfig([source], validation_fraction=0.2, shard_tokens=500, workers=1, **settings)
    made = prepare(config, tmp_path / "out", False)
    assert len(made.splits["train"].shards) > 1
    assert verify(tmp_path / "out") == []
    if kind == "train":
        halved = edited(tmp_path / "out", tmp_path / "halved", put("splits", "train", "bytes", lambda n: n // 2))
        assert any("bytes of text" in line for line in verify(halved))


def test_generated_rows_are_whole(tmp_path):
    generate_folder(RegBenchConfig(20, 5), tmp_path / "regbench", 1024, progress=False)
    generate_folder(FactsConfig(20, 5), tmp_path / "facts", 256, progress=False)
    for name in ("regbench", "facts"):
        assert verify(tmp_path / name) == []
        wrong = edited(tmp_path / name, tmp_path / f"{name}-edited", put("splits", "train", "tokens", lambda n: n - 1))
        assert any("tokens" in line for line in verify(wrong))

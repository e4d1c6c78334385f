import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from mm_lightning.data import tokenizer as room
from mm_lightning.data.tokenizer import BEGIN, END, load_tokenizer
from mm_lightning.data.tokenizer_training import train_tokenizer
from mm_lightning.errors import UserError

SAMPLES = ["", "a", "naïve 字 🙂\r\n\tx", "if x:\n\n    return 1\n\n\n", f"a {END} b {BEGIN}", "\x00\x7f", " " * 9]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    texts = [f"class C{n}:\n\n    def f(self):\n        return {n}\n\n" for n in range(300)]
    return train_tokenizer(texts, 320, path, progress=False)


@pytest.mark.parametrize("text", SAMPLES)
def test_decoding_gives_the_text_back(trained, text):
    for tokenizer in (trained, load_tokenizer("bytes")):
        ids = tokenizer.encode(text)
        assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.eos]) == text
        assert not {tokenizer.bos, tokenizer.eos} & set(ids)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_special_tokens_are_shown_on_demand(trained):
    for tokenizer in (trained, load_tokenizer("bytes")):
        ids = [tokenizer.bos, *tokenizer.encode("x"), tokenizer.eos]
        assert tokenizer.decode(ids, special=True) == f"{BEGIN}x{END}"


def test_bytes_are_utf8():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("é\n") == [0xC3, 0xA9, 10]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (256, 257, 258)
    assert tokenizer.decode([0xC3, 65]) == "\ufffdA"


def test_half_a_character_is_named(trained):
    for tokenizer in (trained, load_tokenizer("bytes")):
        for half in ("\ud83d", "\udcff"):
            with pytest.raises(UserError, match=r"half a character ends 'good text\\ud"):
                tokenizer.encode_batch(["", f"good text{half} and more"])


def test_trained_vocabulary_has_the_size_asked_for_and_layout(trained):
    assert trained.vocab_size == 320
    pieces = {trained.decode([i]) for i in range(trained.vocab_size)}
    assert "\n\n" in pieces
    assert "   " in pieces
    assert len(trained.encode("\n\n")) == 1


def test_training_twice_gives_the_same_file(tmp_path):
    texts = [f"some text {n} and {n * 7}\n" for n in range(100)]
    for name in "ab":
        train_tokenizer(iter(texts), 300, tmp_path / name, progress=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("run", ["a" * 5000, "字" * 5000, " " * 5000 + "x", "-" * 5000, "\n" * 5000])
def test_training_pieces_are_bounded_and_encoding_is_not(tmp_path, run):
    tokenizer = train_tokenizer([run, run + "b"], 300, tmp_path / "tokenizer.json", progress=False)
    longest = max(len(tokenizer.decode([i])) for i in range(tokenizer.vocab_size))
    assert 16 <= longest <= 512
    assert tokenizer.decode(tokenizer.encode(run)) == run
    split = json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"][0]
    assert r"\p{L}+|" in split["pattern"]["Regex"]


def test_hash_is_of_the_content_and_not_of_its_layout(trained, tmp_path):
    content = json.loads(Path(trained.name).read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(content.items()))))
    again = load_tokenizer(tmp_path)
    assert again.sha256 == trained.sha256
    content["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).sha256 != trained.sha256


def test_saved_tokenizers_load_as_the_same(trained, tmp_path):
    for tokenizer in (trained, load_tokenizer("bytes")):
        tokenizer.save(tmp_path / "tokenizer.json")
        assert load_tokenizer(tmp_path).sha256 == tokenizer.sha256


def test_known_names_of_document_boundaries(tmp_path):
    for names in (["<s>", "</s>"], ["<|endoftext|>"]):
        inner = Inner(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        inner.add_special_tokens(names)
        inner.save(str(tmp_path / "tokenizer.json"))
        tokenizer = load_tokenizer(tmp_path)
        assert (tokenizer.bos, tokenizer.eos) == (2, 1 + len(names))


def other_names(path, *special, ordinary=()):
    """A tokenizer.json with boundaries of other names than the usual ones."""
    inner = Inner(models.WordLevel({w: n for n, w in enumerate(["[UNK]", "a", "b", *ordinary])}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(special))
    inner.save(str(path))
    return path


def test_other_names_of_document_boundaries(tmp_path):
    path = other_names(tmp_path / "tokenizer.json", "[CLS]", "[SEP]")
    message = r"no tokens that begin and end .*--bos TOKEN --eos TOKEN .*its special tokens are \[CLS\], \[SEP\]"
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)
    tokenizer = load_tokenizer(path, "[CLS]", "[SEP]")
    assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (3, 4, 5)
    assert tokenizer.encode("a [SEP] b") == [1, 0, 2]  # a name in a text is no boundary
    assert tokenizer.decode([3, 1, 4]) == "a"
    assert tokenizer.decode([3, 1, 4], special=True) == "[CLS] a [SEP]"
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved" / "tokenizer.json")
    again = load_tokenizer(tmp_path / "saved")
    assert (again.bos, again.eos, again.sha256) == (3, 4, tokenizer.sha256)
    plain = Inner.from_file(str(tmp_path / "saved" / "tokenizer.json"))  # other programs read them as well
    assert plain.encode("a").ids == [3, 1, 4]
    alone = load_tokenizer(path, eos="[SEP]")
    assert (alone.bos, alone.eos) == (4, 4)
    with pytest.raises(UserError, match=r"has no token '<end>'; its special tokens are \[CLS\], \[SEP\]"):
        load_tokenizer(path, "[CLS]", "<end>")
    with pytest.raises(UserError, match="the tokenizer `bytes` has its own"):
        load_tokenizer("bytes", bos="[CLS]")


def test_names_that_are_given_win_over_the_usual_ones_and_may_be_of_ordinary_tokens(tmp_path):
    path = other_names(tmp_path / "tokenizer.json", "<s>", "</s>", ordinary=["<q:1>", "$A end"])
    tokenizer = load_tokenizer(path, "<q:1>", "$A end")
    assert (tokenizer.bos, tokenizer.eos) == (3, 4)
    assert tokenizer.decode([3, 1, 4]) == "a"
    tokenizer.save(tmp_path / "again.json")
    assert (load_tokenizer(tmp_path / "again.json").bos, load_tokenizer(path).bos) == (3, 5)


def test_a_tokenizer_file_with_a_byte_order_mark(tmp_path):
    path = other_names(tmp_path / "tokenizer.json", "<s>", "</s>")
    sha256 = load_tokenizer(path).sha256
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_tokenizer(path).sha256 == sha256
    path.write_bytes(b"\xff{}")
    with pytest.raises(UserError, match="not UTF-8"):
        load_tokenizer(path)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nothing.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"not a tokenizer\.json of the"):
        load_tokenizer(tmp_path)
    Inner(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="no tokens that begin and end a document"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"vocab_size.*258.*257|vocab_size.*258"):
        train_tokenizer(["a"], 257, tmp_path / "t.json")
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], 300, tmp_path / "t.json", progress=False)


def test_long_texts_are_encoded_in_pieces_that_give_the_same(tmp_path, monkeypatch):
    trained = train_tokenizer([" ".join(SAMPLES) * 5 + "the cat sat on the mat " * 20], 300, tmp_path / "t.json", False)
    draw = random.Random(0)
    parts = [
        "a",
        "b",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "1",
        "²",
        "é",
        "字",
        "🙂",
        ".",
        "'s",
        "_",
        "\u0301",
        "the ",
        " cat",
    ]
    texts = ["".join(draw.choices(parts, k=draw.randint(0, 60))) for _ in range(500)]
    whole = trained.encode_batch(texts)
    monkeypatch.setattr(room, "PIECE", 5)
    assert sum(len(list(room.pieces(text))) for text in texts) > 1500
    longest = []
    encode = trained._encode_batch
    monkeypatch.setattr(trained, "_encode_batch", lambda batch: longest.append(max(map(len, batch))) or encode(batch))
    assert trained.encode_batch(texts) == whole
    assert [ids.tolist() for ids in trained.encode_arrays(texts, "uint16")] == whole
    assert max(longest) < max(map(len, texts))


def test_a_tokenizer_that_looks_further_than_words_reads_a_text_whole(tmp_path):
    path = tmp_path / "t.json"
    train_tokenizer(["the cat sat on the mat"], 260, path, False)
    content = json.loads(path.read_text())
    assert load_tokenizer(path)._splits_at_spaces
    others = {
        "normalizer": {"normalizer": {"type": "NFC"}},
        "no split": {"pre_tokenizer": None},
        "prefix": {
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        },
    }
    for changed in others.values():
        path.write_text(json.dumps({**content, **changed}))
        assert not load_tokenizer(path)._splits_at_spaces

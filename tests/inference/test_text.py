"""Text of tokens, piece by piece."""

import pytest
from spaced_tokenizers import spaced_tokenizer

from mm_lightning.data.tokenizer import load_tokenizer
from mm_lightning.errors import UserError
from mm_lightning.inference.text import HALF, TextStream, check_stop, encode_next, unescape


def pieces(tokenizer, data: bytes, stop=(), before=()):
    text = TextStream(tokenizer, stop, before)
    found = []
    for token in data:
        found.append(text.add(token))
        if text.stopped:
            break
    return [*found, text.finish()]


def test_characters_of_several_bytes_are_shown_whole(tokenizer):
    data = "né → ☃!".encode()
    found = pieces(tokenizer, data)
    assert "".join(found) == "né → ☃!"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)
    assert found[1:3] == ["", "é"]


def test_bytes_that_are_no_character_are_shown_in_the_end(tokenizer):
    for data in (b"a\xe2\x86", b"\xffab", b"a\xe2b\xff", b"\x80\x80 x \xf0\x9f", "a�b".encode()):
        assert "".join(pieces(tokenizer, data)) == data.decode(errors="replace")


def test_nothing_that_may_become_a_stop_string_is_shown(tokenizer):
    assert pieces(tokenizer, b"one two", ["wo t", "two!"]) == ["o", "n", "e", " ", "", "", "", "two"]
    assert pieces(tokenizer, b"one two", ["two"]) == ["o", "n", "e", " ", "", "", "", ""]
    assert "".join(pieces(tokenizer, b"aab aaab", ["aaab"])) == "aab "
    assert "".join(pieces(tokenizer, b"abcd", ["abc", "b"])) == "a"


def test_settled(tokenizer):
    text = TextStream(tokenizer, ["\nUser"])
    seen = [(text.add(token), text.settled)[1] for token in "a\nb→\nUser".encode()]
    assert seen == [True, False, True, False, False, True, False, False, False, False, False]


def test_pieces_of_a_trained_tokenizer(tmp_path):
    """Some of whose tokens end within a character."""
    from mm_lightning.data.tokenizer_training import train_tokenizer

    trained = train_tokenizer(["the cat → the ☃ cat"] * 3, 290, tmp_path / "t.json", progress=False)
    text = "the cat ☃→ caté  the\n\n the"
    assert "".join(pieces(trained, trained.encode(text))) == text


@pytest.mark.parametrize(
    "text", ["Document 5. the river values", "the ☃é old 字字字字字字字 river: zzz", "a  b\n\n the"]
)
def test_a_document_goes_on_with_the_space_before_a_word(spaced, text):
    ids = [spaced.bos, *spaced.encode(text)]
    whole = spaced.decode(ids)
    ends = [n for n in range(1, len(ids) + 1) if not spaced.decode(ids[:n]).endswith(HALF)]
    for end in ends:
        assert spaced.decode(ids[:end]) + "".join(pieces(spaced, ids[end:], before=ids[:end])) == whole
    repeated = [spaced.bos, *spaced.encode("the " * 99), *[spaced.eos] * 40]  # and tokens that are not shown
    shown = "".join(pieces(spaced, [*[spaced.eos] * 9, *spaced.encode("river the")], before=repeated))
    assert shown == " river the"


def test_a_text_of_parts_of_characters_only(tmp_path):
    """Few tokens are decoded again, though no four of them begin with a character."""
    tokenizer = spaced_tokenizer("llama2", tmp_path)
    text = "字字字" * 40
    stream = TextStream(tokenizer)
    assert "".join(map(stream.add, tokenizer.encode(text))) == text
    assert len(stream._tokens) < 8


def test_text_read_behind_other_text(spaced):
    document = [spaced.bos, *spaced.encode("the old")]
    assert encode_next(spaced, "the old", [spaced.bos]) == document[1:]
    for text in (" river the", " old", ""):
        assert spaced.decode([*document, *encode_next(spaced, text, document)]) == "the old" + text


@pytest.mark.parametrize("kind", ["metaspace", "llama2"])
def test_text_read_within_a_word(kind, tmp_path):
    tokenizer = spaced_tokenizer(kind, tmp_path)
    document = [tokenizer.bos, *tokenizer.encode("the old")]
    for text in ("er river", "\nriver", ".", "☃", " old\n"):
        assert tokenizer.decode([*document, *encode_next(tokenizer, text, document)]) == "the old" + text


def test_text_read_behind_other_text_with_the_space_of_byte_level_tokenizers(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    inner.add_special_tokens(names[:2])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    document = [tokenizer.bos, *tokenizer.encode("the old")]
    for text in ("er river", " river", "\nriver", "."):
        assert tokenizer.decode([*document, *encode_next(tokenizer, text, document)]) == " the old" + text


def test_stop_strings_are_checked():
    for stop in ([""], "END"):
        with pytest.raises(UserError, match="not empty"):
            check_stop(stop)


def test_unescape():
    assert unescape(r"\nUser:\t{}") == "\nUser:\t{}"
    assert unescape(r"C:\\new") == r"C:\new"

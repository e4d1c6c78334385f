"""Text of tokens, piece by piece."""

import pytest

from mm_lightning.errors import UserError
from mm_lightning.inference.text import TextStream, check_stop, unescape


def pieces(tokenizer, data: bytes, stop=()):
    text = TextStream(tokenizer, stop)
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
    from mm_lightning.data.tokenizer import train_tokenizer

    trained = train_tokenizer(["the cat → the ☃ cat"] * 3, 290, tmp_path / "t.json", progress=False)
    text = "the cat ☃→ caté  the\n\n the"
    assert "".join(pieces(trained, trained.encode(text))) == text


def test_stop_strings_are_checked():
    for stop in ([""], "END"):
        with pytest.raises(UserError, match="not empty"):
            check_stop(stop)


def test_unescape():
    assert unescape(r"\nUser:\t{}") == "\nUser:\t{}"
    assert unescape(r"C:\\new") == r"C:\new"

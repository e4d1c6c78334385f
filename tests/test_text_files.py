"""The reader of text files and JSON lines that every command uses."""

import pytest

from mm_lightning.errors import UserError
from mm_lightning.text_files import json_lines, read_document, read_json, read_text, text_lines

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.jsonl"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def test_a_byte_order_mark_is_no_text_and_blank_lines_are_no_rows(write):
    file = write(BOM + b"\r\n \na\r\n\n b\xc3\xa9 \n")
    assert read_text(file) == "\n \na\n\n bé \n"
    assert list(text_lines(file)) == [(3, "a"), (5, " bé ")]
    rows = b'{"a": 1}\r\n\n \t\n"b"\n\n'
    assert list(json_lines(write(rows))) == [(1, {"a": 1}), (4, "b")]
    assert list(json_lines(write(BOM + rows))) == [(1, {"a": 1}), (4, "b")]
    assert list(json_lines(write(BOM + b"\n[2]"))) == [(2, [2])]
    assert read_json(write(BOM + b'{"a":\n 1}')) == {"a": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{oops", "not JSON: .* at character 2"),
        (b'{"text": "\xff"}', "not UTF-8, invalid start byte at byte 10, line 1: 0xff"),
        (rb'{"a": ["b\ud800"]}', "a, entry 1: half a surrogate pair behind 'b'"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b"1" * 10_000, "not JSON that can be read"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(write, row, reason):
    file = write(BOM + b"1\n\n" + row + b"\n2\n")
    with pytest.raises(UserError, match=rf"a\.jsonl, row 3: {reason}") as caught:
        list(json_lines(file))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"a\.jsonl: {reason}"):
        read_json(write(row))


def test_half_a_surrogate_pair_in_a_list_is_named_by_its_row(write):
    with pytest.raises(UserError, match=r"row 2, question: half a surrogate pair behind 'x'"):
        read_json(write(rb'[{"question": "a"}, {"question": "x\ud83d"}]'))


def test_bytes_that_are_no_text_are_named_with_byte_and_line(write):
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8, invalid continuation byte at byte 11, line 3: 0xe9"):
        read_text(write(BOM + b"one\n\ncaf\xe9 ", "a.txt"))
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8, unexpected end of data at byte 1, line 1"):
        read_text(write(b"a\xc3", "b.txt"))


def test_files_that_are_none(tmp_path, write):
    with pytest.raises(UserError, match="there is no text file nowhere"):
        read_text("nowhere")
    with pytest.raises(UserError, match="is a folder"):
        list(json_lines(tmp_path))
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        read_document(write(BOM, "a.txt"))

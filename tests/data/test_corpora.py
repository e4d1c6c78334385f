import gzip
import io
import json
import random
import re
import sys
import sysconfig
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mm_lightning import decompress
from mm_lightning.data import source_files
from mm_lightning.data.corpora import plan_units, read_piece
from mm_lightning.data.prepare import prepare
from mm_lightning.data.prepare_config import PrepareConfig
from mm_lightning.data.source_files import ReadSettings, list_files
from mm_lightning.errors import BadInput, UserError
from mm_lightning.text_files import read_document


def read(sources, unit_bytes=1 << 20, skipped=None, **settings):
    settings = ReadSettings(**settings)
    files = list_files([str(source) for source in sources], settings)
    units = plan_units(files, settings, unit_bytes)
    pieces = [piece for unit in units for piece in unit]
    return [text for piece in pieces for text in read_piece(files[piece.file], piece, settings, skipped)]


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_a_text_file_is_a_document_and_folders_are_sorted(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_bytes("c\r\n\n é".encode())
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa")
    (tmp_path / "z.html").write_text("z")
    (tmp_path / ".hidden.txt").write_text("hidden")
    assert read([tmp_path]) == ["a", "c\r\n\n é"]
    assert read([tmp_path], suffixes=(".html",)) == ["z"]
    assert read([tmp_path / "*.html"]) == ["z"]
    assert read([tmp_path / "*/*.txt"]) == ["c\r\n\n é"]
    assert read([tmp_path / "b/c.txt", tmp_path / "a.txt"]) == ["c\r\n\n é", "a"]


def test_the_texts_of_a_folder_are_read_and_others_counted(tmp_path):
    for name in ("a.txt", "b.md", "c.rst", "d.py"):
        (tmp_path / name).write_text(name)
    for name in ("x.pdf", "y.pdf", "z.html", "Makefile", ".hidden"):
        (tmp_path / name).write_text("no text")
    left_out = []
    files = list_files([str(tmp_path)], ReadSettings(), left_out)
    assert [file.name for file in files] == ["a.txt", "b.md", "c.rst", "d.py"]
    assert [file.url for file in files] == [str(tmp_path / file.name) for file in files]  # as a person writes them
    assert read([tmp_path]) == ["a.txt", "b.md", "c.rst", "d.py"]
    (line,) = left_out
    assert "are left out: 2 .pdf, 1 without a suffix, 1 .html (--suffixes" in line
    (tmp_path / "e.jsonl").write_bytes(lines("e"))
    assert read([tmp_path]) == ["a.txt", "e"]  # the others may be about the rows


@pytest.mark.parametrize("unit_bytes", [1, 7, 1 << 20])
def test_separators_and_rows_are_found_whatever_the_units(tmp_path, unit_bytes):
    (tmp_path / "s.txt").write_text("one\n<|endoftext|>\ntwo <\n\nx<|endoftext|><|endoftext|>thrée")
    assert read([tmp_path / "s.txt"], unit_bytes, separator="<|endoftext|>") == ["one", "two <\n\nx", "", "thrée"]
    (tmp_path / "s.txt").write_text("one\n\n\n\ntwo\n\nthree")
    assert read([tmp_path / "s.txt"], unit_bytes, separator="\n\n") == ["one", "", "two", "three"]
    (tmp_path / "r.jsonl").write_bytes(lines("a\nb", "", "ü", "x" * 50) + b"\n" + b'{"text": "no line end"}')
    assert read([tmp_path / "r.jsonl"], unit_bytes) == ["a\nb", "", "ü", "x" * 50, "no line end"]


def test_cutting_at_any_byte_finds_each_record_once(monkeypatch):
    draw = random.Random(0)
    for _ in range(500):
        separator = draw.choice([b"\n", b"ab", b"<|e|>"])
        data = separator.join(bytes(draw.choices(b"xyz", k=draw.randint(0, 6))) for _ in range(draw.randint(1, 8)))
        monkeypatch.setattr(decompress, "_BLOCK", draw.randint(1, 7))
        step = draw.randint(1, 12)
        pieces = [
            record
            for start in range(0, len(data), step)
            for _, record in decompress.records(io.BytesIO(data), separator, start, min(start + step, len(data)))
        ]
        expected = data.split(separator)
        assert pieces == (expected if expected[-1] else expected[:-1])


def test_compressed_files(tmp_path):
    many = [f"document {n} " * 50 for n in range(300)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(*many)))
    frames = [zstandard.compress(lines(*many[:100])), zstandard.compress(lines(*many[100:]))]
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress("text é".encode()))
    assert read([tmp_path], unit_bytes=10) == [*many, *many, "text é"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_truncated_compression_is_not_a_short_file(tmp_path, suffix):
    compress = gzip.compress if suffix == "gz" else zstandard.compress
    data = compress(lines(*(f"{random.Random(n).random()}" for n in range(5000))))
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"a\.jsonl\.{suffix}"):
        read([tmp_path])
    skipped = []
    read([tmp_path], skipped=skipped, on_error="skip")
    assert len(skipped) == 1


def test_parquet(tmp_path):
    table = pa.table({"content": [f"row {n}" for n in range(95)], "n": list(range(95))})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10)
    for unit_bytes in (1, 500, 1 << 20):
        assert read([tmp_path], unit_bytes, text_key="content") == [f"row {n}" for n in range(95)]
    with pytest.raises(UserError, match=r"no column 'text'; it has content, n"):
        read([tmp_path])
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"t\.parquet: damaged parquet"):
        read([tmp_path], 1)
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet row 2: null, not text"):
        read([tmp_path])
    assert read([tmp_path], on_error="skip") == ["a", "b"]


def strings(*values, kind=None):
    """A column of strings, whether or not they are UTF-8."""
    kind, plain = kind or pa.string(), pa.large_binary() if kind == pa.large_string() else pa.binary()
    column = pa.array(values, plain)
    return pa.Array.from_buffers(kind, len(column), column.buffers())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
def test_parquet_text_that_is_not_utf_8_is_named_or_skipped(tmp_path, kind):
    pq.write_table(pa.table({"text": strings(b"a", b"caf\xe9 au lait", b"b", kind=kind)}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet row 2: not UTF-8, invalid continuation byte at byte 3"):
        read([tmp_path])
    skipped = []
    assert read([tmp_path], on_error="skip", skipped=skipped) == ["a", "b"]
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([["a"], ["b"]]), "the column 'text' holds list<"),
        (pa.array([{"a": "b"}]), "the column 'text' holds struct<"),
        (pa.array([10**18], pa.timestamp("ms")), r"the column 'text' holds timestamp\[ms\], not text"),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1]), strings(b"a", b"\xe9")), "damaged parquet: Invalid UTF8"),
    ],
)
def test_parquet_columns_without_text_are_named_or_skipped(tmp_path, column, reason):
    pq.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
    (tmp_path / "z.txt").write_text("fine")
    with pytest.raises(UserError, match=rf"t\.parquet: {reason}"):
        read([tmp_path])
    skipped = []
    assert read([tmp_path], on_error="skip", skipped=skipped) == ["fine"]
    assert len(skipped) == 1


def test_parquet_column_names_that_are_not_utf_8_are_named_or_skipped(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a"], "caf\u00e9s": [1]}), path)
    path.write_bytes(path.read_bytes().replace("caf\u00e9s".encode(), b"cafes\xe9"))
    with pytest.raises(UserError, match=r"t\.parquet: damaged parquet: a column's name is not UTF-8: b'cafes\\xe9'"):
        read([tmp_path], 1)
    skipped = []
    assert read([tmp_path], on_error="skip", skipped=skipped) == []
    assert len(skipped) == 1


def test_a_byte_order_mark_within_json_and_parquet_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(rb'{"text": "\ufeffa\ufeff"}' + b"\n")
    pq.write_table(pa.table({"text": ["\ufeffb", "c"]}), tmp_path / "b.parquet")
    assert read([tmp_path]) == ["a\ufeff", "b", "c"]


def test_compressed_parquet(tmp_path):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), file)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(file.getvalue()))
    (tmp_path / "b.parquet.zst").write_bytes(zstandard.compress(file.getvalue()))
    assert read([tmp_path], 1) == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{oops", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"body": "x"}', "no key 'text'; it has body"),
        (b'{"text": 3}', "the key 'text' holds a number, not text"),
        (b'{"text": null}', "the key 'text' holds null, not text"),
        (b'{"text": ["a"]}', "the key 'text' holds a list, not text"),
        (b'{"text": ' + b"1" * 9999 + b"}", "not JSON that can be read"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (rb'{"text": "a\ud800"}', "half a surrogate pair behind 'a'"),
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path, row, reason):
    (tmp_path / "r.jsonl").write_bytes(lines("a", "b") + row + b"\n" + lines("c"))
    with pytest.raises(UserError, match=rf"r\.jsonl row 3: {reason}"):
        read([tmp_path])
    skipped = []
    assert read([tmp_path], on_error="skip", skipped=skipped) == ["a", "b", "c"]
    assert len(skipped) == 1
    assert "r.jsonl row 3" in skipped[0]


def test_undecodable_files_are_named_or_skipped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 ol\xe9")
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8, invalid continuation byte at byte 3"):
        read([tmp_path])
    skipped = []
    assert read([tmp_path], on_error="skip", skipped=skipped) == ["fine"]
    assert "b.txt" in skipped[0]


def test_other_file_systems(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/x/a.txt", b"in memory")
    memory.pipe("/corpus/b.jsonl", lines("row"))
    assert sorted(read(["memory://corpus"])) == ["in memory", "row"]
    assert read(["memory://corpus/*.jsonl"]) == ["row"]
    (tmp_path / "a.txt").write_text("local")
    assert read([f"file://{tmp_path}/a.txt"]) == ["local"]


def test_missing_sources_are_named(tmp_path):
    for source, message in {
        tmp_path / "none": "there is no",
        tmp_path: "nothing to read in",
        tmp_path / "*.txt": "nothing to read in",
        "nosuch://x": "cannot list nosuch://x",
    }.items():
        with pytest.raises(UserError, match=message):
            read([source])
    with pytest.raises(UserError, match="no sources"):
        read([])
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="named twice"):
        read([tmp_path, tmp_path / "a.txt"])


def test_standard_library():
    files = list_files(["python-stdlib"], ReadSettings())
    names = [file.name for file in files]
    assert names == sorted(names)
    assert {"os.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "/tests/" in name or name.startswith("test/")]
    first = next(iter(plan_units(files, ReadSettings(), 1)))[0]
    text = next(read_piece(files[first.file], first, ReadSettings()))
    assert text.encode() == (Path(sysconfig.get_paths()["stdlib"]) / names[0]).read_bytes()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The site-packages of a Python for which two packages are installed."""
    folder = tmp_path / "lib" / "site-packages"
    files = {
        "b/code.py": "b = 1\n",
        "b/guide.rst": "Guide",
        "a.py": "a = 1\n",
        "a-1.5.dist-info/METADATA": "Name: a\nVersion: 1.5\n",
        "a-1.5.dist-info/licenses/LICENSE.txt": "license",
        "B-2.dist-info/METADATA": "Name: B\nVersion: 2\n",
        "b/tests/test_code.py": "test",
        "b/__pycache__/code.cpython-311.pyc": "compiled",
        "b/data.bin": "data",
        "b/README.md": "# B",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "b/latin.txt").write_bytes(b"caf\xe9")
    monkeypatch.setattr(source_files, "site_packages", lambda: [folder])
    return folder


def test_the_folders_of_installed_packages(tmp_path, monkeypatch):
    own, base = tmp_path / "own/site-packages", tmp_path / "base/dist-packages"
    with monkeypatch.context() as change:
        change.setattr(sys, "path", [str(tmp_path), str(own), str(base), str(own)])
        folders = source_files.site_packages()
    assert folders == [own, base]


def test_installed_packages(site):
    files = list_files(["python-packages"], ReadSettings())
    assert [(file.name, file.kind) for file in files] == [
        ("a.py", "python"),
        ("b/README.md", "text"),
        ("b/code.py", "python"),
        ("b/guide.rst", "text"),
        ("b/latin.txt", "text"),
    ]
    skipped = []
    assert read(["python-packages"], skipped=skipped) == ["a = 1\n", "# B", "b = 1\n", "Guide"]
    assert "b/latin.txt: not UTF-8" in skipped[0]  # nobody can mend it


def test_the_manifest_names_the_installed_packages_that_were_read(site, tmp_path, capsys):
    config = PrepareConfig(["python-packages"], validation_fraction=0, workers=1)
    made = prepare(config, tmp_path / "data", progress=False)
    assert made.sources == [
        {"source": "python-packages", "files": 5, "bytes": 24, "packages": {"B": "2", "a": "1.5"}},
    ]
    assert "python-packages: 5 files, 24 bytes" in capsys.readouterr().err
    assert len(made.skipped) == 1


class Counted(io.BytesIO):
    """A file that counts the bytes that are read of it."""

    bytes_read = 0

    def read(self, size=-1):
        data = super().read(size)
        self.bytes_read += len(data)
        return data


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_records_at_every_border_of_blocks(monkeypatch, block):
    monkeypatch.setattr(decompress, "_BLOCK", block)
    draw = random.Random(block)
    for _ in range(300):
        separator = draw.choice([b"\n", b"ab", b"<|e|>", b"\r\n"])
        data = separator.join(bytes(draw.choices(b"xya<|\r", k=draw.randint(0, 6))) for _ in range(draw.randint(1, 8)))
        step = draw.randint(1, 12)
        expected = data.split(separator)
        expected = expected if expected[-1] else expected[:-1]
        for longest in (3, 1 << 20):
            found = [
                record
                for start in range(0, len(data), step)
                for place, record in decompress.records(
                    io.BytesIO(data), separator, start, min(start + step, len(data)), longest
                )
            ]
            found = [record if isinstance(record, bytes) else None for record in found]
            assert found == [record if len(record) <= longest else None for record in expected]


@pytest.mark.parametrize("data", [b"x" * 100_000, b"\n" + b"x" * 100_000, b"<|e" * 30_000, b"x" * 99_990 + b"<|e|>y"])
def test_a_separator_that_never_occurs_is_looked_for_once(monkeypatch, data):
    monkeypatch.setattr(decompress, "_BLOCK", 256)
    step = 1000
    work = []
    records = []
    for start in range(0, len(data), step):
        file = Counted(data)
        records += [record for _, record in decompress.records(file, b"<|e|>", start, min(start + step, len(data)))]
        work.append(file.bytes_read)
    assert records == data.split(b"<|e|>")
    assert work[0] <= len(data)
    assert max(work[1:]) <= step + 2 * 256  # it was the rest of the file for each piece of it


def test_no_bytes_are_copied_twice(monkeypatch):
    """What is searched and joined of a long record is its length, whatever the number of blocks."""
    monkeypatch.setattr(decompress, "_BLOCK", 256)
    joined = []
    monkeypatch.setattr(
        decompress, "_joined", lambda blocks, size, longest: joined.append(sum(map(len, blocks))) or b"".join(blocks)
    )
    data = b"y" * 100_000
    assert [len(r) for _, r in decompress.records(io.BytesIO(data), b"<|e|>", 0, None)] == [100_000]
    assert joined == [100_000]
    # of a record that is too long no more is kept than the limit
    joined.clear()
    list(decompress.records(io.BytesIO(data), b"<|e|>", 0, None, 5000))
    assert joined[0] <= 5000 + 256


def test_the_largest_document(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 30)
    (tmp_path / "b.jsonl").write_bytes(lines("short", "y" * 40, "end"))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"z" * 1_000_000))
    (tmp_path / "d.txt.zst").write_bytes(zstandard.compress(b"z" * 1_000_000))
    pq.write_table(pa.table({"text": ["row", "é" * 15]}), tmp_path / "e.parquet")
    for name, place in (
        ("a.txt", ""),
        ("b.jsonl", " row 2"),
        ("c.txt.gz", ""),
        ("d.txt.zst", ""),
        ("e.parquet", " row 2"),
    ):
        with pytest.raises(UserError, match=rf"{name}{place}: more than 29 bytes in one document, .*largest_document"):
            read([tmp_path / name], largest_document=29)
    skipped = []
    found = read([tmp_path], skipped=skipped, on_error="skip", largest_document=29)
    assert found == ["short", "end", "row"]
    assert len(skipped) == 5
    assert "short" in read([tmp_path / "b.jsonl"], largest_document=60)


def test_a_small_file_that_unpacks_to_a_large_one_is_not_unpacked(tmp_path, monkeypatch):
    """What is held in memory of a bomb is the limit and what a block unpacks to."""
    monkeypatch.setattr(decompress, "_ZSTD_BLOCK", 64)
    for name, data in (("a.gz", gzip.compress(bytes(20_000_000))), ("a.zst", zstandard.compress(bytes(20_000_000)))):
        (tmp_path / name).write_bytes(data)
        with decompress.opened(str(tmp_path / name), name.split(".")[1]) as stream:
            file = Passing(stream)
            with pytest.raises(BadInput, match="more than 1,000"):
                decompress.read_whole(file, 1000)
            assert file.bytes_read < 20_000_000


class Passing:
    """Another stream, whose bytes are counted."""

    def __init__(self, stream):
        self.stream, self.bytes_read = stream, 0

    def read(self, size):
        data = self.stream.read(size)
        self.bytes_read += len(data)
        return data


def test_json_that_is_not_json_lines_is_told_the_form(tmp_path):
    for text in ('[\n {"text": "a"}\n]\n', '{\n "text": "a"\n}\n', '[{"text": "a"}]\n'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=r'a\.json row 1: not a .*each line of the file is one object, {"text": "'):
            read([tmp_path])


ROWS = {
    "lists within lists": b'{"text": "x", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects within objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 5,000 digits": b'{"text": "x", "n": ' + b"9" * 5000 + b"}",
    "half a pair": b'{"text": "\\ud83d alone"}',
    "a NUL byte": b'{"text": "a\x00b"}',
    "a list": b'["text"]',
    "a number": b"17",
    "UTF-16": '{"text": "x"}'.encode("utf-16"),
    "Latin-1": b'{"text": "\xff"}',
    "cut off": b'{"text": "abc',
    "null": b'{"text": null}',
    "no key": b'{"": "x"}',
    "the key twice": b'{"text": "first", "text": "second"}',
    "too long": b'{"text": "' + b"x" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_cannot_be_read_is_named_and_skipped(tmp_path, name):
    (tmp_path / "a.jsonl").write_bytes(lines("one") + ROWS[name] + b"\n" + lines("three"))
    with pytest.raises(
        UserError, match=r"cannot read .*a\.jsonl row 2: .* \(mend it, or leave such input out: --on_err"
    ):
        read([tmp_path], largest_document=900_000)
    skipped = []
    assert read([tmp_path], skipped=skipped, on_error="skip", largest_document=900_000) == ["one", "three"]
    assert re.fullmatch(r".*a\.jsonl row 2: .+", *skipped)


@pytest.mark.parametrize(
    "row",
    [
        b'{"text": "x", "n": [1e999999, NaN, -Infinity]}',
        b'{"text": "x", "\\ud83d": 1}',
        b'{"n": {"text": "y"}, "text": "x"}',
    ],
)
def test_what_stands_beside_the_text_does_not_matter(tmp_path, row):
    (tmp_path / "a.jsonl").write_bytes(row)
    assert read([tmp_path]) == ["x"]


def test_one_document_is_the_same_for_every_reader(tmp_path):
    """Line ends stay as they are: text that is evaluated or remembered is what was trained on."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\nthree")
    assert read([tmp_path / "a.txt"]) == [read_document(tmp_path / "a.txt")] == ["one\r\ntwo\nthree"]

"""Text on web servers: what a URL is read as, what is said of one that fails, and reading on after it did."""

import gzip
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm_lightning import retry
from mm_lightning.cli import main
from mm_lightning.data import source_files
from mm_lightning.data.corpora import plan_units, read_piece
from mm_lightning.data.manifest import Manifest
from mm_lightning.data.source_files import ReadSettings, list_files
from mm_lightning.decompress import opened
from mm_lightning.errors import UserError

TEXTS = [f"text {n} " + "words and more " * 50 for n in range(3000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


class Server(ThreadingHTTPServer):
    """Serves `files` by path, whatever the query; `answers` of a path come first, one a request.

    An answer is a status, or "drop" (the connection is closed halfway), "short" (half comes, as if that were all), or
    "reset" (it is closed before anything is sent).
    """

    def __init__(self, ranges):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.answers, self.ranges, self.asked = {}, {}, ranges, []

    def handle_error(self, request, client_address):
        """A client that has gone."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Nothing."""

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, body):
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append((self.command, self.path, self.headers.get("Range")))
        answers = server.answers.get(path, [])
        answer = answers.pop(0) if answers and (body or isinstance(answers[0], int)) else None
        if answer == "reset":
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(answer, int) or path not in server.files:
            self.send_response(answer or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = server.files[path]
        begin, end = 0, len(data)
        asked = self.headers.get("Range")
        if asked and server.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            begin, end = int(first), int(last or len(data) - 1) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        part = data[begin:end]
        half = part[: len(part) // 2]
        self.send_header("Content-Length", str(len(half if answer == "short" else part)))
        self.send_header("Content-Type", "text/html" if path.endswith("/") else "application/octet-stream")
        self.end_headers()
        if body:
            self.wfile.write(half if answer in ("short", "drop") else part)
            if answer == "drop":
                self.wfile.flush()
                self.close_connection = True


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def server(request):
    server = Server(request.param)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def waits(monkeypatch):
    waited = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    return waited


def address(server, path):
    return f"http://127.0.0.1:{server.server_port}{path}"


def read(source, unit_bytes=1 << 20, **settings):
    settings = ReadSettings(**settings)
    files = list_files([source], settings)
    pieces = [piece for unit in plan_units(files, settings, unit_bytes) for piece in unit]
    return [text for piece in pieces for text in read_piece(files[piece.file], piece, settings)]


@pytest.mark.parametrize(
    ("url", "kind", "codec"),
    [
        ("https://h/c.jsonl?sig=abc%2F", "lines", None),
        ("https://h/c.JSONL#part", "lines", None),
        ("https://h/c.jsonl.gz?a=1&b=x.txt", "lines", "gz"),
        ("https://h/c.Parquet?x", "parquet", None),
        ("https://h/c.txt?file=a.jsonl", "text", None),
        ("HTTPS://h/c%2Ejsonl?x", "lines", None),
        ("https://h/c.jsonl;v=1", "lines", None),
        ("https://h/get?file=a.jsonl", "lines", None),
        ("hf://datasets/a/b/c.jsonl.zst?x=1", "lines", "zst"),
        ("s3://bucket/c.parquet?versionId=3", "parquet", None),
        ("s3://bucket/part#1.jsonl", "lines", None),
        ("/local/is it?.jsonl", "lines", None),
        ("/local/a.jsonl?x", "text", None),
    ],
)
def test_a_url_is_read_as_its_path_says(url, kind, codec):
    assert source_files._kind(url)[:2] == (kind, codec)


@pytest.mark.parametrize("name", ["/c.jsonl", "/c.jsonl.gz", "/c.parquet"])
def test_signed_urls(server, name):
    data = LINES
    if name.endswith("gz"):
        data = gzip.compress(LINES)
    elif name.endswith("parquet"):
        file = io.BytesIO()
        pq.write_table(pa.table({"text": TEXTS}), file, row_group_size=500)
        data = file.getvalue()
    server.files[name] = data
    for unit_bytes in (1 << 20, 1 << 24):
        assert read(address(server, f"{name}?sig=a%2Fb*[x]"), unit_bytes) == TEXTS
    assert all("?sig=a%2Fb*[x]" in path or "%5Bx%5D" in path for _, path, _ in server.asked)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/c.jsonl", 401, r"not allowed \(401\)"),
        ("/c.jsonl?sig=old", 403, r"not allowed \(403\)"),
        ("/c.jsonl", 404, r"not there \(404\)"),
        ("/c.jsonl", 410, r"not there \(410\)"),
        ("/c.jsonl", 400, r"refused \(400\)"),
        ("/folder/", 403, r"not allowed \(403\)"),
        ("/folder/*.jsonl", 403, r"not allowed \(403\)"),
    ],
)
def test_what_is_wrong_is_said_at_once(server, waits, path, status, said):
    for place in ("/c.jsonl", "/folder/", "/folder"):
        server.answers[place] = [status] * 9
    with pytest.raises(UserError, match=rf"cannot read http://.*: {said}") as caught:
        read(address(server, path))
    assert "nothing to read" not in str(caught.value)
    assert waits == []


def test_nobody_is_there(waits):
    for url in ("http://127.0.0.1:9/c.jsonl", "http://127.0.0.1:9/*.jsonl", "http://nosuch.invalid/c.jsonl"):
        with pytest.raises(UserError, match=r"cannot read .*: cannot be reached: "):
            read(url)
    assert waits == []


def test_an_empty_folder(server):
    server.files["/folder/"] = b"<html>nothing</html>"
    for path in ("/folder/", "/folder/*.jsonl"):
        with pytest.raises(UserError, match="nothing to read in"):
            read(address(server, path))
    server.files |= {"/folder/": b'<a href="c.jsonl">c</a>', "/folder/c.jsonl": LINES}
    for path in ("/folder/", "/folder/*.jsonl"):
        assert read(address(server, path)) == TEXTS


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server, waits, status):
    server.files["/c.jsonl"] = LINES
    server.answers["/c.jsonl"] = [status] * 5  # HEAD and GET, twice, and a HEAD
    assert read(address(server, "/c.jsonl"), 1 << 24) == TEXTS
    assert waits == [1.0, 4.0]
    server.answers["/c.jsonl"] = [status] * 99
    with pytest.raises(UserError, match=rf"cannot read http://.*: the server failed \({status}\): .* \(4 tries\)"):
        read(address(server, "/c.jsonl"))


@pytest.mark.parametrize("answer", ["drop", "reset", 503])
def test_reading_goes_on_where_it_was(server, waits, answer):
    """No text is lost and none comes twice, whatever the server does in the middle."""
    server.files["/c.jsonl"] = LINES
    with opened(address(server, "/c.jsonl"), None) as stream:
        begin = stream.read(1000)
        server.answers["/c.jsonl"] = [answer] * 2
        stream.raw._drop()
        stream.raw.seek(1000)
        assert begin + stream.raw.read() == LINES
    assert waits in ([1.0, 4.0], [1.0, 1.0], [1.0])  # aiohttp itself tries a connection that was reset once more


@pytest.mark.parametrize("answer", ["short", "other"])
def test_a_file_that_changes_is_not_read_on(server, waits, answer):
    server.files["/c.jsonl"] = LINES
    with opened(address(server, "/c.jsonl"), None) as stream:
        stream.read(1000)
        server.answers["/c.jsonl"] = ["drop"]
        if answer == "other":
            server.files["/c.jsonl"] = LINES + b"{}"
        elif server.ranges:
            return
        else:
            server.answers["/c.jsonl"] = ["short"]
        stream.raw._drop()
        with pytest.raises(OSError, match="it changed while it was read"):
            stream.raw.read()


def test_an_end_before_the_promised_one_is_never_the_end(server, waits):
    server.files["/c.jsonl"] = LINES
    server.answers["/c.jsonl"] = ["drop"] * 99
    with pytest.raises(UserError, match=r"the connection was dropped.* \(4 tries\)"):
        read(address(server, "/c.jsonl"), 1 << 24)


def test_prepare_and_fetch_from_a_server_that_fails(server, waits, tmp_path, monkeypatch):
    from mm_lightning.evaluation import fetch

    server.files["/c.jsonl"] = LINES
    server.answers["/c.jsonl"] = [503, 503, "drop", 502]
    url = address(server, "/c.jsonl?sig=x")
    words = ["--output", str(tmp_path / "data"), "--workers", "1", "--progress", "false", "--validation_fraction", "0"]
    assert main(["data", "prepare", url, *words]) == 0
    made = Manifest.load(tmp_path / "data").splits["train"]
    assert (made.documents, made.bytes) == (len(TEXTS), sum(map(len, TEXTS)))
    server.answers["/c.jsonl"] = [503, "drop", *(["short"] if server.ranges else [])]
    fetch.download(url, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == LINES

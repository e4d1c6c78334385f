"""A Hugging Face Hub on this machine: what huggingface_hub asks for when it lists, reads and caches files."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import HfFileSystem, constants

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Serves `repositories`: of each, as in `datasets/ORG/NAME` or `models/ORG/NAME`, its files by path.

    Reading files of those in `refused` gives that status and X-Error-Code. Revisions are main and COMMIT.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.refused, self.requests = {}, {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Nothing."""

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def _answer(self, posted=""):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(f"{self.command} {path}")
        api = path.startswith("api/")
        kind, _, rest = path.removeprefix("api/").partition("/")
        if kind not in ("datasets", "models"):
            kind, rest = "models", path
        org, name, *rest = rest.split("/")
        repository = f"{kind}/{org}/{name}"
        files = self.server.repositories.get(repository)
        if files is None:
            return self._send(401, code="RepoNotFound")
        if not api and repository in self.server.refused:
            status, code = self.server.refused[repository]
            return self._send(status, code=code)
        action, revision, *inside = rest or ["revision", "main"]
        if revision not in ("main", COMMIT):
            return self._send(404, code="RevisionNotFound")
        inside = "/".join(inside)
        if action == "revision":
            return self._send_json({"_id": "1", "id": f"{org}/{name}", "sha": COMMIT, "siblings": []})
        if action == "tree":
            recursive = "true" in parse_qs(urlsplit(self.path).query)["recursive"][0].lower()
            return self._send_json(_tree(files, inside, recursive))
        if action == "paths-info":
            paths = parse_qs(posted)["paths"]
            return self._send_json([entry for entry in _tree(files, "", True) if entry["path"] in paths])
        if inside not in files:
            return self._send(404, code="EntryNotFound")
        return self._send_file(files[inside])

    def _send_json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, data):
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream"}
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data)), len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            return self._send(206, data[begin:end], headers)
        return self._send(200, data, headers)

    def _send(self, status, data=b"", headers=(), code=None):
        self.send_response(status)
        for header, value in {**dict(headers), **({"X-Error-Code": code} if code else {})}.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _digest(data):
    return hashlib.sha1(data).hexdigest()


def _tree(files, folder, recursive):
    """Return what the Hub says of the files and folders in a folder."""
    entries = {}
    for path, data in files.items():
        parts = path.split("/")
        for n in range(1, len(parts)):
            entries["/".join(parts[:n])] = {"type": "directory", "size": 0, "oid": "0" * 40}
        entries[path] = {"type": "file", "size": len(data), "oid": _digest(data)}
    inside = {path: entry for path, entry in entries.items() if not folder or path.startswith(f"{folder}/")}
    depth = folder.count("/") + 1 if folder else 0
    return [e | {"path": path} for path, e in inside.items() if recursive or path.count("/") == depth]


def forget():
    """Let fsspec list anew what it has listed."""
    HfFileSystem.clear_instance_cache()


def serve(monkeypatch, cache):
    """Yield a Hub that huggingface_hub takes for the real one, with a cache of its own, and stop it."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    forget()
    yield hub
    hub.shutdown()
    hub.server_close()
    forget()

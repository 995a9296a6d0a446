"""Servers that stall, drip or never end, on the loopback interface."""

import socket
import threading
import time

import pytest

from cnnfilterdb.core.errors import DownloadError
from cnnfilterdb.ingest.fetch import download as module
from cnnfilterdb.ingest.fetch.budget import SLOWEST, Budget, supervised, within
from cnnfilterdb.ingest.fetch.download import RemoteFile, Session, download
from cnnfilterdb.ingest.fetch.packages import PackageIndex
from cnnfilterdb.ingest.fetch.pip_settings import Settings

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.fixture
def serve(monkeypatch):
    """Starts a server that sends some bytes at once and then others now and then, for ever."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ended, listeners = threading.Event(), []

    def start(first, then=b"", pause=0.05):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer(connection):
            try:
                connection.recv(65536)
                connection.sendall(first)
                while not ended.wait(pause) if pause else not ended.is_set():
                    connection.sendall(then)
            except OSError:
                pass
            finally:
                connection.close()

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    ended.set()
    for listener in listeners:
        listener.close()


@pytest.fixture
def session():
    made = Session(Settings(retries=2, timeout=10.0), pause=0.001)
    made.grace = 1.0
    return made


def soon(began):
    """Whether something ended that would otherwise go on for ever."""
    return time.monotonic() - began < 300


def test_headers_that_drip(serve, session, tmp_path):
    began = time.monotonic()
    with pytest.raises(DownloadError, match=r"cannot be downloaded: no answer within 1 s"):
        download(session, serve(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), tmp_path / "f", size=10**6, sha256="0" * 64)
    assert soon(began)


@pytest.mark.parametrize("size", [10**6, None])
def test_a_file_that_drips(serve, session, tmp_path, size):
    began = time.monotonic()
    url = serve(HEAD + b"Content-Length: 1000000\r\n\r\n", b"x")
    with pytest.raises(DownloadError, match=r"only [\d,]+ bytes arrived in \d+ s; the server is too slow"):
        download(session, url, tmp_path / "f", size=size, sha256="0" * 64)
    assert soon(began)
    assert (tmp_path / "f").exists()  # to resume


def test_a_file_that_drips_and_is_cut_each_time(serve, session, tmp_path, monkeypatch):
    """Each attempt makes progress, so that the number of attempts does not end it."""
    monkeypatch.setattr(session, "wait", lambda attempt: time.sleep(0.05) or 0.0)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        sent = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.recv(65536)
            start = f"HTTP/1.1 206 OK\r\nContent-Range: bytes {sent}-999999/1000000\r\n" if sent else HEAD.decode()
            connection.sendall(f"{start}Content-Length: {1000000 - sent}\r\n\r\nx".encode())
            sent += 1
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    began = time.monotonic()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with pytest.raises(DownloadError, match="the server is too slow"):
        download(session, url, tmp_path / "f", size=10**6, sha256="0" * 64)
    listener.close()
    assert soon(began)


def test_a_range_that_drips(serve, session):
    began = time.monotonic()
    url = serve(b"HTTP/1.1 206 OK\r\nContent-Range: bytes 934464-999999/1000000\r\nContent-Length: 65536\r\n\r\n", b"x")
    with pytest.raises(DownloadError, match="the server is too slow"):
        RemoteFile(session, url, 10**6)
    assert soon(began)


def test_an_index_page_that_never_ends(serve, session, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_PAGE", 10 << 20)
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    url = serve(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, pause=0)
    with pytest.raises(DownloadError, match="sends more than 10,485,760 bytes"):
        session.get(url)
    index = PackageIndex(Settings(index_url=url, retries=0), pause=0.001)
    with pytest.raises(DownloadError, match=r"no package index can be reached .*sends more than 10,485,760 bytes"):
        index.find("net", "1.0", "net-1.0.tar.gz", "0" * 64)


def test_an_index_page_that_decompresses_to_much(serve, session, monkeypatch):
    import gzip

    monkeypatch.setattr(module, "_LARGEST_PAGE", 10 << 20)
    body = gzip.compress(bytes(100 << 20))
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    with pytest.raises(DownloadError, match="sends more than 10,485,760 bytes"):
        session.get(serve(head + body))


def test_an_index_page_that_drips(serve, session):
    began = time.monotonic()
    with pytest.raises(DownloadError, match="the server is too slow"):
        session.get(serve(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"))
    assert soon(began)


def test_a_file_of_unknown_size_that_never_ends(serve, session, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "budget", lambda what, limit=None: Budget(what, limit=5 << 20))
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
    url = serve(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, pause=0)
    with pytest.raises(DownloadError, match="sends more than 5,242,880 bytes"):
        download(session, url, tmp_path / "f", size=None, sha256="")


def test_an_announced_size_beyond_reason(serve, session, tmp_path):
    with pytest.raises(DownloadError, match=r"announces 999,999,999,999,999 bytes; refused"):
        download(
            session, serve(HEAD + b"Content-Length: 999999999999999\r\n\r\n"), tmp_path / "f", size=None, sha256=""
        )


def test_a_slow_but_steady_transfer_is_within_its_budget(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget("net.pt", limit=1 << 40)
    for _ in range(10_000):
        now[0] += 10
        budget.charge(10 * SLOWEST)
    now[0] += 61
    with pytest.raises(DownloadError, match="too slow"):
        budget.charge(0)
    budget.extend(10)
    budget.charge(0)


def test_within_and_supervised(packaging):
    closed = []
    gate = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, lambda: gate.wait() and "late", closed.append)
    gate.set()
    packaging.wait(lambda: closed == ["late"])
    with pytest.raises(KeyError):
        within(10, lambda: {}["x"])
    assert supervised(lambda: 3, Budget("x")) == 3
    gate.clear()
    with pytest.raises(DownloadError, match="too slow"):
        supervised(gate.wait, Budget("x", grace=0.5))
    gate.set()

import email.utils
import hashlib
import io
import random
import shutil
import subprocess
import time

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.ingest.fetch.download import NoRangesError, RemoteFile, Session, download
from cnnfilterdb.ingest.fetch.pip_settings import Settings

NAME = "net-1.0.tar.gz"
DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def session():
    return Session(Settings(retries=2, timeout=10.0), pause=0.001)


@pytest.fixture
def url(index_server):
    index_server.add("net", NAME, DATA)
    return f"http://{index_server.host}/files/{NAME}"


def fetch(session, url, path, data=DATA):
    download(session, url, path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@settings(max_examples=30)
@given(
    moves=st.lists(
        st.tuples(st.sampled_from([io.SEEK_SET, io.SEEK_END]), st.integers(0, len(DATA) + 10), st.integers(0, 100_000)),
        max_size=6,
    ),
    window=st.tuples(st.integers(0, len(DATA)), st.integers(0, len(DATA))),
)
def test_a_remote_file_reads_as_a_local_one(session, url, moves, window):
    remote, local = RemoteFile(session, url, len(DATA)), io.BytesIO(DATA)
    remote.ahead(*window)
    with remote.buffered() as file:
        for whence, offset, size in moves:
            offset = offset if whence == io.SEEK_SET else -min(offset, len(DATA))
            assert file.seek(offset, whence) == local.seek(offset, whence)
            assert file.read(size) == local.read(size)
            assert file.tell() == local.tell()


def test_a_remote_file_continues_after_a_cut(index_server, packaging, session, url):
    index_server.fail(
        NAME, packaging.Fault(cut=10_000), packaging.Fault(), packaging.Fault(cut=7), packaging.Fault(cut=0)
    )
    with RemoteFile(session, url, len(DATA)).buffered() as file:
        assert file.read() == DATA
    assert len(index_server.asked(NAME)) > 5


def test_a_remote_file_gives_up(index_server, packaging, session, url):
    index_server.fail(NAME, *[packaging.Fault(cut=0)] * 3)
    with pytest.raises(DownloadError, match=r"net-1.0.tar.gz: .*; check the network and run again"):
        RemoteFile(session, url, len(DATA))
    with pytest.raises(NoRangesError):
        RemoteFile(session, url, len(DATA) + 1)
    index_server.ranges = False
    with pytest.raises(NoRangesError):
        RemoteFile(session, url, len(DATA))


def test_a_cut_download_is_resumed(index_server, packaging, session, url, tmp_path):
    index_server.fail(NAME, packaging.Fault(cut=100_000), packaging.Fault(cut=50_000))
    fetch(session, url, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == DATA
    assert [request.range for request in index_server.asked(NAME)] == [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("left", [b"", DATA[:1000], DATA, b"x" * 1000, b"x" * len(DATA), DATA + b"more"])
def test_whatever_was_left_the_right_bytes_come(session, url, tmp_path, left):
    path = tmp_path / "part"
    path.write_bytes(left)
    fetch(session, url, path)
    assert path.read_bytes() == DATA


def test_a_server_that_cannot_resume(index_server, packaging, session, url, tmp_path):
    index_server.ranges = False
    index_server.fail(NAME, packaging.Fault(cut=100_000))
    fetch(session, url, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == DATA
    # One that in addition always breaks off at the same place must not be asked for ever.
    index_server.fail(NAME, *[packaging.Fault(cut=100_000)] * 50)
    with pytest.raises(DownloadError, match="after 100000 of 300000 bytes"):
        fetch(session, url, tmp_path / "other")
    assert len(index_server.asked(NAME)) < 10


def test_a_file_that_ends_early_or_late(index_server, packaging, session, url, tmp_path):
    for change in (b"x", DATA[:-1]):
        index_server.files[f"/files/{NAME}"] = DATA + change if len(change) == 1 else change
        with pytest.raises(HashMismatchError, match="expected 300000 bytes"):
            fetch(session, url, tmp_path / "part")
    index_server.files[f"/files/{NAME}"] = bytes(len(DATA))
    with pytest.raises(HashMismatchError, match=f"expected SHA-256 {SHA256}"):
        fetch(session, url, tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_no_such_file(session, url, tmp_path):
    with pytest.raises(DownloadError, match="answered 404"):
        fetch(session, url + "x", tmp_path / "part")


def test_retry_after(index_server, packaging, session, url):
    index_server.fail(NAME, packaging.Fault(503, {"Retry-After": "1"}))
    began = time.monotonic()
    assert session.get(url).content == DATA
    assert time.monotonic() - began >= 1.0

    soon = email.utils.formatdate(time.time() - 60, usegmt=True)
    index_server.fail(
        NAME, packaging.Fault(429, {"Retry-After": soon}), packaging.Fault(429, {"Retry-After": "rubbish"})
    )
    assert session.get(url).content == DATA

    index_server.fail(NAME, packaging.Fault(429, {"Retry-After": "86400"}))
    with pytest.raises(httpx2.HTTPStatusError, match="answered 429"):
        session.get(url)


def test_pauses_grow(monkeypatch, session):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for attempt in (0, 1, 2, 40):
        session.wait(attempt)
    assert slept == [0.001, 0.002, 0.004, 120.0]


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate of the loopback address, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    paths = tmp_path / "ca.pem", tmp_path / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=loopback"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([openssl, *command.split(), *names], check=True, capture_output=True)
    return paths


def test_certificates(index_server, certificate, url):
    index_server.encrypt(*certificate)
    url = url.replace("http:", "https:")
    with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        Session(Settings(retries=0)).get(url)
    assert Session(Settings(retries=0, cert=str(certificate[0]))).get(url).content == DATA
    assert Session(Settings(retries=0, trusted_hosts=("127.0.0.1",))).get(url).content == DATA
    with pytest.raises(DownloadError, match=r"cert=/nowhere.pem.* cannot be read: No such file"):
        Session(Settings(cert="/nowhere.pem"))


def test_a_proxy_is_asked_in_the_place_of_the_host(index_server, url):
    index_server.files["http://packages.example/net"] = b"by proxy"
    session = Session(Settings(retries=0, proxy=f"http://{index_server.host}"))
    assert session.get("http://packages.example/net").content == b"by proxy"

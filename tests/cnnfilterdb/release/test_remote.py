"""Servers that drip, never end, or ask for a token: every request ends in time, with one line."""

from __future__ import annotations

import base64
import pickle
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import cnnfilterdb
from cnnfilterdb.core.errors import CnnFilterDbError, PublishError, RemoteError
from cnnfilterdb.publish import repository
from cnnfilterdb.release import remote
from cnnfilterdb.release.meter import metered_options
from cnnfilterdb.release.release import Release

LIMIT = 1 << 20


def socket_buffers():
    """Bytes that the kernel may take of one connection though nobody reads them, at both of its ends."""
    limits = [Path("/proc/sys/net/ipv4") / name for name in ("tcp_rmem", "tcp_wmem")]
    if not all(limit.is_file() for limit in limits):
        return 64 * LIMIT
    return sum(int(limit.read_text().split()[2]) for limit in limits)


class Server(ThreadingHTTPServer):
    """Answers every request in one way: it drips, or it never ends, and states no size, a small one or a huge one.

    A request for the facts of a file states a small one, or is answered with a status that makes the client list.
    """

    daemon_threads = True
    mode = "endless"
    status = 200  # of facts
    stated = None
    answers = 0
    sent = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.send_response(self.server.status)
        self.send_header("Content-Length", "4096")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self):
        self.server.answers += 1
        part_of_azure = self.headers.get("x-ms-range")
        self.send_response(206 if self.headers.get("Range") or part_of_azure else 200)
        if part_of_azure:
            self.send_header("Content-Range", part_of_azure.replace("=", " ") + "/4096")
        self.send_header("Content-Type", "application/json")
        if stated := self.server.stated or (4096 if self.server.mode == "drip" else None):
            self.send_header("Content-Length", str(stated))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        part = b"[" if self.server.mode == "drip" else b"[" * 65536
        try:
            while True:
                self.wfile.write(part)
                self.wfile.flush()
                self.server.sent += len(part)
                if self.server.mode == "drip":
                    time.sleep(0.05)
        except OSError:
            self.close_connection = True

    do_POST = do_PUT = do_GET


@pytest.fixture(params=["drip", "endless"])
def server(request, monkeypatch, tmp_path):
    from huggingface_hub import HfFileSystem, close_session

    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    seconds = 2.0 if request.param == "drip" else 120.0  # so that only the limit of bytes ends the other one
    monkeypatch.setattr(remote, "REQUEST_SECONDS", seconds)
    monkeypatch.setattr(remote, "ANSWER_BYTES", LIMIT)
    monkeypatch.setattr(repository, "REQUEST_SECONDS", seconds)
    monkeypatch.setattr(repository, "ANSWER_BYTES", LIMIT)
    monkeypatch.setattr(repository, "_PATIENCE", 0)
    close_session()
    HfFileSystem.clear_instance_cache()
    server = Server(("127.0.0.1", 0), Answer)
    server.mode = request.param
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    close_session()
    HfFileSystem.clear_instance_cache()


def within(server, ask, error):
    """The message of a request that must end soon, having taken little."""
    started = time.monotonic()
    with pytest.raises(error) as caught:
        ask()
    assert time.monotonic() - started < 300
    time.sleep(0.2)
    taken = server.sent
    time.sleep(0.5)
    assert server.sent < server.answers * (8 * LIMIT + socket_buffers())
    assert server.mode == "drip" or server.sent - taken < 4 * LIMIT, "it still reads"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_web(server):
    message = within(server, lambda: cnnfilterdb.open(f"{server.url}/release"), CnnFilterDbError)
    assert server.url in message


def test_the_hub(server):
    options = {"endpoint": server.url, "token": False}
    message = within(
        server, lambda: cnnfilterdb.open("hf://datasets/owner/name", storage_options=options), CnnFilterDbError
    )
    assert "hf://datasets/owner/name" in message


@pytest.fixture
def s3(server, monkeypatch):
    """Options of a bucket on the server."""
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    yield {"endpoint_url": server.url, "key": "k", "secret": "s"}
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def azure(server):
    """Options of an account on the server; a key is any 64 bytes."""
    account = f"http;AccountName=name;AccountKey={base64.b64encode(bytes(64)).decode()}"
    return {"connection_string": f"DefaultEndpointsProtocol={account};BlobEndpoint={server.url}/name"}


@pytest.mark.parametrize("protocol", ["abfs", "az"])
@pytest.mark.parametrize(("status", "stated"), [(200, None), (200, 1 << 40), (404, None), (404, 1 << 40)])
def test_azure(server, azure, protocol, status, stated):
    pytest.importorskip("adlfs")
    server.status, server.stated = status, stated
    message = within(
        server, lambda: cnnfilterdb.open(f"{protocol}://container/release", storage_options=azure), CnnFilterDbError
    )
    assert "container/release" in message
    if server.mode == "endless" and (status, stated) != (200, None):  # which the client does not read to its end
        assert "the answer is larger than the " in message


@pytest.mark.parametrize(("status", "stated"), [(200, None), (200, 4096), (200, 1 << 40), (404, None), (404, 1 << 40)])
def test_object_storage(server, s3, status, stated):
    """The manifest (its facts are there), and the listing of the bucket (they are not)."""
    server.status, server.stated = status, stated
    message = within(server, lambda: cnnfilterdb.open("s3://bucket/release", storage_options=s3), CnnFilterDbError)
    assert message.startswith(("s3://bucket/release", "bucket/release/cnnfilterdb.json: "))
    if server.mode == "endless" and stated != 4096:  # of which the client reads no more
        assert "the answer is larger than the " in message


def test_an_answer_that_states_too_large_a_size_is_not_read(server, s3):
    server.mode, server.stated = "endless", 1 << 40
    within(server, lambda: cnnfilterdb.open("s3://bucket/release", storage_options=s3), CnnFilterDbError)
    assert server.sent < server.answers * (LIMIT + socket_buffers())


def test_an_answer_to_what_is_written_is_limited_too(server, s3):
    filesystem, _ = remote.filesystem_of("s3://bucket/part", s3)
    message = within(
        server,
        lambda: remote.RequestBudget.of(7).spend(lambda: filesystem.pipe_file("bucket/part/file", b"content")),
        OSError,
    )
    assert "the answer is larger than the " in message or server.mode == "drip"


@pytest.mark.parametrize("protocol", ["http", "https", "gs", "gcs", "s3", "s3a"])
def test_clients_of_the_user_are_kept(protocol):
    pytest.importorskip("aiohttp")
    pytest.importorskip("aiobotocore")
    theirs = {
        "get_client": object(),
        "session_kwargs": {"response_class": object(), "trust_env": True},
        "config_kwargs": {"http_session_cls": object(), "read_timeout": 5},
    }
    assert metered_options(protocol, theirs) == theirs
    settings = {"session_kwargs": {"trust_env": True}, "config_kwargs": {"read_timeout": 5}}
    ours = metered_options(protocol, settings)
    assert ours != settings
    assert ours["session_kwargs"]["trust_env"]
    assert ours["config_kwargs"]["read_timeout"] == 5
    assert pickle.loads(pickle.dumps(ours)) == ours  # file systems go to the processes of a scan


def test_a_client_without_its_package_is_named_by_the_file_system(monkeypatch):
    for name in ("aiohttp", "cnnfilterdb.release.metered_aiohttp", "cnnfilterdb.release.metered_s3"):
        monkeypatch.setitem(sys.modules, name, None)
    assert [metered_options(protocol, {"a": 1}) for protocol in ("http", "gs", "s3", "abfs")] == [{"a": 1}] * 4


def test_publishing(server):
    known = repository.DatasetRepository("owner/name", "hf_x", server.url)
    message = within(server, known.refs, PublishError)
    assert message.startswith("owner/name: ")


def test_a_range_of_any_file_system(monkeypatch):
    """Whatever a file system does: the deadline holds."""
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 0.5)

    class Silent(MemoryFileSystem):
        cachable = False

        def open(self, path, mode="rb", **options):
            time.sleep(60)  # the thread is left behind

    started = time.monotonic()
    with pytest.raises(RemoteError, match=r"^file: cannot be read \(no complete answer within 1 seconds\)"):
        remote.read_range(Silent(), "file", 0, 10)
    assert time.monotonic() - started < 50


def test_a_file_that_ends_early():
    memory = fsspec.filesystem("memory")
    memory.pipe("/short", b"12345")
    with pytest.raises(RemoteError, match="5 bytes arrived where 10 were expected"):
        remote.read_range(memory, "/short", 0, 10)


def test_401_is_a_status_and_no_number_in_a_name():
    with pytest.raises(RemoteError) as caught:
        Release.open("memory://run401/rel")
    assert "token" not in str(caught.value).partition("for something private")[0]

    class Unauthorized(Exception):
        status = 401

    with pytest.raises(RemoteError, match="the server asks for a token"), remote.reaching("there"):
        raise Unauthorized


def test_errors_of_every_client_state_their_status():
    class Answered(Exception):
        def __init__(self, response):
            self.response = response

    botocore = Answered({"ResponseMetadata": {"HTTPStatusCode": 403}})
    assert remote.status_of(botocore) == 403
    assert remote.status_of(Answered(type("Response", (), {"status_code": 429}))) == 429
    assert remote.status_of(Answered({})) is None
    assert remote.status_of(ValueError("401")) is None

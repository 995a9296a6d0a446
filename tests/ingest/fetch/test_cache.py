import errno
import hashlib
import io
import os
import threading
from pathlib import Path, PurePosixPath, PureWindowsPath

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.core.caching import cache_folder
from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.ingest.fetch.cache import Cache, Trust, sha256_of, writing_cache

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def add(cache, data=DATA, name="net.pt", **checks):
    return cache.add(io.BytesIO(data), name, **({"size": len(DATA), "sha256": SHA256} | checks))


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "elsewhere"))
    assert Cache().folder == cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("CNNFILTERDB_CACHE", "~/weights")
    assert Cache().folder == Path.home() / "weights"
    monkeypatch.delenv("CNNFILTERDB_CACHE")
    assert Cache().folder == Path(platformdirs.user_cache_dir("cnnfilterdb", appauthor=False))
    assert Cache(tmp_path).folder == tmp_path


def test_add_and_find(tmp_path):
    cache, calls = Cache(tmp_path), []
    assert cache.find("net.pt", size=len(DATA), sha256=SHA256) is None
    path = cache.add(
        io.BytesIO(DATA), "a/net.pt", size=len(DATA), sha256=SHA256, progress=lambda *call: calls.append(call)
    )
    assert path == cache.find("b/net.pt", size=len(DATA), sha256=SHA256)
    assert path.name == "net.pt"
    assert (sha256_of(path), calls[-1]) == (SHA256, (len(DATA), len(DATA)))
    assert cache.find("other.pt", size=len(DATA), sha256=SHA256) is None
    for harm in (DATA[:-1], b"W" + DATA[1:]):
        path.write_bytes(harm)
        assert cache.find("net.pt", size=len(DATA), sha256=SHA256) is None


def test_an_empty_file(tmp_path):
    assert add(Cache(tmp_path), b"", size=0, sha256=hashlib.sha256().hexdigest()).read_bytes() == b""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DATA + b"!", "expected 7000 bytes, found more"),
        (DATA[:-1], "expected 7000 bytes, found 6999"),
        (b"W" + DATA[1:], f"expected SHA-256 {SHA256}, found"),
    ],
)
def test_what_is_not_expected_leaves_nothing(tmp_path, data, message):
    with pytest.raises(HashMismatchError, match=message):
        add(Cache(tmp_path), data)
    assert not files(tmp_path)


def test_no_more_than_one_byte_too_many_is_read(tmp_path):
    endless = io.BytesIO(DATA * 1000)
    with pytest.raises(HashMismatchError):
        Cache(tmp_path).add(endless, "net.pt", size=len(DATA), sha256=SHA256)
    assert endless.tell() == len(DATA) + 1


def test_an_interruption_leaves_nothing(tmp_path):
    class Interrupted(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise KeyboardInterrupt
            return super().read(100)

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).add(Interrupted(DATA), "net.pt", size=len(DATA), sha256=SHA256)
    assert not files(tmp_path)


@given(name=st.text(min_size=1), prefix=st.sampled_from(["", "../", "/", "C:\\", "a/..", "net/\0"]))
def test_no_name_leads_out_of_the_cache(name, prefix):
    cache = Cache("cache")
    path = cache.path(prefix + name, SHA256)
    assert path.parent == Path("cache") / "members" / SHA256[:2] / SHA256
    assert path.name not in {"", ".", ".."}
    assert len(PurePosixPath(path.name).parts) == len(PureWindowsPath(path.name).parts) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_errors_of_the_disk_have_a_remedy(tmp_path, code):
    with (
        pytest.raises(DownloadError, match="set CNNFILTERDB_CACHE to a folder") as caught,
        writing_cache(tmp_path),
    ):
        raise OSError(code, os.strerror(code))
    assert ("no space" in str(caught.value)) == (code in {errno.ENOSPC, errno.EDQUOT})


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache")
    assert cache.find("net.pt", size=1, sha256=SHA256) is None
    for call in (lambda: add(cache), lambda: cache.archive_part(SHA256), lambda: cache.lock("x").__enter__()):
        with pytest.raises(DownloadError, match=r"the cache cannot be written: .*; set CNNFILTERDB_CACHE"):
            call()


def test_a_lock_keeps_others_waiting(tmp_path):
    order = []

    def other():
        with Cache(tmp_path).lock("net"):
            order.append("second")

    with Cache(tmp_path).lock("net"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


@pytest.mark.parametrize("links", [True, False])
def test_files_that_belong_together(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    cache = Cache(tmp_path)
    other = b"index"
    members = {
        "net/deep/w.data": add(cache, name="w.data"),
        "net/w.index": add(cache, other, "w.index", size=len(other), sha256=hashlib.sha256(other).hexdigest()),
    }
    placed = cache.together(members)
    assert placed["net/deep/w.data"].read_bytes() == DATA
    assert placed["net/deep/w.data"].parent.parent / "w.index" == placed["net/w.index"]
    assert placed["net/w.index"].read_bytes() == other
    assert placed["net/w.index"].samefile(members["net/w.index"]) is links
    before = placed["net/w.index"].stat()
    assert cache.together(members) == placed
    assert placed["net/w.index"].stat() == before
    # Where they stand is part of what they are
    assert cache.together({"net/w.data": members["net/deep/w.data"], "net/w.index": members["net/w.index"]}) != placed


@pytest.mark.parametrize("member", ["../w.data", "/w.data", "net/../../w.data", "net\\w.data", "C:w"])
def test_no_file_is_put_outside_of_its_folder(tmp_path, member):
    cache = Cache(tmp_path)
    with pytest.raises(DownloadError, match="escape"):
        cache.together({member: add(cache)})


def test_what_is_fetched_is_fetched_by_one(tmp_path):
    cache, fetched, results = Cache(tmp_path), [], []

    def fetch():
        fetched.append(1)
        return add(cache)

    def run():
        results.append(cache.get_or("net", lambda: cache.find("net.pt", size=len(DATA), sha256=SHA256), fetch))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert set(results) == {cache.path("net.pt", SHA256)}


def test_listing_and_clearing(tmp_path):
    cache = Cache(tmp_path)
    assert (cache.entries(), cache.clear()) == ([], 0)
    path = add(cache)
    cache.together({"a/net.pt": path})
    cache.archive_part("0" * 64).write_bytes(b"part of an archive")
    blob = tmp_path / "huggingface" / "models--owner--net" / "blobs" / "x"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"blob")
    snapshot = blob.parent.parent / "snapshots" / "main" / "model.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(blob)
    cache.trust("net", Trust(SHA256, 1, "https://a", "2026-01-01"))
    # The user may have chosen a folder with other things in it
    own = [
        tmp_path / name for name in ("models/mine.pt", "members/ab/notes.txt", "archives/thesis.zip", "huggingface/x")
    ]
    for one in own:
        one.parent.mkdir(parents=True, exist_ok=True)
        one.write_bytes(b"mine")
    entries = cache.entries()
    assert [(entry.kind, entry.bytes) for entry in entries] == [
        ("weights", len(DATA)), ("download", 18), ("huggingface", 4),
    ]  # fmt: skip
    assert cache.clear() == len(DATA) + 18 + 4
    assert cache.entries() == []
    assert all(one.read_bytes() == b"mine" for one in own)
    assert cache.trusted("net") is not None
    assert add(cache).read_bytes() == DATA

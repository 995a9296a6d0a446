import errno
import hashlib
import io
import random
import re
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import zipfile
from pathlib import Path

import pytest

from cnnfilterdb.core.errors import CatalogError, DownloadError, HashMismatchError, UnknownModelError
from cnnfilterdb.ingest.fetch.cache import Cache
from cnnfilterdb.ingest.fetch.packages import PackageIndex
from cnnfilterdb.ingest.fetch.pip_settings import Settings, read_settings
from cnnfilterdb.ingest.sources import Source, get
from cnnfilterdb.ingest.sources.pypi import PackageMember, PypiSource

WHEEL = "net-1.0-py3-none-any.whl"
SDIST = "net-1.0.tar.gz"


def noise(size, seed=0):
    """Bytes that do not compress, as weights."""
    return random.Random(seed).randbytes(size)


@pytest.fixture
def source(index_server, tmp_path):
    """Makes a source of models that downloads them from the loopback index."""

    def make(*models, **settings):
        options = {"index_url": index_server.url, "retries": 2, "timeout": 10.0} | settings
        index = PackageIndex(Settings(**options), pause=0.001)
        return PypiSource(models, cache=Cache(tmp_path / "cache"), index=index)

    return make


def test_member_of_a_wheel_is_fetched_by_ranges_alone(index_server, packaging, source, tmp_path):
    small, big, other = noise(50_000, 1), noise(300_000, 2), noise(2_000_000, 3)
    data = packaging.wheel({"net/a.pt": small, "net/other.bin": other, "net/b.pt": big})
    index_server.add("net", WHEEL, data)
    pypi = source(
        packaging.model("net/a", WHEEL, data, "net/a.pt", small), packaging.model("net/b", WHEEL, data, "net/b.pt", big)
    )

    path = pypi.resolve("net/a")
    assert path.read_bytes() == small
    assert path.name == "a.pt"
    assert pypi.resolve("net/b").read_bytes() == big
    assert all(request.status == 206 for request in index_server.asked(WHEEL))
    # Two members, and twice the 64 KiB tail with the table of contents.
    assert index_server.sent < len(small) + len(big) + 2 * 65536 + 5000
    assert not list((tmp_path / "cache").glob("archives/*"))


def test_all_members_of_a_source_distribution_come_at_once_and_the_archive_goes(
    index_server, packaging, source, tmp_path
):
    first, second = noise(40_000, 1), noise(50_000, 2)
    data = packaging.sdist([("net-1.0/a.pt", first), ("net-1.0/b.pt", second), ("net-1.0/rest", noise(10_000))])
    index_server.add("net", SDIST, data)
    pypi = source(
        packaging.model("net/a", SDIST, data, "net-1.0/a.pt", first),
        packaging.model("net/b", SDIST, data, "net-1.0/b.pt", second),
    )
    assert pypi.resolve("net/b").read_bytes() == second
    requests = len(index_server.requests)
    assert pypi.resolve("net/a").read_bytes() == first
    assert len(index_server.requests) == requests
    assert len(index_server.asked(SDIST)) == 1
    assert not list((tmp_path / "cache").glob("archives/*"))


def test_one_wrong_catalog_entry_does_not_harm_its_siblings(index_server, packaging, source):
    content = noise(1000)
    data = packaging.sdist([("net-1.0/a.pt", content)])
    index_server.add("net", SDIST, data)
    pypi = source(
        packaging.model("net/a", SDIST, data, "net-1.0/a.pt", content),
        packaging.model("net/renamed", SDIST, data, "net-1.0/b.pt", b"gone"),
    )
    assert pypi.resolve("net/a").read_bytes() == content
    with pytest.raises(DownloadError, match=r"contains no net-1.0/b.pt among its 1 members; nearest: net-1.0/a.pt"):
        pypi.resolve("net/renamed")


@pytest.mark.parametrize("as_json", [True, False])
def test_server_without_ranges(index_server, packaging, source, as_json):
    content = noise(200_000)
    data = packaging.wheel({"net/a.pt": content})
    index_server.ranges, index_server.json = False, as_json
    index_server.add("net", WHEEL, data)
    calls = []
    path = source(packaging.model("net/a", WHEEL, data, "net/a.pt", content)).resolve(
        "net/a", lambda done, total: calls.append((done, total))
    )
    assert path.read_bytes() == content
    assert [request.status for request in index_server.asked(WHEEL)] == [200, 200]
    assert calls == sorted(calls)
    assert calls[-1] == (len(data), len(data))


def test_what_is_cached_needs_no_network_and_is_checked(index_server, packaging, source):
    content = noise(1000)
    data = packaging.wheel({"net/a.pt": content})
    index_server.add("net", WHEEL, data)
    pypi = source(packaging.model("net/a", WHEEL, data, "net/a.pt", content))
    path = pypi.resolve("net/a")
    before = len(index_server.requests)
    assert pypi.resolve("net/a") == path
    assert len(index_server.requests) == before
    path.write_bytes(b"x" * len(content))
    assert pypi.resolve("net/a").read_bytes() == content
    assert len(index_server.requests) > before


def test_no_code_of_a_package_is_run(index_server, packaging, source, tmp_path):
    canary = tmp_path / "canary"
    code = f"from pathlib import Path; Path({str(canary)!r}).touch()".encode()
    content = noise(1000)
    data = packaging.sdist(
        [
            ("net-1.0/setup.py", code),
            ("net-1.0/backend.py", code),
            ("net-1.0/pyproject.toml", b'[build-system]\nrequires=[]\nbuild-backend="backend"\nbackend-path=["."]\n'),
            ("net-1.0/a.pt", content),
        ]
    )
    index_server.add("net", SDIST, data, requires_python=">=99")
    assert source(packaging.model("net/a", SDIST, data, "net-1.0/a.pt", content)).resolve("net/a").exists()
    assert not canary.exists()


@pytest.mark.parametrize(
    ("archive", "attributes"),
    [
        ("net-1.0-cp27-cp27m-win32.whl", {}),
        (WHEEL, {"requires_python": ">=99"}),
        (WHEEL, {"yanked": "weights were wrong"}),
    ],
)
def test_archives_that_pip_would_not_install_here(index_server, packaging, source, archive, attributes):
    data = packaging.wheel({"net/a.pt": b"weights"})
    index_server.add("net", archive, data, **attributes)
    assert source(packaging.model("net/a", archive, data, "net/a.pt", b"weights")).resolve("net/a").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_passing_failures_are_waited_out(index_server, packaging, source, ranges):
    content = noise(100_000)
    data = packaging.wheel({"net/a.pt": content})
    index_server.ranges = ranges
    index_server.add("net", WHEEL, data)
    index_server.fail(
        WHEEL, packaging.Fault(429, {"Retry-After": "0"}), packaging.Fault(500), packaging.Fault(cut=30_000)
    )
    path = source(packaging.model("net/a", WHEEL, data, "net/a.pt", content)).resolve("net/a")
    assert path.read_bytes() == content
    assert [request.status for request in index_server.asked(WHEEL)][:2] == [429, 500]


def test_lasting_failures_are_reported(index_server, packaging, source):
    data = packaging.wheel({"net/a.pt": b"weights"})
    index_server.add("net", WHEEL, data)
    index_server.fail(WHEEL, *[packaging.Fault(503)] * 10)
    with pytest.raises(DownloadError, match=r"net-1.0-py3-none-any.whl: cannot be downloaded: answered 503"):
        source(packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights")).resolve("net/a")
    assert len(index_server.asked(WHEEL)) == 3


def test_a_second_index_replaces_one_that_fails(index_server, packaging, source):
    data = packaging.sdist([("net-1.0/a.pt", b"weights")])
    index_server.add("net", SDIST, data)
    broken = ("file:///nowhere/simple", f"http://127.0.0.1:{free_port()}/simple", index_server.url)
    pypi = source(
        packaging.model("net/a", SDIST, data, "net-1.0/a.pt", b"weights"),
        index_url=index_server.url.replace("simple", "empty"),
        extra_index_urls=broken,
    )
    assert pypi.resolve("net/a").read_bytes() == b"weights"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_no_index_at_all_names_them_without_credentials(packaging, source):
    data = packaging.wheel({"net/a.pt": b"weights"})
    port = free_port()
    pypi = source(
        packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights"),
        index_url=f"http://user:secret@127.0.0.1:{port}/simple",
        extra_index_urls=("file:///nowhere/simple", "http://plain.example/simple"),
        find_links=("/nowhere/wheels",),
    )
    with pytest.raises(DownloadError, match="no package index can be reached") as caught:
        pypi.resolve("net/a")
    message = str(caught.value)
    assert re.search(rf"http://\*\*\*@127.0.0.1:{port}/simple: \S.* refused", message)
    assert "file:///nowhere/simple: does not exist" in message
    assert "http://plain.example/simple: is not encrypted" in message
    assert "/nowhere/wheels: does not exist" in message
    assert "secret" not in message
    assert "\n" not in message


def test_credentials(index_server, packaging, source, monkeypatch, tmp_path):
    index_server.password = "s3cret"
    data = packaging.wheel({"net/a.pt": b"weights"})
    index_server.add("net", WHEEL, data)
    model = packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(DownloadError, match="answered 401") as caught:
        source(model, index_url=index_server.url.replace("127", "user:wrong-one@127")).resolve("net/a")
    assert "wrong-one" not in str(caught.value)

    pypi = source(model, index_url=index_server.url.replace("127", "user:s3cret@127"))
    path = pypi.resolve("net/a")
    path.unlink()
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password s3cret\n")
    assert source(model).resolve("net/a") == path


def test_index_that_redirects(index_server, packaging, source):
    data = packaging.wheel({"net/a.pt": b"weights"})
    index_server.add("net", WHEEL, data)
    moved = index_server.url.replace("/simple", "/moved/simple")
    pypi = source(packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights"), index_url=moved)
    assert pypi.resolve("net/a").exists()


@pytest.mark.parametrize("as_url", [True, False])
def test_archives_in_a_folder(packaging, source, tmp_path, as_url):
    folder = tmp_path / "wheel house"
    folder.mkdir()
    data = packaging.wheel({"net/a.pt": b"weights"})
    (folder / WHEEL).write_bytes(data)
    links = folder.as_uri() if as_url else str(folder)
    model = packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights")
    assert source(model, no_index=True, find_links=(links,)).resolve("net/a").read_bytes() == b"weights"
    assert (folder / WHEEL).exists()

    (folder / WHEEL).write_bytes(data + b"!")
    changed = packaging.model("net/b", WHEEL, data, "net/b.pt", b"others!")
    with pytest.raises(HashMismatchError, match="expected SHA-256"):
        source(changed, no_index=True, find_links=(links,)).resolve("net/b")


def test_missing_versions_and_files_are_reported_with_what_is_there(index_server, packaging, source):
    data = packaging.wheel({"net/a.pt": b"weights"})
    for version in ("2.0", "10.0", "3.0rc1"):
        index_server.add("net", f"net-{version}-py3-none-any.whl", data)
    gone = packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights")
    with pytest.raises(DownloadError, match=r"net 1.0 is not offered; available: 10.0, 3.0rc1, 2.0 \(asked: http"):
        source(gone).resolve("net/a")
    index_server.add("net", SDIST, data)
    with pytest.raises(DownloadError, match=r"not offered; net 1.0 has net-1.0.tar.gz"):
        source(gone).resolve("net/a")
    unknown = packaging.model("o/a", "o-1.0.tar.gz", data, "a.pt", b"weights", package="o")
    with pytest.raises(DownloadError, match=r"no package index offers any file of o \(asked: http"):
        source(unknown).resolve("o/a")


def test_other_hash_in_the_index(index_server, packaging, source):
    data = packaging.wheel({"net/a.pt": b"weights"})
    index_server.add("net", WHEEL, data, sha256="0" * 64)
    with pytest.raises(HashMismatchError, match=r"expected SHA-256 .* offers it with 0000"):
        source(packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights")).resolve("net/a")
    assert not index_server.asked(WHEEL)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("change", ["member", "size"])
def test_other_bytes_than_the_catalog_describes(index_server, packaging, source, tmp_path, ranges, change):
    data = packaging.wheel({"net/a.pt": b"weights"}, compression=zipfile.ZIP_STORED)
    index_server.hashes, index_server.ranges = False, ranges
    index_server.add("net", WHEEL, data.replace(b"weights", b"WEIGHTS") if change == "member" else data + b"!")
    with pytest.raises(HashMismatchError, match="is not the expected file"):
        source(packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights")).resolve("net/a")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_garbled_ranges_are_settled_by_the_whole_archive(index_server, packaging, source):
    content = noise(200_000)
    data = packaging.wheel({"net/a.pt": content})
    index_server.add("net", WHEEL, data)
    # Once the table of contents comes as zeros, once the member.
    for garbled in ([True], [False, True]):
        index_server.requests.clear()
        index_server.fail(WHEEL, *(packaging.Fault(zeros=zeros) for zeros in garbled))
        path = source(packaging.model("net/a", WHEEL, data, "net/a.pt", content)).resolve("net/a")
        assert path.read_bytes() == content
        assert {request.status for request in index_server.asked(WHEEL)[:-1]} == {206}
        assert index_server.asked(WHEEL)[-1].status == 200
        path.unlink()


def test_html_page_in_the_place_of_an_archive(index_server, packaging, source):
    data = packaging.wheel({"net/a.pt": b"weights"})
    index_server.add("net", WHEEL, data)
    page = packaging.Fault(body=b"<html>Log in, please</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    index_server.fail(WHEEL, *[page] * 4)
    with pytest.raises(DownloadError, match=r"an HTML page instead of the file \(a proxy, a login or a quota\?\)"):
        source(packaging.model("net/a", WHEEL, data, "net/a.pt", b"weights")).resolve("net/a")


def test_hostile_members_are_refused(index_server, packaging, source, tmp_path):
    link = zipfile.ZipInfo("net/link.pt")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("../../escaped.pt", b"weights")
        archive.writestr("net/bomb.pt", bytes(10_000_000), zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    index_server.add("net", WHEEL, data)
    pypi = source(
        packaging.model("net/link", WHEEL, data, "net/link.pt", b"/etc/passwd"),
        packaging.model("net/escape", WHEEL, data, "../../escaped.pt", b"weights"),
        packaging.model("net/bomb", WHEEL, data, "net/bomb.pt", b"weights"),
    )
    with pytest.raises(DownloadError, match="not a regular file"):
        pypi.resolve("net/link")
    with pytest.raises(DownloadError, match="would escape"):
        pypi.resolve("net/escape")
    with pytest.raises(HashMismatchError, match="expected 7 bytes, announces 10000000"):
        pypi.resolve("net/bomb")
    assert not list(tmp_path.rglob("*.pt"))


def test_links_in_a_source_distribution_are_refused(index_server, packaging, source):
    links = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo(f"net-1.0/{len(links)}.pt")
        info.type, info.linkname = kind, "/etc/passwd"
        links.append(info)
    data = packaging.sdist(links)
    index_server.add("net", SDIST, data)
    pypi = source(*(packaging.model(info.name, SDIST, data, info.name, b"") for info in links))
    for info in links:
        with pytest.raises(DownloadError, match="not a regular file"):
            pypi.resolve(info.name)


def test_full_disk(index_server, packaging, source, monkeypatch, tmp_path):
    content = noise(100_000)
    data = packaging.sdist([("net-1.0/a.pt", content)])
    index_server.add("net", SDIST, data)
    pypi = source(packaging.model("net/a", SDIST, data, "net-1.0/a.pt", content))
    genuine = Path.open

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(self, mode="r", *args, **kwargs):
        return (
            Full() if self.suffix == ".part" and "b" in mode and mode != "rb" else genuine(self, mode, *args, **kwargs)
        )

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DownloadError, match=r"no space is left .* CNNFILTERDB_CACHE"):
        pypi.resolve("net/a")
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert pypi.resolve("net/a").read_bytes() == content


def test_threads_that_want_one_archive_fetch_it_once(index_server, packaging, source):
    contents = {f"net-1.0/{i}.pt": noise(30_000, i) for i in range(4)}
    data = packaging.sdist(list(contents.items()))
    index_server.add("net", SDIST, data)
    models = [packaging.model(member, SDIST, data, member, content) for member, content in contents.items()]
    results = {}
    threads = [
        threading.Thread(target=lambda member=member: results.update({member: source(*models).resolve(member)}))
        for member in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {member: path.read_bytes() for member, path in results.items()} == contents
    assert len(index_server.asked(SDIST)) == 1


def test_a_killed_process_leaves_what_the_next_one_resumes_from(index_server, packaging, source, tmp_path):
    content = noise(3_000_000)
    data = packaging.sdist([("net-1.0/a.pt", content)])
    index_server.add("net", SDIST, data)
    model = packaging.model("net/a", SDIST, data, "net-1.0/a.pt", content)
    index_server.fail(SDIST, packaging.Fault(cut=2_500_000, stall=True))
    script = f"""
        from types import SimpleNamespace
        from cnnfilterdb.ingest.fetch.cache import Cache
        from cnnfilterdb.ingest.fetch.packages import PackageIndex
        from cnnfilterdb.ingest.fetch.pip_settings import Settings
        from cnnfilterdb.ingest.sources.pypi import PypiSource
        model = SimpleNamespace(name="net/a", facts=None, origin={model.origin!r})
        index = PackageIndex(Settings(index_url={index_server.url!r}))
        PypiSource([model], cache=Cache({str(tmp_path / "cache")!r}), index=index).resolve("net/a")
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        part = Cache(tmp_path / "cache").archive_part(model.origin["archive_sha256"])
        packaging.wait(lambda: process.poll() is not None or (part.exists() and part.stat().st_size > 1_000_000))
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    left = part.stat().st_size
    assert source(model).resolve("net/a").read_bytes() == content
    assert [request.range for request in index_server.asked(SDIST)] == [None, f"bytes={left}-"]


def test_facts(packaging):
    data = packaging.wheel({"net/models/a b.pt": b"weights"})
    model = packaging.model("net/a", WHEEL, data, "net/models/a b.pt", b"weights", package="My_Net", version="1!1.0+x")
    facts = PypiSource([model]).describe("net/a")
    assert facts.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert (facts.task, facts.domain, facts.revision) == ("Classification", "faces", "1!1.0+x")
    digest = hashlib.sha256(data).hexdigest()
    assert facts.url == f"pkg:pypi/my-net@1%211.0%2Bx?checksum=sha256:{digest}&file_name={WHEEL}#net/models/a%20b.pt"


def test_names(packaging):
    data = packaging.wheel({"net/a.pt": b"weights"})
    pypi: Source = PypiSource(
        [packaging.model(name, WHEEL, data, "net/a.pt", b"w") for name in ("net/a", "net/b", "o/c")]
    )
    assert pypi.list() == ["net/a", "net/b", "o/c"]
    assert pypi.list(["NET/*"]) == ["net/a", "net/b"]
    for call in (pypi.describe, pypi.resolve):
        for wrong in ("net/aa", "NET/A"):
            with pytest.raises(UnknownModelError, match="net/a"):
                call(wrong)


@pytest.mark.parametrize("broken", [{"member_bytes": "many"}, {"member": None}])
def test_broken_catalog_entries(packaging, broken):
    origin = packaging.model("net/a", WHEEL, b"", "net/a.pt", b"weights").origin | broken
    with pytest.raises(CatalogError, match=r"pypi/net/a: .*correct the catalog"):
        PackageMember.parse("net/a", {key: value for key, value in origin.items() if value is not None})


def companions(**contents):
    return "; ".join(f"{path}:{len(data)}:{hashlib.sha256(data).hexdigest()}" for path, data in contents.items())


@pytest.mark.parametrize("archive", [WHEEL, SDIST])
def test_files_that_belong_together_lie_beside_each_other(index_server, packaging, source, archive):
    graph, index, first, second = noise(3000, 1), noise(500, 2), noise(9000, 3), noise(9000, 4)
    members = {
        f"net/{name}/{path}": data
        for name, weights in (("a", first), ("b", second))
        for path, data in (("m.pb", graph), ("variables/v.index", index), ("variables/v.data", weights))
    }
    data = packaging.wheel(members) if archive == WHEEL else packaging.sdist(list(members.items()))
    index_server.add("net", archive, data)
    models = []
    for name, weights in (("a", first), ("b", second)):
        models.append(packaging.model(f"net/{name}", archive, data, f"net/{name}/variables/v.data", weights))
        rest = {path: members[path] for path in (f"net/{name}/m.pb", f"net/{name}/variables/v.index")}
        models[-1].origin["companions"] = companions(**rest)
    pypi = source(*models)

    # Graph and index are the same bytes for both, and still each model has a folder of its own
    paths = {name: pypi.resolve(f"net/{name}") for name in "ab"}
    for name, weights in (("a", first), ("b", second)):
        path = paths[name]
        assert path.name == "v.data"
        assert path.read_bytes() == weights
        assert path.with_name("v.index").read_bytes() == index
        assert (path.parent.parent / "m.pb").read_bytes() == graph
    assert paths["a"].parent != paths["b"].parent
    assert pypi.describe("net/a").weights_sha256 == hashlib.sha256(first).hexdigest()

    requests = len(index_server.requests)
    assert pypi.resolve("net/a") == paths["a"]
    assert len(index_server.requests) == requests
    paths["a"].with_name("v.index").write_bytes(b"changed")
    assert pypi.resolve("net/a").with_name("v.index").read_bytes() == index


def test_companion_that_is_not_in_the_archive(index_server, packaging, source):
    content = noise(1000)
    data = packaging.wheel({"net/a.data": content})
    index_server.add("net", WHEEL, data)
    model = packaging.model("net/a", WHEEL, data, "net/a.data", content)
    model.origin["companions"] = companions(**{"net/a.index": b"index"})
    with pytest.raises(DownloadError, match=r"contains no net/a\.index"):
        source(model).resolve("net/a")


def test_companions_that_are_stated_wrongly(packaging, source):
    model = packaging.model("net/a", WHEEL, b"", "net/a.data", b"")
    model.origin["companions"] = "net/a.index:many:ab"
    with pytest.raises(CatalogError, match="pypi/net/a: a size in its origin is not a number"):
        source(model).resolve("net/a")


@pytest.mark.network
def test_a_real_package_from_the_configured_index(tmp_path):
    content = "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f"
    model = _Real(
        name="facenet-pytorch/pnet",
        origin={
            "package": "facenet-pytorch",
            "version": "2.6.0",
            "archive": "facenet_pytorch-2.6.0-py3-none-any.whl",
            "archive_bytes": "1881930",
            "archive_sha256": "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca",
            "member": "facenet_pytorch/data/pnet.pt",
            "member_bytes": "28570",
            "member_sha256": content,
        },
    )
    path = PypiSource([model], cache=Cache(tmp_path), index=PackageIndex(read_settings())).resolve(model.name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == content


class _Real:
    def __init__(self, name, origin):
        self.name, self.origin = name, origin


def test_the_source_is_registered():
    assert get("pypi").name == "pypi"

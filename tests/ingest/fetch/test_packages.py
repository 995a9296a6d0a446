import hashlib
import logging
import threading

import pytest

from cnnfilterdb.core.errors import DownloadError, HashMismatchError
from cnnfilterdb.ingest.fetch.packages import Offer, PackageIndex
from cnnfilterdb.ingest.fetch.pip_settings import Settings

WHEEL = "net-1.0-py3-none-any.whl"
DATA = b"an archive"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def index(index_server):
    """Makes an index that asks the loopback server."""

    def make(**settings):
        return PackageIndex(Settings(**{"index_url": index_server.url, "retries": 1} | settings), pause=0.001)

    return make


def test_an_offer(index_server, index):
    index_server.add("net", WHEEL, DATA)
    (offer,) = index().find("net", "1.0", WHEEL, DIGEST)
    assert offer == Offer(WHEEL, "1.0", f"http://{index_server.host}/files/{WHEEL}", DIGEST, None)
    # Only its page was asked for
    assert [request.path for request in index_server.requests] == ["/simple/net/"]


@pytest.mark.parametrize("as_json", [True, False])
def test_both_kinds_of_pages(index_server, index, as_json):
    index_server.json = as_json
    index_server.add("net", WHEEL, DATA, requires_python=">=99")
    assert index().find("net", "1.0", WHEEL, DIGEST)[0].sha256 == DIGEST


def test_names_are_normalised_as_indexes_do(index_server, index):
    archive = "My_Net.x-1.0.tar.gz"
    index_server.add("my-net-x", archive, DATA)
    (offer,) = index().find("My_Net.x", "1.0", archive, DIGEST)
    assert (offer.name, offer.version) == (archive, "1.0")


def test_hashes_may_be_in_capitals_or_missing(index_server, index):
    index_server.add("net", WHEEL, DATA, sha256=DIGEST.upper())
    assert index().find("net", "1.0", WHEEL, DIGEST)[0].sha256 == DIGEST
    index_server.hashes = False
    assert index().find("net", "1.0", WHEEL, DIGEST)[0].sha256 is None


def test_the_surest_offer_comes_first(index_server, index, tmp_path):
    """A file of this machine, then what has a hash, each in the order of the settings."""
    index_server.add("net", WHEEL, DATA)
    links, bare = tmp_path / "links", tmp_path / "bare"
    for folder in (links, bare / "net"):
        folder.mkdir(parents=True)
    (links / WHEEL).write_bytes(DATA)
    (bare / "net" / "index.html").write_text(f'<a href="http://{index_server.host}/bare/{WHEEL}">{WHEEL}</a>')
    found = index(
        index_url=bare.as_uri(), extra_index_urls=(index_server.url,), find_links=("/nowhere", str(links))
    ).find("net", "1.0", WHEEL, DIGEST)
    assert [(offer.path, offer.sha256) for offer in found] == [(links / WHEEL, None), (None, DIGEST), (None, None)]


def test_an_index_of_files_offers_only_those_that_are_there(index, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "index.html").write_text(f'<a href="{WHEEL}">{WHEEL}</a><a href="net-2.0.tar.gz">gone</a>')
    (tmp_path / "net" / WHEEL).write_bytes(DATA)
    files = index(index_url=tmp_path.as_uri())
    assert files.find("net", "1.0", WHEEL, DIGEST)[0].path == tmp_path / "net" / WHEEL
    with pytest.raises(DownloadError, match=r"net 2\.0 is not offered; available: 1\.0 "):
        files.find("net", "2.0", "net-2.0.tar.gz", DIGEST)


def test_an_offer_with_another_hash_is_skipped_for_one_that_fits(index_server, index, tmp_path):
    index_server.add("net", WHEEL, DATA, sha256="0" * 64)
    folder = tmp_path / "net"
    folder.mkdir()
    url = f"http://{index_server.host}/files/{WHEEL}#sha256={DIGEST}"
    (folder / "index.html").write_text(f'<a href="{url}">{WHEEL}</a>')
    found = index(extra_index_urls=(tmp_path.as_uri(),)).find("net", "1.0", WHEEL, DIGEST)
    assert [offer.sha256 for offer in found] == [DIGEST]
    with pytest.raises(HashMismatchError, match=rf"expected SHA-256 {DIGEST}, the package index offers it with 0000"):
        index().find("net", "1.0", WHEEL, DIGEST)


def test_a_package_is_asked_for_once(index_server, index):
    for version in ("1.0", "2.0"):
        index_server.add("net", f"net-{version}-py3-none-any.whl", DATA)
    one = index()
    for version in ("1.0", "2.0", "1.0"):
        one.find("net", version, f"net-{version}-py3-none-any.whl", DIGEST)
    with pytest.raises(DownloadError):
        one.find("net", "3.0", "net-3.0-py3-none-any.whl", DIGEST)
    assert len(index_server.requests) == 1


def test_a_failure_is_not_remembered(index_server, packaging, index):
    one = index()
    index_server.files["/simple/net/"] = b""
    index_server.faults["/simple/net/"] = [packaging.Fault(503)] * 2
    with pytest.raises(DownloadError, match=r"no package index can be reached .*answered 503"):
        one.find("net", "1.0", WHEEL, DIGEST)
    index_server.add("net", WHEEL, DATA)
    assert one.find("net", "1.0", WHEEL, DIGEST)


@pytest.mark.parametrize(
    "page",
    [
        b"[]",
        b"{}",
        b"{",
        b'{"files": [1]}',
        b'{"files": [{"url": 3}]}',
        b'{"files": [{"url": "x", "filename": "x", "hashes": 1}]}',
        b'{"files": [{"url": "net-1.0.tar.gz", "upload-time": "yesterday"}]}',
        b"\xff\xfe",
    ],
)
def test_broken_pages_are_reported_and_others_asked(index_server, index, page, monkeypatch):
    monkeypatch.setattr(index_server, "page", lambda package, as_json: ("application/vnd.pypi.simple.v1+json", page))
    index_server.entries["net"] = []
    with pytest.raises(DownloadError) as caught:
        index().find("net", "1.0", WHEEL, DIGEST)
    assert index_server.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_index_does_not_hide_another(index_server, index, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "index.html").write_bytes(b'<a href="http://[bad/net-1.0.tar.gz">x</a>')
    index_server.add("net", WHEEL, DATA)
    broken = index(index_url=tmp_path.as_uri(), extra_index_urls=(index_server.url,))
    assert broken.find("net", "1.0", WHEEL, DIGEST)


def test_login_pages_offer_nothing(index_server, index, monkeypatch):
    monkeypatch.setattr(index_server, "page", lambda *_: ("text/html", b"<html><a href='/login'>Log in</a></html>"))
    index_server.entries["net"] = []
    with pytest.raises(DownloadError, match=r"no package index offers any file of net \(asked: .*: 0 files of net\)"):
        index().find("net", "1.0", WHEEL, DIGEST)


def test_many_versions_are_listed_newest_first(index_server, index):
    for version in (*range(1, 11), "2.1rc1", "1!0.1"):
        index_server.add("net", f"net-{version}.tar.gz", DATA)
    with pytest.raises(DownloadError) as caught:
        index().find("net", "99", "net-99.tar.gz", DIGEST)
    assert "available: 1!0.1, 10, 9, 8, 7, 6, 5, 4, ... (asked" in str(caught.value)


def test_other_files_of_the_version_are_reported(index_server, index):
    index_server.add("net", WHEEL, DATA)
    index_server.add("net", "net-2.0.tar.gz", DATA)
    with pytest.raises(DownloadError, match=rf"net-1\.0\.tar\.gz: not offered; net 1\.0 has {WHEEL} "):
        index().find("net", "1.0", "net-1.0.tar.gz", DIGEST)


def test_without_an_index_nothing_is_asked(index_server, index):
    with pytest.raises(DownloadError, match=r"no package index can be reached \(none is configured\)"):
        index(no_index=True).find("net", "1.0", WHEEL, DIGEST)
    assert index_server.requests == []


def test_plain_http_needs_trust(index_server, index):
    index_server.add("net", WHEEL, DATA)
    named = index_server.url.replace("127.0.0.1", "plain.example")
    with pytest.raises(DownloadError, match="is not encrypted; use https, or name its host as trusted-host"):
        index(index_url=named).find("net", "1.0", WHEEL, DIGEST)
    assert index_server.requests == []


def test_the_default_is_that_of_pip(monkeypatch, tmp_path):
    """Nothing is connected before a package is asked for."""
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    (tmp_path / "pip.conf").write_text("[global]\nextra-index-url = https://more.example/simple\n")
    locations = PackageIndex()._locations
    assert locations[0] == ("https://index.example/simple", False)
    assert ("https://more.example/simple", False) in locations


def test_nothing_is_logged_of_indexes_that_do_not_know_a_package(index_server, index, caplog, capsys):
    index_server.add("net", WHEEL, DATA)
    empty = index_server.url.replace("simple", "empty")
    with caplog.at_level(logging.WARNING, "cnnfilterdb"):
        assert index(index_url=empty, extra_index_urls=(index_server.url,)).find("net", "1.0", WHEEL, DIGEST)
    assert not [record for record in caplog.records if record.name.startswith("cnnfilterdb")]
    assert capsys.readouterr().err == ""


def test_several_threads(index_server, index):
    index_server.add("net", WHEEL, DATA)
    one, found = index(), []
    threads = [threading.Thread(target=lambda: found.extend(one.find("net", "1.0", WHEEL, DIGEST))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [offer.sha256 for offer in found] == [DIGEST] * 8

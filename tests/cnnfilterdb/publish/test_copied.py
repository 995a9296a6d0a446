"""Shards of releases that the server of a new release has are copied by it: they do not pass through this machine."""

from __future__ import annotations

import fsspec
import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb.publish import hub as publishing
from cnnfilterdb.publish import sources
from cnnfilterdb.publish.files import LocalFile
from cnnfilterdb.release.release import Release

TOKEN = "hf_secretsecret"
SHARD = "filters_3x3/00000.parquet"
SHARDS = {SHARD, "filters_5x5/00000.parquet"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is derived of parts is not kept from one test to the next."""
    monkeypatch.setenv("CNNFILTERDB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tensors):
    """A database, and the folder of a release whose models all come after those of the database."""
    root = tmp_path_factory.mktemp("folders")
    with cnnfilterdb.create(root / "before.db") as db:
        for name in ("a", "b"):
            db.add(tensors["photo-b"], name, domain="natural", license="MIT")
    with cnnfilterdb.create(root / "after.db") as db:
        for name in ("x", "y", "z"):
            db.add(tensors["ct-a"], name, domain="medical ct", license="MIT")
        db.publish("owner/after", folder=root / "after", version="1.0.0")
    return root / "before.db", root / "after"


@pytest.fixture
def bucket(folders, object_store):
    """The release in an object store."""
    store = fsspec.filesystem("s3", **object_store)
    store.mkdir("copied")
    store.put(f"{folders[1]}/", "copied/after/", recursive=True)
    yield store
    store.rm("copied", recursive=True)


def fetched(monkeypatch):
    """The files of releases that are read as a whole from now on."""
    found = []
    copy = Release.copy
    monkeypatch.setattr(Release, "copy", lambda self, file, target: found.append(file.path) or copy(self, file, target))
    return found


def check(found, parts):
    """The release has the models of the parts, and every byte of it is right."""
    assert found.verify() == []
    pd.testing.assert_frame_equal(found.filters(), parts.filters(), check_exact=True)
    pd.testing.assert_frame_equal(found.kl_shift("domain"), parts.kl_shift("domain"), check_exact=True)


def test_a_bucket_copies_shards_that_it_has(folders, bucket, object_store, monkeypatch):
    remote = cnnfilterdb.open("s3://copied/after", storage_options=object_store)
    passed = fetched(monkeypatch)
    monkeypatch.setattr(sources, "_of_shard", None)  # nothing of the release is encoded again
    asked = []
    store = remote.storage.filesystem
    call = store._call_s3

    async def counted(method, *arguments, **options):
        asked.append((method, {**dict(*arguments[:1]), **options}))
        return await call(method, *arguments, **options)

    monkeypatch.setattr(store, "_call_s3", counted)
    with cnnfilterdb.open([folders[0], remote]) as parts:
        manifest = parts.push("s3://copied/all", storage_options=object_store)
        assert passed == []
        copies = [options for method, options in asked if method == "copy_object"]
        last = {manifest.of(f"filters_{kernel}")[-1].path for kernel in ("3x3", "5x5")}
        assert {options["Key"] for options in copies} == {f"all/{path}" for path in last}
        assert all(options["IfNoneMatch"] == "*" for options in copies)
        assert parts.push("s3://copied/all", storage_options=object_store).files == manifest.files
        with cnnfilterdb.open("s3://copied/all", storage_options=object_store) as found:
            check(found, parts)


@pytest.mark.parametrize("reason", [NotImplementedError("no"), ValueError("unknown parameter"), OSError(22, "501")])
def test_a_server_that_copies_nothing_is_sent_the_shards(reason, folders, bucket, object_store, monkeypatch):
    remote = cnnfilterdb.open("s3://copied/after", storage_options=object_store)
    if isinstance(reason, OSError):
        reason.__cause__ = type("Answer", (Exception,), {"response": {"ResponseMetadata": {"HTTPStatusCode": 501}}})()

    def refuse(*arguments, **options):
        raise reason

    monkeypatch.setattr(remote.storage.filesystem, "cp_file", refuse)
    passed = fetched(monkeypatch)
    with cnnfilterdb.open([folders[0], remote]) as parts:
        parts.push("s3://copied/all", storage_options=object_store)
        assert set(passed) == SHARDS
        with cnnfilterdb.open("s3://copied/all", storage_options=object_store) as found:
            check(found, parts)


def test_an_object_that_another_writer_put_is_not_replaced(folders, bucket, object_store, monkeypatch):
    remote = cnnfilterdb.open("s3://copied/after", storage_options=object_store)
    with cnnfilterdb.open([folders[0], remote]) as parts:
        path = "filters_3x3/00001.parquet"
        bucket.pipe_file(f"copied/all/{path}", b"another")
        with pytest.raises(cnnfilterdb.PublishError, match=f"{path}: is there with other content"):
            parts.push("s3://copied/all", storage_options=object_store)
        assert bucket.cat_file(f"copied/all/{path}") == b"another"


def test_other_options_are_another_server(folders, bucket, object_store, monkeypatch):
    remote = cnnfilterdb.open("s3://copied/after", storage_options={**object_store, "key": "another"})
    passed = fetched(monkeypatch)
    with cnnfilterdb.open([folders[0], remote]) as parts:
        parts.push("s3://copied/all", storage_options=object_store)
    assert set(passed) == SHARDS


@pytest.fixture
def on_hub(hub, folders, monkeypatch):
    """The release as a data set of the Hub, which has content hashes, as Xet gives them."""
    from cnnfilterdb.release.manifest import Manifest

    manifest = Manifest.from_json((folders[1] / "cnnfilterdb.json").read_text(), "manifest")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    publishing.upload(folders[1], manifest, "owner/after", token=TOKEN, endpoint=hub.url)
    hub.false_listings = {path: {"xetHash": "ab" * 32} for path in SHARDS}
    return cnnfilterdb.open("hf://datasets/owner/after@v1.0.0", storage_options={"endpoint": hub.url, "token": TOKEN})


@pytest.mark.parametrize("repo", ["owner/all", "owner/after"])
def test_the_hub_copies_shards_that_it_has(repo, hub, folders, on_hub, monkeypatch):
    passed = fetched(monkeypatch)
    with cnnfilterdb.open([folders[0], on_hub]) as parts:
        done = parts.publish(repo, token=TOKEN)
        assert passed == []
        sizes = {file.sha256: file.bytes for file in on_hub.storage.manifest.files if file.path in SHARDS}
        sent = [one for one in hub.requests if one.method == "PUT" and one.path.removeprefix("/lfs/") in sizes]
        assert len(sent) == len(sizes)  # by the release itself, before
        with cnnfilterdb.open(
            f"hf://datasets/{repo}@{done.tag}", storage_options={"endpoint": hub.url, "token": TOKEN}
        ) as found:
            check(found, parts)


@pytest.mark.parametrize("fault", ["no hash", "refused", "failed"])
def test_a_hub_that_copies_nothing_is_sent_the_shards(fault, hub, folders, on_hub, monkeypatch):
    if fault == "no hash":
        hub.false_listings = {}
    elif fault == "refused":
        hub.fail("POST /api/datasets/owner/after/lfs-files/duplicate", status=403)
    else:
        failed = {"failed": [{"sha256": "0" * 64, "error": "no such file"}]}
        monkeypatch.setattr("loopback_hub.api.Uploads.duplicate", lambda self, repo: self.json(failed))
    passed = fetched(monkeypatch)
    with cnnfilterdb.open([folders[0], on_hub]) as parts:
        done = parts.publish("owner/all", token=TOKEN)
        assert set(passed) == SHARDS
        with cnnfilterdb.open(
            f"hf://datasets/owner/all@{done.tag}", storage_options={"endpoint": hub.url, "token": TOKEN}
        ) as found:
            check(found, parts)


def test_a_file_that_is_there_is_not_fetched(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    LocalFile("a", tmp_path / "a", 1, "").fetch()

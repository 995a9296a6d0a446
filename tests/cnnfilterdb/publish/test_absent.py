"""A release takes little space before it is sent: large files are built to know their hashes, and again to be sent."""

from __future__ import annotations

import shutil

import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.core.durable import sha256
from cnnfilterdb.publish import files as release_files
from cnnfilterdb.publish import hub as publishing
from cnnfilterdb.publish import shards
from cnnfilterdb.publish.objects import ObjectFolder
from cnnfilterdb.publish.repository import DatasetRepository
from cnnfilterdb.publish.sources import FolderSource
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index

TOKEN = "hf_secretsecret"
REPO = "owner/sample"
SHARDS = {f"filters_{kernel}/00000.parquet" for kernel in ("3x3", "5x5", "7x7")}


@pytest.fixture
def all_large(monkeypatch):
    """Every file of filters counts as a large one."""
    for module in (shards, release_files):
        monkeypatch.setattr(module, "KEPT", 1)


@pytest.fixture
def db(sample_path, tmp_path):
    shutil.copytree(sample_path, tmp_path / "sample.db")
    with cnnfilterdb.open(tmp_path / "sample.db") as db:
        yield db


@pytest.fixture
def built(monkeypatch):
    """The files that are built again from now on."""
    found = []
    copy = shards.BuiltShard.copy
    monkeypatch.setattr(shards.BuiltShard, "copy", lambda self, path: found.append(self.file.path) or copy(self, path))
    return found


def staged(db):
    """The files of filters in the staging folder of a release."""
    return {
        path.relative_to(path.parents[1]).as_posix()
        for path in db.path.rglob("*.parquet")
        if path.parent.name.startswith("filters_")
    }


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    with cnnfilterdb.create(tmp_path_factory.mktemp("many") / "many.db") as db:
        for number, channels in enumerate((16, 8, 64, 16, 24, 16)):
            rng = np.random.default_rng(number)
            weight = rng.normal(size=(channels, channels, 3, 3)).astype(np.float32)
            db.add({"a.weight": weight, "b.weight": weight[: channels // 2]}, f"m{number}", license="MIT")
    return Store.open(db.path)


@given(least=st.integers(1_000, 50_000), most=st.integers(50_000, 200_000), end=st.integers(3_000, 300_000))
@settings(max_examples=15, deadline=None)
def test_a_file_that_is_built_again_has_the_same_bytes(many, tmp_path_factory, least, most, end):
    """Also where the filters of a model are in several files, as when a file ends at fewer bytes than were planned."""
    folder = tmp_path_factory.mktemp("release")
    filters = FolderSource(Index(many)).filters("3x3", many.model_ids())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "KEPT", 20_000)
        planned, ended = (shards.Absent(lambda shard: False) for _ in range(2))
        found = shards.write_filter_shards(folder / "planned", "3x3", filters, sizes=(least, most), absent=planned)
        assert planned.shards.keys() == {file.path for file in found if file.bytes >= shards.KEPT}
        writer = shards.TableWriter(folder / "ended", "filters_3x3", end, ended)
        for one in filters:
            writer.add_model(one)
        assert ended.shards.keys() == {file.path for file in writer.close() if file.bytes >= shards.KEPT}
    for name, absent in (("planned", planned), ("ended", ended)):
        for path, shard in absent.shards.items():
            again = folder / name / path
            assert not again.exists()
            shard.copy(again)
            assert sha256(again) == shard.file.sha256
    assert sum(model.rows for model in filters) == sum(file.rows for file in found)


def test_a_release_is_sent_file_by_file(all_large, hub, db, sample, built, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(publishing, "_BATCH_FILES", 1)
    send, there = DatasetRepository.send, []

    def watched(self, files, branch):
        there.append(staged(db))
        return send(self, files, branch)

    monkeypatch.setattr(DatasetRepository, "send", watched)
    done = db.publish(REPO, token=TOKEN)
    assert set(built) == SHARDS
    assert len(built) == len(SHARDS)
    assert max(map(len, there)) == 1
    options = {"endpoint": hub.url, "token": TOKEN}
    with cnnfilterdb.open(f"hf://datasets/{REPO}@v1.0.0", storage_options=options) as found:
        assert found.verify() == []
        pd.testing.assert_frame_equal(found.filters(), sample.filters(), check_exact=True)
    assert db.publish(REPO, folder=tmp_path / "release").files == done.manifest.files  # a folder keeps all of them
    assert all((tmp_path / "release" / path).exists() for path in SHARDS)


def test_what_the_hub_has_is_not_built_again(all_large, hub, db, built, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    db.publish(REPO, token=TOKEN)
    built.clear()
    db.add({"z.weight": np.random.default_rng(1).normal(size=(4, 4, 9, 9)).astype(np.float32)}, "z", license="MIT")
    db.publish(REPO, token=TOKEN)
    assert built == ["filters_9x9/00000.parquet"]


def test_an_interrupted_upload_is_resumed(all_large, hub, db, built, monkeypatch, state):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.fail("POST /api/datasets/owner/sample/commit/release-v1.0.0", status=403)
    with pytest.raises(cnnfilterdb.PublishError):
        db.publish(REPO, token=TOKEN)
    assert staged(db) == set()
    puts = [one.path for one in hub.requests if one.method == "PUT"]
    db.publish(REPO, token=TOKEN)
    assert [one.path for one in hub.requests if one.method == "PUT"] == puts  # the server has them, by their hashes
    assert state(REPO)[1].keys() == {"v1.0.0"}


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_model_that_is_changed_meanwhile(all_large, hub, db, monkeypatch, state, change):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    model_id = next(one for one in db.models()["model_id"] if one.startswith("custom/"))
    upload = publishing._Upload.run

    def changed(self, progress):
        with cnnfilterdb.open(db.path) as other:
            if change == "removed":
                other.remove(model_id)
            else:
                weight = np.random.default_rng(3).normal(size=(8, 8, 3, 3)).astype(np.float32)
                other.add({"a.weight": weight}, model_id.removeprefix("custom/"), license="MIT", overwrite=True)
        return upload(self, progress)

    monkeypatch.setattr(publishing._Upload, "run", changed)
    with pytest.raises(cnnfilterdb.PublishError, match=r"filters_3x3/00000\.parquet: .*publish it again") as failed:
        db.publish(REPO, token=TOKEN)
    assert "\n" not in str(failed.value)
    assert state(REPO)[1] == {}  # no tag: readers see nothing of it
    monkeypatch.setattr(publishing._Upload, "run", upload)
    assert db.publish(REPO, token=TOKEN).tag == "v1.0.0"


def test_a_part_is_pushed_file_by_file(all_large, db, sample, built, object_store, monkeypatch):
    store = fsspec.filesystem("s3", **object_store)
    store.mkdir("absent")
    put, there = ObjectFolder._put, []

    def watched(self, file):
        found = put(self, file)
        there.append(staged(db))
        return found

    monkeypatch.setattr(ObjectFolder, "_put", watched)
    manifest = db.push("s3://absent/part", storage_options=object_store)
    assert set(built) == SHARDS
    assert set().union(*there) == set()
    with cnnfilterdb.open("s3://absent/part", storage_options=object_store) as found:
        assert found.verify() == []
        pd.testing.assert_frame_equal(found.filters(), sample.filters(), check_exact=True)
    built.clear()
    store.rm("absent/part/cnnfilterdb.json")
    store.rm("absent/part/filters_5x5/00000.parquet")
    assert db.push("s3://absent/part", storage_options=object_store).files == manifest.files
    assert built == ["filters_5x5/00000.parquet"]
    store.rm("absent", recursive=True)


def test_what_comes_through_a_network_is_kept(all_large, db, built, object_store, tmp_path, tensors):
    """Models of a remote release whose shards cannot be copied whole are read once."""
    store = fsspec.filesystem("s3", **object_store)
    store.mkdir("remote")
    with cnnfilterdb.create(tmp_path / "more.db") as other:
        for name in ("a", "zz"):
            other.add(tensors["ct-a"], name, domain="medical ct", license="MIT")
        other.push("s3://remote/part", storage_options=object_store)
    built.clear()
    remote = cnnfilterdb.open("s3://remote/part", storage_options=object_store)
    with cnnfilterdb.open([db, remote]) as parts:
        parts.push("s3://remote/all", storage_options=object_store)
        assert built == ["filters_7x7/00000.parquet"]  # of which the remote release has none
        with cnnfilterdb.open("s3://remote/all", storage_options=object_store) as found:
            assert found.verify() == []
            pd.testing.assert_frame_equal(found.filters(), parts.filters(), check_exact=True)
    store.rm("remote", recursive=True)

"""Parts in object storage: a real S3 server, writers that are killed at every step, two writers, and failing stores."""

from __future__ import annotations

import json
import shutil
import socket
import threading

import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb.core.errors import NotADatabaseError, PublishError, RemoteError
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.publish import objects
from cnnfilterdb.publish.objects import ObjectFolder
from cnnfilterdb.release.remote import filesystem_of


class Killed(BaseException):
    """The writer ends here, as by SIGKILL: nothing that it would do afterwards is done."""


@pytest.fixture(scope="module")
def store(object_store):
    """The file system of an S3 server with a bucket."""
    filesystem, _ = filesystem_of("s3://pushed", object_store)
    filesystem.mkdir("pushed")
    return filesystem


@pytest.fixture
def place(store, request):
    """An address where nothing is."""
    return f"s3://pushed/{request.node.name.replace('[', '-').rstrip(']')}"


@pytest.fixture(scope="module")
def built(sample_path, tmp_path_factory):
    """The part that is put: its folder and manifest."""
    pytest.importorskip("s3fs")
    kept = {}

    class Keep(ObjectFolder):
        def put(self, folder, manifest, progress=None, **options):
            kept["folder"] = shutil.copytree(folder, tmp_path_factory.mktemp("built") / "files")
            kept["manifest"] = manifest
            return manifest

    with pytest.MonkeyPatch.context() as patch, cnnfilterdb.open(sample_path) as db:
        patch.setattr("cnnfilterdb.publish.publish.ObjectFolder", Keep)
        db.push("s3://nowhere/part")
    return kept["folder"], kept["manifest"]


def writer(place, object_store, built):
    """One that puts the part at a place."""
    return lambda: ObjectFolder.at(place, object_store).put(*built)


def test_a_part_is_written_and_answers_like_the_database(
    sample_path, sample, place, object_store, store, run, monkeypatch
):
    manifest = sample.push(place, storage_options=object_store)
    assert (manifest.models, manifest.filters) == (len(sample.models()), manifest.filters)
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    _, shown, _ = run("push", place, "--db", sample_path)  # there is nothing left to do
    assert f"{place}: a part of {manifest.models} models and {manifest.filters:,} filters" in shown
    with cnnfilterdb.open(place, storage_options=object_store) as part:
        pd.testing.assert_frame_equal(part.models(), sample.models())
        pd.testing.assert_frame_equal(part.filters(kernel="3x3"), sample.filters(kernel="3x3"))
        pd.testing.assert_frame_equal(part.kl_shift("domain"), sample.kl_shift("domain"))
    names = {name.removeprefix(place.removeprefix("s3://") + "/") for name in store.find(place, refresh=True)}
    assert names == {*(file.path for file in manifest.files), "init.sql", MARKER}
    assert place.encode() in store.cat(f"{place}/init.sql")


def test_parts_on_disk_and_in_object_storage_answer_as_one(sample, sample_path, place, object_store, tmp_path):
    names = sample.models()["model_id"].tolist()
    halves = [tmp_path / "a.db", tmp_path / "b.db"]
    for path, own in zip(halves, (names[:2], names[2:]), strict=True):
        shutil.copytree(sample_path, path)
        with cnnfilterdb.open(path) as db:
            db.remove(*[name for name in names if name not in own])
    with cnnfilterdb.open(halves[1]) as db:
        db.push(place, storage_options=object_store)
    with (
        cnnfilterdb.open(place, storage_options=object_store) as remote,
        cnnfilterdb.open([halves[0], remote]) as parts,
    ):
        shifts = [db.kl_shift("domain", basis="selection") for db in (parts, sample)]
    pd.testing.assert_frame_equal(shifts[0], shifts[1], rtol=1e-9, atol=1e-12)


def test_a_writer_that_is_killed_at_any_step_leaves_no_part_and_the_next_one_finishes_it(
    place, object_store, built, store, monkeypatch
):
    steps = len(built[1].files) + 2  # with init.sql and the manifest
    real, puts = store.put_file, []

    def put_file(source, target, **options):
        if len(puts) == allowed:
            raise Killed
        puts.append(target)
        real(source, target, **options)

    for allowed in range(steps):
        puts.clear()
        address = f"{place}/{allowed}"
        with monkeypatch.context() as patch:
            patch.setattr(store, "put_file", put_file)  # fsspec gives everybody the same object
            with pytest.raises(Killed):
                writer(address, object_store, built)()
        with pytest.raises((NotADatabaseError, RemoteError), match=r"not a release|not found"):
            cnnfilterdb.open(address, storage_options=object_store)
        before = {path: held["ETag"] for path, held in store.find(address, detail=True, refresh=True).items()}
        assert len(before) == allowed
        assert writer(address, object_store, built)() == built[1]
        after = {path: held["ETag"] for path, held in store.find(address, detail=True, refresh=True).items()}
        assert before.items() <= after.items()
        assert len(after) == steps


def test_several_writers_of_the_same_part_all_succeed(place, object_store, built):
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(writer(place, object_store, built)())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [built[1]] * 4


def test_the_manifest_is_put_once_by_writers_that_see_none(place, object_store, built, store, monkeypatch):
    """Two writers find nothing, and then both put their manifest."""
    real, file = store.put_file, built[0] / MARKER

    def overtaken(source, target, **options):
        if target.endswith(MARKER):
            store.pipe(target, json.dumps(json.loads(file.read_text()) | {"created_by": "another writer"}).encode())
        real(source, target, **options)

    monkeypatch.setattr(store, "put_file", overtaken)
    assert writer(place, object_store, built)().created_by == "another writer"


def test_another_part_is_never_replaced(place, sample_path, sample, object_store, store, tmp_path):
    sample.push(place, storage_options=object_store)
    before = store.cat(store.find(place, refresh=True))
    other = shutil.copytree(sample_path, tmp_path / "other.db")
    with cnnfilterdb.open(other) as db:
        db.remove(db.models()["model_id"][0])
        with pytest.raises(PublishError, match=r"contains another part, of 5 models, and parts do not change; choose"):
            db.push(place, storage_options=object_store)
    assert store.cat(store.find(place, refresh=True)) == before


def test_objects_of_others_stay(place, object_store, built, store):
    path = f"{place}/{built[1].files[1].path}"
    store.pipe(path, b"of somebody else")
    with pytest.raises(PublishError, match=r"layers/00000.parquet: is there with other content; choose"):
        writer(place, object_store, built)()
    assert store.cat(path) == b"of somebody else"
    assert not store.exists(f"{place}/{MARKER}")


@pytest.mark.parametrize("text", ["", "{", '{"layout": "release"}'])
def test_a_manifest_that_cannot_be_read_is_refused(place, object_store, built, store, text):
    store.pipe(f"{place}/{MARKER}", text.encode())
    with pytest.raises(PublishError, match=MARKER):
        writer(place, object_store, built)()


@pytest.mark.parametrize(
    "address", ["part", "./part", "https://host/part", "hf://datasets/a/b", "s3://", "file:///part"]
)
def test_what_is_not_object_storage(sample, address):
    with pytest.raises(PublishError, match=r"not an address in object storage; expected one such as s3://bucket/part"):
        sample.push(address)


def test_a_bucket_that_does_not_exist(sample, object_store):
    with pytest.raises(PublishError, match="s3://no-such-bucket/part: "):
        sample.push("s3://no-such-bucket/part", storage_options=object_store)


def test_a_store_that_fails_is_reported_in_one_line(place, object_store, built, store, monkeypatch):
    def fail(source, target, **options):
        raise OSError("a line\nand another")

    monkeypatch.setattr(store, "put_file", fail)
    with pytest.raises(PublishError, match=r"cannot be written \(a line and another\).*; run it again"):
        writer(place, object_store, built)()


def test_a_store_that_never_answers_is_not_waited_for(built, monkeypatch):
    monkeypatch.setattr("cnnfilterdb.release.remote.REQUEST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}", "key": "k", "secret": "s"}
        with pytest.raises(PublishError, match="no complete answer within 0 seconds"):
            ObjectFolder.at("s3://bucket/part", options).put(*built)


def test_the_schemes_are_those_of_parts():
    from cnnfilterdb.parts import listing

    assert set(objects.SCHEMES) <= set(listing._SCHEMES)

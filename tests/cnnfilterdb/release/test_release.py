"""Releases that are read where they lie: a folder, memory and an object store give the same answers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

import cnnfilterdb
from cnnfilterdb.core.errors import (
    CnnFilterDbError,
    DatabaseError,
    MissingExtraError,
    NotADatabaseError,
    RemoteError,
    UnknownModelError,
)
from cnnfilterdb.core.paths import MARKER
from cnnfilterdb.release.address import is_release
from cnnfilterdb.release.cached_filesystem import BLOCK
from cnnfilterdb.release.manifest import Manifest
from cnnfilterdb.release.release import Release

MOVED = {"bytes": 0, "requests": 0}


class Counting(MemoryFileSystem):
    """Memory that counts what is read of it, as a store at the other end of a network would send it."""

    protocol = "counting"

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("counting://", "memory://"))

    def _open(self, path, mode="rb", block_size=None, **options):
        kept = {name: options[name] for name in ("cache_type", "cache_options") if name in options}
        return CountingFile(self, path, mode, block_size or 5 << 20, **kept)

    def cat_file(self, path, start=None, end=None, **options):
        data = super().cat_file(path, start, end)
        MOVED["bytes"] += len(data)
        MOVED["requests"] += 1
        return data


class CountingFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        MOVED["bytes"] += end - start
        MOVED["requests"] += 1
        return bytes(MemoryFileSystem.store[self.path].getbuffer()[start:end])


fsspec.register_implementation("counting", Counting, clobber=True)


@pytest.fixture(scope="module")
def places(release_path, object_store):
    """The same release in four places: name -> address and options."""
    memory = fsspec.filesystem("memory")
    memory.put(f"{release_path}/", "/released/", recursive=True)
    store = fsspec.filesystem("s3", **object_store)
    store.mkdir("bucket")
    store.put(f"{release_path}/", "bucket/released/", recursive=True)
    return {
        "folder": (str(release_path), {}),
        "memory": ("memory:///released", {}),
        "counting": ("counting:///released", {}),
        "s3": ("s3://bucket/released", object_store),
    }


@pytest.fixture(params=["folder", "memory", "s3"])
def release(request, places):
    address, options = places[request.param]
    with cnnfilterdb.open(address, storage_options=options) as db:
        yield db


@pytest.fixture
def counted(places):
    MOVED.update(bytes=0, requests=0)
    with cnnfilterdb.open(places["counting"][0]) as db:
        yield db


def test_the_same_tables(release, sample):
    for kernel in ("3x3", "5x5", "7x7"):
        pd.testing.assert_frame_equal(release.filters(kernel=kernel), sample.filters(kernel=kernel))
    pd.testing.assert_frame_equal(release.models(), sample.models())
    pd.testing.assert_frame_equal(release.layers(), sample.layers())
    where = "domain = 'medical ct' AND conv_depth_norm IS NULL"
    pd.testing.assert_frame_equal(release.filters(where=where), sample.filters(where=where))
    assert release.filters(where="domain = 'nothing'").empty
    assert [basis.basis_id for basis in release.bases()] == [basis.basis_id for basis in sample.bases()]


@pytest.mark.parametrize(
    "options",
    [
        {"by": "domain"},
        {"by": "task", "balance": "models"},
        {"by": "name", "recipe": "medneurips2022"},
        {"by": "domain", "basis": "selection"},
        {"by": "domain", "bins": 31, "where": "task <> 'Denoising'"},
        {"by": "domain", "kernel": "5x5", "all_layers": True},
    ],
)
def test_the_same_shifts(release, sample, options):
    found, expected = release.kl_shift(**options), sample.kl_shift(**options)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)  # sums of floating-point numbers in any order


def test_the_same_in_sql(release, sample):
    for query in (
        "FROM kl_shift(domain)",
        "FROM filter_quality(task)",
        "FROM shared_models",
        "SELECT model_id, avg(c0), avg(svd_coefficients(w)[2]) FROM coefficients_3x3 "
        "JOIN filters_3x3 USING (model_id, layer, out_channel, in_channel) GROUP BY ALL ORDER BY ALL",
        "FROM nearest_5x5(range(25), top := 3)",
        "SELECT metrics, original, files FROM models_stored",
    ):
        found, expected = release.sql(query).df(), sample.sql(query).df()
        if "files" in query:
            found, expected = found.drop(columns="files"), expected.drop(columns="files")
        pd.testing.assert_frame_equal(found, expected, check_exact=False, rtol=1e-12)


def test_scans_and_pictures(release, sample, tmp_path):
    kernel = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    for where in (None, "domain = 'faces'"):
        pd.testing.assert_frame_equal(release.nearest(kernel, where=where), sample.nearest(kernel, where=where))
    pd.testing.assert_frame_equal(release.descriptors(per="layer"), sample.descriptors(per="layer"))
    pd.testing.assert_frame_equal(
        release.kl_shift_intervals("task", samples=20), sample.kl_shift_intervals("task", samples=20)
    )
    assert release.report(tmp_path / "report.html").stat().st_size > 10_000


def test_every_count_and_hash_is_right(release):
    assert release.verify() == []


def test_metadata_come_first_and_once(counted, release_path):
    opened = MOVED["bytes"]
    assert opened == (release_path / MARKER).stat().st_size
    counted.models()
    whole = sum(path.stat().st_size for path in release_path.rglob("*.parquet"))
    filters = sum(path.stat().st_size for path in release_path.glob("filters_*/*"))
    small = whole - filters
    assert MOVED["bytes"] - opened <= small + 4 * BLOCK
    before = MOVED["requests"]
    counted.models(where="domain LIKE 'medical%'")
    assert MOVED["requests"] == before
    counted.kl_shift("domain")
    assert MOVED["bytes"] - opened <= small + 4 * BLOCK


def test_only_the_row_groups_of_the_models_that_are_asked_for(counted, release_path):
    counted.models()
    before = MOVED["bytes"]
    counted.kl_shift("name", where="name = 'face'", bins=5)
    file = pq.ParquetFile(release_path / "filters_3x3" / "00000.parquet")
    groups = {
        (group := file.metadata.row_group(number)).column(0).statistics.min: group.total_byte_size
        for number in range(file.metadata.num_row_groups)
    }
    footer = file.metadata.serialized_size
    assert MOVED["bytes"] - before < groups["custom/face"] + 4 * max(footer, 1 << 16)


def test_a_release_cannot_be_written_to(release):
    assert not hasattr(release, "ingest")
    assert not hasattr(release, "remove")


def test_what_is_a_release(release_path, sample_path, tmp_path):
    assert is_release(release_path)
    assert not is_release(sample_path)
    assert not is_release(tmp_path)


def test_unknown_models_are_reported_with_the_nearest(release_path):
    release = Release.open(release_path)
    release.require(["custom/face"])
    with pytest.raises(UnknownModelError, match=r"no model 'custom/fase' in .*; near: custom/face"):
        release.require(["custom/fase"])


def test_wrong_addresses(tmp_path, object_store):
    fsspec.filesystem("memory").pipe("/other/readme", b"x")
    cases = [
        ("memory:///nothing", {}, RemoteError, "memory:///nothing: not found; check the address"),
        ("memory:///other", {}, NotADatabaseError, "not a release of cnnfilterdb"),
        ("s3://missing/there", object_store, RemoteError, "s3://missing/there: "),
        ("https://127.0.0.1:9/x", {}, CnnFilterDbError, "https://127.0.0.1:9/x: "),
        ("nosuch://x/y", {}, RemoteError, "nosuch://x/y: "),
    ]
    for address, options, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            cnnfilterdb.open(address, storage_options=options)
        assert "\n" not in str(caught.value)


def test_a_missing_package_is_named():
    fsspec.register_implementation(
        "missing", "no_such_package.FileSystem", clobber=True, errtxt="Install no_such_package to access it"
    )
    with pytest.raises(MissingExtraError, match="Install no_such_package"):
        cnnfilterdb.open("missing://x/y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "written in format 99, this version reads format 3; upgrade cnnfilterdb"),
        ({"format_version": 1}, "written in format 1, this version reads format 3; publish it again"),
        ({"files": [{"path": "x"}]}, "not the manifest of a release"),
        ({"layout": "folder"}, "the marker of a database folder, not of a release"),
    ],
)
def test_manifests_that_cannot_be_read(release_path, tmp_path, change, message):
    known = json.loads((release_path / MARKER).read_text())
    (tmp_path / MARKER).write_text(json.dumps(known | change))
    with pytest.raises(DatabaseError, match=message):
        Release.open(tmp_path)


def test_verify_finds_what_has_changed(release_path, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(release_path, copy)
    filters = copy / "filters_3x3" / "00000.parquet"
    data = bytearray(filters.read_bytes())
    data[1000] ^= 1
    filters.write_bytes(data)
    (copy / "layers" / "00000.parquet").write_bytes(b"PAR1")
    (copy / "bases" / "00000.parquet").unlink()
    messages = {problem.path.as_posix(): problem.message for problem in cnnfilterdb.open(copy).verify()}
    assert set(messages) == {"bases/00000.parquet", "filters_3x3/00000.parquet", "layers/00000.parquet"}
    assert messages["filters_3x3/00000.parquet"].startswith("SHA-256 ")
    assert messages["layers/00000.parquet"].startswith("4 bytes, expected ")
    assert messages["bases/00000.parquet"].startswith("not found")


def test_a_page_that_is_too_large_is_not_read(release_path, tmp_path):
    copy = shutil.copytree(release_path, tmp_path / "copy")
    os.truncate(copy / "init.sql", 1 << 42)  # of nothing: it takes no space
    (problem,) = cnnfilterdb.open(copy).verify()
    assert problem.path.as_posix() == "init.sql"
    assert problem.message == "4,398,046,511,104 bytes, expected at most 1,073,741,824"


def test_a_file_that_is_gone_is_one_line(places, release_path):
    memory = fsspec.filesystem("memory")
    memory.put(f"{release_path}/", "/broken/", recursive=True)
    memory.rm("/broken/filters_3x3/00000.parquet")
    with cnnfilterdb.open("memory:///broken") as db:
        assert len(db.models()) == 5
        for ask in (db.filters, lambda: db.nearest([[1, 0], [0, 1]]), lambda: db.nearest([[1, 0, 0]] * 3)):
            with pytest.raises(CnnFilterDbError) as caught:
                ask()
            assert "\n" not in str(caught.value)


def test_the_manifest_is_the_same_after_a_round_trip(release_path):
    text = (release_path / MARKER).read_text()
    assert Manifest.from_json(text, "here").to_json() == text


def test_paths_of_windows_and_of_the_web_have_names(places):
    assert cnnfilterdb.open(places["memory"][0]).location == "memory:///released"
    assert Path(cnnfilterdb.open(places["folder"][0]).location).is_absolute()

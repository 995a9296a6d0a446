"""Pulling releases and merging databases."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb.core import durable
from cnnfilterdb.core.errors import CorruptError, DatabaseError, NotADatabaseError, RemoteError, SelectionError
from cnnfilterdb.database.filterdb import pull


def weights(seed: int, channels: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{name}.weight": rng.normal(size=(channels, channels, 3, 3)).astype(np.float32) for name in "ab"}


def same(found, expected):
    for table in ("models", "layers", "filters"):
        pd.testing.assert_frame_equal(
            getattr(found, table)().drop(columns="ingested_at", errors="ignore"),
            getattr(expected, table)().drop(columns="ingested_at", errors="ignore"),
        )


@pytest.fixture
def in_memory(release_path):
    memory = fsspec.filesystem("memory")
    memory.rm("/pulled", recursive=True) if memory.exists("/pulled") else None
    memory.put(f"{release_path}/", "/pulled/", recursive=True)
    return "memory:///pulled"


# --------------------------------------------------------------------------------------------------------------- pull


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_what_is_pulled_is_what_was_published(release_path, in_memory, sample, tmp_path, place):
    seen = []
    report = pull(
        release_path if place == "folder" else in_memory,
        tmp_path / "db",
        progress=lambda model_id, done, total: seen.append((model_id, done, total)),
    )
    assert str(report) == "5 done, 0 skipped, 0 duplicates, 0 conflicts, 0 failed"
    assert [done for _, done, _ in seen] == [1, 2, 3, 4, 5]
    with cnnfilterdb.open(tmp_path / "db") as db:
        assert db.verify() == []
        same(db, sample)
        pd.testing.assert_frame_equal(db.filters(kernel="7x7"), sample.filters(kernel="7x7"))
        # The bases came too: nothing is fitted anew, and the numbers are the same to the last bit.
        assert [basis.basis_id for basis in db.bases()] == [basis.basis_id for basis in sample.bases()]
        pd.testing.assert_frame_equal(db.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)
        assert db.index() == []


def test_only_what_a_condition_selects(in_memory, sample, tmp_path):
    report = pull(in_memory, tmp_path / "db", where="domain = 'natural'")
    assert list(report.done) == ["custom/photo-a", "custom/photo-b"]
    with cnnfilterdb.open(tmp_path / "db") as db:
        assert db.verify() == []
        expected = sample.kl_shift("name", where="domain = 'natural'")
        pd.testing.assert_frame_equal(db.kl_shift("name"), expected, check_exact=True)
    assert list(pull(in_memory, tmp_path / "db").done) == ["custom/ct-a", "custom/ct-b", "custom/face"]
    with cnnfilterdb.open(tmp_path / "db") as db:
        same(db, sample)
    with pytest.raises(SelectionError, match="colour"):
        pull(in_memory, tmp_path / "other", where="colour = 1")
    assert list(pull(in_memory, tmp_path / "none", where="domain = 'nothing'").done) == []
    with cnnfilterdb.open(tmp_path / "none") as db:
        assert db.bases() == []


def test_a_killed_run_is_resumed(release_path, sample, tmp_path):
    code = "import sys, cnnfilterdb; cnnfilterdb.pull(sys.argv[1], sys.argv[2])"
    target = tmp_path / "db"
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", code, str(release_path), str(target)])
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < 600:
            if any((target / "models").glob("custom-*")):
                process.send_signal(signal.SIGKILL)
                process.wait()
        if process.returncode:
            break
        shutil.rmtree(target)  # it was too quick
    assert 0 < len(list((target / "models").glob("custom-*"))) <= 5
    report = pull(release_path, target)
    assert len(report.done) + len(report.skipped) == 5
    with cnnfilterdb.open(target) as db:
        assert db.verify() == []
        same(db, sample)


def test_a_damaged_model_fails_and_the_others_arrive(in_memory, sample, tmp_path):
    memory = fsspec.filesystem("memory")
    path = "/pulled/filters_3x3/00000.parquet"
    data = bytearray(memory.cat_file(path))
    data[len(data) // 4] ^= 255
    memory.pipe(path, bytes(data))
    report = pull(in_memory, tmp_path / "db")
    ((model_id, error),) = report.failed.items()
    assert len(report.done) == 4
    assert isinstance(error, CorruptError | RemoteError)
    assert model_id in str(error) or "filters_3x3" in str(error)
    assert "\n" not in str(error)
    with cnnfilterdb.open(tmp_path / "db") as db:
        assert db.verify() == []
        assert model_id not in set(db.models()["model_id"])


def test_a_changed_table_is_not_believed(in_memory, tmp_path):
    memory = fsspec.filesystem("memory")
    data = bytearray(memory.cat_file("/pulled/layers/00000.parquet"))
    data[100] ^= 1
    memory.pipe("/pulled/layers/00000.parquet", bytes(data))
    message = r"memory:///pulled/layers/00000.parquet: SHA-256 \w+, expected \w+; try again"
    with pytest.raises(CorruptError, match=message):
        pull(in_memory, tmp_path / "db")


def test_a_full_disk_is_one_line_and_the_rest_can_follow(in_memory, sample, tmp_path, monkeypatch):
    real = durable.sync
    calls = []

    def full(path):
        calls.append(path)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    cnnfilterdb.create(tmp_path / "db")
    monkeypatch.setattr("cnnfilterdb.store.writer.sync", full)
    report = pull(in_memory, tmp_path / "db")
    assert report.failed
    assert report.stopped in map(str, report.failed.values())
    for error in report.failed.values():
        assert isinstance(error, DatabaseError)
        assert str(error) == f"{tmp_path / 'db'}: the disk is full; free some space and run it again"
    monkeypatch.undo()
    pull(in_memory, tmp_path / "db")
    with cnnfilterdb.open(tmp_path / "db") as db:
        assert db.verify() == []
        same(db, sample)


def test_where_nothing_is_nothing_is_made(tmp_path):
    with pytest.raises(RemoteError, match="not found"):
        pull("memory:///nowhere", tmp_path / "db")
    assert not (tmp_path / "db").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADatabaseError):
        pull(tmp_path / "file", tmp_path / "db")


def test_a_folder_of_something_else_is_left_alone(release_path, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(NotADatabaseError, match="a folder with other things in it"):
        pull(release_path, tmp_path)


# -------------------------------------------------------------------------------------------------------------- merge


@pytest.fixture
def two(tmp_path):
    """Two databases that share a model, have the same weights under two names, and differ about a third."""
    with cnnfilterdb.create(tmp_path / "one") as one, cnnfilterdb.create(tmp_path / "two") as two:
        one.add(weights(0), "shared", domain="natural")
        one.add(weights(1), "mine", domain="natural")
        one.add(weights(2), "disputed", domain="faces")
        two.add(weights(0), "shared", domain="natural")
        two.add(weights(1), "a-copy-of-mine", domain="natural")
        two.add(weights(3), "disputed", domain="faces")
        two.add(weights(4), "new", domain="faces")
        two.add(weights(4), "new-again", domain="faces")
        two.annotate("custom/new", domain="thermal")
        one.index()
        two.index()
        yield one, two


def test_merge_drops_duplicates_and_reports_conflicts(two):
    one, other = two
    report = one.merge(other)
    assert report.skipped == ["custom/shared"]
    assert report.duplicates == {"custom/a-copy-of-mine": "custom/mine", "custom/new-again": "custom/new"}
    assert report.conflicts == ["custom/disputed"]
    assert list(report.done) == ["custom/new"]
    assert one.verify() == []
    assert one.models(where="domain = 'thermal'")["name"].tolist() == ["new"]
    again = one.merge(other.path)
    assert (again.done, again.skipped) == ({}, ["custom/new", "custom/shared"])
    assert again.duplicates == report.duplicates


def test_a_merged_model_is_projected_on_the_bases_that_are_there(two, notebook):
    one, other = two
    before = one.bases()
    one.merge(other, where="name = 'new'")
    assert [basis.basis_id for basis in one.bases()] == [basis.basis_id for basis in before]
    assert one.index() == []
    found = one.kl_shift("name", basis="selection")
    filters = one.filters()
    groups = {
        name: filters.loc[filters["model_id"] == f"custom/{name}", [f"w{i}" for i in range(9)]].to_numpy()
        for name in found.index
    }
    np.testing.assert_allclose(found, notebook(groups, np.concatenate(list(groups.values()))), rtol=1e-9, atol=1e-12)


def test_merge_can_keep_duplicates_and_replace(two):
    one, other = two
    report = one.merge(other, keep_duplicates=True, overwrite=True)
    assert list(report.done) == ["custom/a-copy-of-mine", "custom/disputed", "custom/new", "custom/new-again"]
    assert one.verify() == []
    assert len(one.models()) == 6
    pd.testing.assert_frame_equal(
        one.filters(where="name = 'disputed'"), other.filters(where="name = 'disputed'"), check_exact=True
    )


def test_merge_takes_releases_too(release_path, two, sample):
    one, _ = two
    report = one.merge(release_path)
    assert len(report.done) == 5
    assert one.verify() == []
    # There is a basis for 3x3 already, and none for the other sizes
    current = {fitted.basis.kernel: fitted.basis_id for fitted in one.bases()}
    theirs = {fitted.basis.kernel: fitted.basis_id for fitted in sample.bases()}
    assert current["3x3"] != theirs["3x3"]
    assert current["5x5"] == theirs["5x5"]


def test_a_database_cannot_be_merged_with_nothing(two, tmp_path):
    with pytest.raises(NotADatabaseError, match="does not exist"):
        two[0].merge(tmp_path / "nothing")


@pytest.mark.parametrize("error", [RuntimeError("not\nexpected"), ConnectionError("lost"), MemoryError()])
def test_any_exception_fails_one_model_and_the_others_are_copied(release_path, tmp_path, monkeypatch, error):
    from cnnfilterdb.exchange import transfer

    copy = transfer._copy_model

    def copied(writer, origin, model_id, index):
        if model_id == "custom/photo-a":
            raise error
        return copy(writer, origin, model_id, index)

    monkeypatch.setattr(transfer, "_copy_model", copied)
    report = pull(release_path, tmp_path / "db")
    assert (len(report.done), list(report.failed)) == (4, ["custom/photo-a"])
    said = str(report.failed["custom/photo-a"])
    assert type(error).__name__ in said
    assert "\n" not in said
    monkeypatch.setattr(transfer, "_copy_model", copy)
    assert list(pull(release_path, tmp_path / "db").done) == ["custom/photo-a"]

"""Many models from a source: what arrives, what is reported, and that nothing else suffers."""

import errno
import os
import pickle
import threading
import time
import zipfile
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cnnfilterdb
from cnnfilterdb.core.errors import BadWeightsError, DownloadError, NoConvolutionError, UnsafeFileError, WeightFileError
from cnnfilterdb.core.schema import ModelFacts
from cnnfilterdb.ingest import pipeline
from cnnfilterdb.ingest.fetch.cache import writing_cache
from cnnfilterdb.ingest.network.layers import ConvLayer, Weights


class FolderSource:
    """A source as small as the contract allows: models are the files of a folder, some of which are not available."""

    name = "test"

    def __init__(self, folder):
        self.folder = folder
        self.resolved = []

    def list(self, patterns=()):
        return sorted(path.name for path in self.folder.iterdir())

    def describe(self, name):
        return ModelFacts(url=name)

    def resolve(self, name):
        self.resolved.append(name)
        if name.startswith("unreachable"):
            raise DownloadError(f"{name}: no network")
        return self.folder / name


class Hostile:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "models"
    folder.mkdir()
    good = {"a.weight": rng.normal(size=(8, 4, 3, 3)).astype(np.float32)}
    save_file(good, folder / "good-1.safetensors")
    save_file(good, folder / "good-2.safetensors")
    save_file({"a.weight": np.full((8, 4, 3, 3), np.nan, np.float32)}, folder / "nan.safetensors")
    save_file({"a.weight": np.full((8, 4, 3, 3), np.inf, np.float32)}, folder / "infinite.safetensors")
    save_file({"fc.weight": np.ones((8, 4), np.float32)}, folder / "dense.safetensors")
    (folder / "page.pth").write_text("<html><body>404</body></html>")
    (folder / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "truncated.safetensors").write_bytes((folder / "good-1.safetensors").read_bytes()[:200])
    (folder / "hostile.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "canary"), protocol=2))
    with zipfile.ZipFile(folder / "hostile-zip.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"x": [Hostile(tmp_path / "canary")]}, protocol=2))
        archive.writestr("archive/version", "3\n")
    (folder / "unreachable.pth").touch()
    return folder


def test_the_others_arrive_and_each_failure_has_its_reason(folder, tmp_path):
    source = FolderSource(folder)
    db = cnnfilterdb.create(tmp_path / "a.db")
    report = pipeline.ingest(db._store, source, source.list(), projector=_projector(db))
    assert report.done == {"test/good-1.safetensors": 32, "test/good-2.safetensors": 32}
    kinds = {failure.model_id.removeprefix("test/"): type(failure.error) for failure in report.failed}
    assert kinds == {
        "nan.safetensors": BadWeightsError,
        "infinite.safetensors": BadWeightsError,
        "dense.safetensors": NoConvolutionError,
        "page.pth": WeightFileError,
        "pointer.onnx": WeightFileError,
        "truncated.safetensors": WeightFileError,
        "hostile.pth": UnsafeFileError,
        "hostile-zip.pth": UnsafeFileError,
        "unreachable.pth": DownloadError,
    }
    assert all("\n" not in failure.reason for failure in report.failed)
    assert not (tmp_path / "canary").exists()
    assert db.verify() == []
    assert len(db.models()) == 2


def test_a_second_run_resolves_nothing_again(folder, tmp_path):
    db = cnnfilterdb.create(tmp_path / "a.db")
    names = ["good-1.safetensors", "good-2.safetensors"]
    pipeline.ingest(db._store, FolderSource(folder), names, projector=_projector(db))
    source = FolderSource(folder)
    report = pipeline.ingest(db._store, source, names, projector=_projector(db))
    assert report.skipped == ["test/good-1.safetensors", "test/good-2.safetensors"]
    assert source.resolved == []
    report = pipeline.ingest(db._store, source, names[:1], projector=_projector(db), overwrite=True)
    assert list(report.done) == ["test/good-1.safetensors"]
    assert db.verify() == []


def test_a_full_disk_ends_the_run_and_leaves_a_clean_database(folder, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    db = cnnfilterdb.create(tmp_path / "a.db")
    pipeline.ingest(db._store, FolderSource(folder), ["good-1.safetensors"], projector=_projector(db))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = FolderSource(folder)
    names = ["good-2.safetensors"] + ["nan.safetensors"] * 40
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        patch.setattr(pq, "write_table", full)
        report = pipeline.ingest(db._store, source, names, projector=_projector(db))
    # Of the others, one may be imported at the same time.
    (failure,) = [failure for failure in report.failed if failure.model_id == "test/good-2.safetensors"]
    assert "the disk is full" in failure.reason
    assert report.stopped == failure.reason
    assert len(report.failed) < len(names)
    assert len(source.resolved) < len(names)
    assert list(db.models()["name"]) == ["good-1.safetensors"]
    assert db.verify() == []


def test_a_full_cache_ends_the_run(folder, tmp_path):
    class Full(FolderSource):
        def resolve(self, name):
            with writing_cache(self.folder):
                raise OSError(errno.EDQUOT, "Disk quota exceeded")

    db = cnnfilterdb.create(tmp_path / "a.db")
    report = pipeline.ingest(db._store, Full(folder), ["good-1.safetensors"] * 50, projector=_projector(db))
    assert len(report.failed) == 1
    assert "CNNFILTERDB_CACHE" in report.stopped


@pytest.mark.parametrize("method", ["resolve", "describe", "enrich"])
@pytest.mark.parametrize("error", [ConnectionError("reset"), KeyError("x"), MemoryError(), RecursionError("deep")])
def test_any_exception_of_a_plugin_fails_its_model_only(folder, tmp_path, method, error):
    class Broken(FolderSource):
        isolated = False

        def enrich(self, name, weights):
            return weights

    def broken(self, name, *rest):
        if name == "good-1.safetensors":
            raise error
        return original(self, name, *rest) if method == "enrich" else original(self, name)

    original = getattr(Broken, method)
    setattr(Broken, method, broken)
    db = cnnfilterdb.create(tmp_path / "a.db")
    names = ["good-1.safetensors", "good-2.safetensors"]
    report = pipeline.ingest(db._store, Broken(folder), names, projector=_projector(db))
    assert list(report.done) == ["test/good-2.safetensors"]
    (failure,) = report.failed
    assert failure.model_id == "test/good-1.safetensors"
    assert type(error).__name__ in failure.reason
    assert "\n" not in failure.reason
    assert report.stopped is None


def test_an_interrupt_carries_the_report(folder, tmp_path):
    class Interrupted(pipeline.Observer):
        def finished(self, model_id, outcome):
            raise KeyboardInterrupt

    db = cnnfilterdb.create(tmp_path / "a.db")
    names = ["good-1.safetensors", "good-2.safetensors"]
    with pytest.raises(KeyboardInterrupt) as caught:
        pipeline.ingest(db._store, FolderSource(folder), names, projector=_projector(db), observer=Interrupted())
    (done,) = caught.value.report.done
    assert done in set(db.models()["model_id"])


def test_models_are_imported_at_a_time(folder, tmp_path):
    """Unless memory is limited, one thread is asked for, or they are read in this process. The report is in order."""
    names = ["good-2.safetensors", "good-1.safetensors"]

    class Meeting(FolderSource):
        isolated = True

        def describe(self, name):
            together.wait(20 if expected else 0.5)
            return super().describe(name)

    cases = [({"threads": 2}, True), ({"memory": "1GB"}, False), ({"threads": 1}, False), ({"threads": 2}, False)]
    for number, (options, expected) in enumerate(cases):
        together = threading.Barrier(2)
        Meeting.isolated = number < 3
        with (
            cnnfilterdb.create(tmp_path / f"{number}.db", **options) as db,
            patch("os.sched_getaffinity", lambda _: {0, 1}),
        ):
            report = pipeline.ingest(db._store, Meeting(folder), names, projector=_projector(db))
        assert list(report.done) == (["test/good-2.safetensors", "test/good-1.safetensors"] if expected else [])
        assert len(report.failed) == (0 if expected else 2)


def test_an_interrupt_ends_what_is_being_imported(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    reading = threading.Event()

    class Long(FolderSource):
        def enrich(self, name, weights):
            if name == "good-1.safetensors":
                return weights
            return replace(weights, layers=tuple(replace(weights.layers[0], read=self.slowly) for _ in range(1000)))

        def describe(self, name):
            assert reading.wait(20)
            return super().describe(name)

        def slowly(self):
            reading.set()
            time.sleep(0.05)
            return np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)

        def resolve(self, name):
            return super().resolve("good-1.safetensors")

    class Interrupted(pipeline.Observer):
        def finished(self, model_id, outcome):
            raise KeyboardInterrupt

    db = cnnfilterdb.create(tmp_path / "a.db")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught:
        pipeline.ingest(
            db._store, Long(folder), ["good-2.safetensors", "good-1.safetensors"],
            projector=_projector(db), observer=Interrupted(),
        )  # fmt: skip
    assert time.monotonic() - began < 25
    assert list(caught.value.report.done) == ["test/good-1.safetensors"] == db.models()["model_id"].tolist()
    assert db.verify() == []


def test_an_interrupt_ends_the_downloads(folder, tmp_path):
    class Slow(FolderSource):
        def resolve(self, name, progress=None):
            if name == "good-2.safetensors":
                for done in range(6000):
                    progress(done, 6000)
                    time.sleep(0.05)
                arrived.append(name)
            return super().resolve(name)

    class Interrupted(pipeline.Observer):
        def finished(self, model_id, outcome):
            raise KeyboardInterrupt

    arrived: list[str] = []
    db = cnnfilterdb.create(tmp_path / "a.db")
    with pytest.raises(KeyboardInterrupt):
        pipeline.ingest(
            db._store, Slow(folder), ["good-1.safetensors", "good-2.safetensors"],
            projector=_projector(db), observer=Interrupted(),
        )  # fmt: skip
    assert arrived == []


def test_models_that_another_run_imports_are_skipped(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("cnnfilterdb.store.folder.LOCK_SECONDS", 0.05)
    names = ["good-1.safetensors", "good-2.safetensors"]
    db, other = cnnfilterdb.create(tmp_path / "a.db"), cnnfilterdb.create(tmp_path / "a.db")

    class Meanwhile(FolderSource):
        def enrich(self, name, weights):
            if name == "good-1.safetensors":  # the other run is faster
                pipeline.ingest(other._store, FolderSource(folder), [name], projector=_projector(other))
            return weights

    with other._store.writer("test/good-2.safetensors"):  # the other run is at it
        report = pipeline.ingest(db._store, Meanwhile(folder), names, projector=_projector(db))
    assert (report.done, report.failed) == ({}, [])
    assert report.skipped == ["test/good-1.safetensors", "test/good-2.safetensors"]
    assert db.verify() == []


def _one_layer(read):
    return Weights("synthetic", None, (ConvLayer("conv", (8, 8, 3, 3), read, "float32"),))


def test_a_model_is_described_while_its_layers_are_read(tmp_path):
    db, reading = cnnfilterdb.create(tmp_path / "a.db"), threading.Event()

    def read():
        reading.set()
        return np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)

    def facts():
        return ModelFacts(domain="natural" if reading.wait(20) else "none is read before this is known")

    pipeline.take_in(db._store, _one_layer(read), source="a", name="b", facts=facts, projector=_projector(db)())
    assert db.models().domain.tolist() == ["natural"]


def test_a_model_that_cannot_be_described_is_not_written(tmp_path):
    db = cnnfilterdb.create(tmp_path / "a.db")

    def facts():
        raise DownloadError("b: cannot be read")

    weights = _one_layer(lambda: np.ones((8, 8, 3, 3), np.float32))
    with pytest.raises(DownloadError, match="b: cannot be read"):
        pipeline.take_in(db._store, weights, source="a", name="b", facts=facts, projector=_projector(db)())
    assert len(db.models()) == 0
    assert db.verify() == []


def test_only_regular_files_are_read(folder, tmp_path):
    os.mkfifo(folder / "pipe.pth")
    db = cnnfilterdb.create(tmp_path / "a.db")
    report = pipeline.ingest(db._store, FolderSource(folder), ["pipe.pth", "gone.pth"], projector=_projector(db))
    assert ["not a regular file" in failure.reason for failure in report.failed] == [True, False]
    assert "does not exist" in report.failed[1].reason


@pytest.mark.parametrize("isolated", [True, False])
def test_isolation_changes_no_result(folder, tmp_path, monkeypatch, isolated):
    monkeypatch.setattr(FolderSource, "isolated", isolated, raising=False)
    started = []
    monkeypatch.setattr("subprocess.Popen", _counting(started))
    db = cnnfilterdb.create(tmp_path / "a.db")
    pipeline.ingest(db._store, FolderSource(folder), ["good-1.safetensors"], projector=_projector(db))
    assert len(started) == isolated
    tensors = load_file(folder / "good-1.safetensors")
    stored = db.sql("SELECT w FROM filters_3x3 ORDER BY out_channel, in_channel").fetchall()
    np.testing.assert_array_equal(np.array(stored, np.float32).reshape(8, 4, 3, 3), tensors["a.weight"])


def _counting(started):
    import subprocess

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            started.append(args)
            super().__init__(*args, **kwargs)

    return Popen


def test_a_forecast(folder, tmp_path):
    db = cnnfilterdb.create(tmp_path / "a.db")
    pipeline.ingest(db._store, FolderSource(folder), ["good-1.safetensors"], projector=_projector(db))
    found = pipeline.forecast(db._store, FolderSource(folder), ["good-1.safetensors", "good-2.safetensors"])
    assert found == pipeline.Forecast(models=1, present=1, download=0, unknown=1, database=0)
    from cnnfilterdb.ingest.fetch.cache import Cache
    from cnnfilterdb.ingest.sources.pypi import PypiSource

    source = PypiSource(cache=Cache(tmp_path / "cache"))
    names = source.list(["deepcr/*"])
    found = pipeline.forecast(None, source, names)
    assert (found.models, found.unknown) == (len(names), 0)
    assert 1_000_000 < found.download < 200_000_000
    assert found.database > 0


def _projector(db):
    from cnnfilterdb.store.index import Projection

    return lambda: Projection(db._index)

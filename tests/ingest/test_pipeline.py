"""Many models from a source: what arrives, what is reported, and that nothing else suffers."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

import cnnfilterdb
from cnnfilterdb.errors import BadWeightsError, DownloadError, NoConvolutionError, UnsafeFileError, WeightFileError
from cnnfilterdb.ingest import pipeline
from cnnfilterdb.schema import ModelFacts


class FolderSource:
    """A source whose models are the files of a folder; some cannot be brought."""

    name = "test"

    def __init__(self, folder):
        self.folder = folder
        self.brought = []

    def list(self, patterns=()):
        return sorted(path.name for path in self.folder.iterdir())

    def describe(self, name):
        return ModelFacts(domain="natural", license="MIT")

    def resolve(self, name, progress=None):
        self.brought.append(name)
        if name.startswith("unreachable"):
            raise DownloadError(f"{name}: no route to host")
        return self.folder / name

    def enrich(self, name, weights):
        return weights


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
    save_file({"a.weight": np.array([[[[np.inf] * 3] * 3]], np.float32)}, folder / "infinite.safetensors")
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


def test_a_second_run_brings_nothing_again(folder, tmp_path):
    db = cnnfilterdb.create(tmp_path / "a.db")
    names = ["good-1.safetensors", "good-2.safetensors"]
    pipeline.ingest(db._store, FolderSource(folder), names, projector=_projector(db))
    source = FolderSource(folder)
    report = pipeline.ingest(db._store, source, names, projector=_projector(db))
    assert report.skipped == ["test/good-1.safetensors", "test/good-2.safetensors"]
    assert source.brought == []
    report = pipeline.ingest(db._store, source, names[:1], projector=_projector(db), overwrite=True)
    assert list(report.done) == ["test/good-1.safetensors"]
    assert db.verify() == []


def test_a_full_disk_leaves_a_clean_database(folder, tmp_path, monkeypatch):
    import errno

    import pyarrow.parquet as pq

    db = cnnfilterdb.create(tmp_path / "a.db")
    pipeline.ingest(db._store, FolderSource(folder), ["good-1.safetensors"], projector=_projector(db))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        patch.setattr(pq, "write_table", full)
        report = pipeline.ingest(db._store, FolderSource(folder), ["good-2.safetensors"], projector=_projector(db))
    (failure,) = report.failed
    assert "the disk is full" in failure.reason
    assert list(db.models()["name"]) == ["good-1.safetensors"]
    assert db.verify() == []


def _projector(db):
    from cnnfilterdb.store.index import Projection

    return Projection(db._index)

"""Several parts are published as one release."""

from __future__ import annotations

import fsspec
import numpy as np
import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb.publish import sources


def test_a_release_of_three_parts(parts, sample, tmp_path):
    manifest = parts.publish("owner/all", folder=tmp_path / "release", version="1.0.0")
    assert (manifest.models, manifest.filters) == (5, int(sample.models()["stored_filters"].sum()))
    with cnnfilterdb.open(tmp_path / "release") as db:
        assert db.verify() == []
        pd.testing.assert_frame_equal(db.kl_shift("domain"), sample.kl_shift("domain"), check_exact=True)
        pd.testing.assert_frame_equal(db.filters(), sample.filters(), check_exact=True)
        pd.testing.assert_frame_equal(db.layers(), sample.layers(), check_exact=True)
        assert "part" not in db.models().columns
        assert len(db.sql("FROM fingerprints").df()) == len(sample.layers(where="stored"))
        db.storage.check_all()
    with cnnfilterdb.create(tmp_path / "pulled.db") as db:
        assert len(db.merge(tmp_path / "release").done) == 5


@pytest.fixture
def released(tmp_path, tensors, object_store):
    """A folder, and a release in an object store whose models all come after those of the folder."""
    with cnnfilterdb.create(tmp_path / "before.db") as db:
        for name in ("a", "b"):
            db.add(tensors["photo-b"], name, domain="natural", license="MIT", overwrite=True)
    with cnnfilterdb.create(tmp_path / "after.db") as db:
        for name in ("x", "y", "z"):
            db.add(tensors["ct-a"], name, domain="medical ct", license="MIT")
        db.publish("owner/after", folder=tmp_path / "after", version="1.0.0")
    store = fsspec.filesystem("s3", **object_store)
    store.mkdir("published")
    store.put(f"{tmp_path / 'after'}/", "published/after/", recursive=True)
    yield tmp_path / "before.db", cnnfilterdb.open("s3://published/after", storage_options=object_store)
    store.rm("published", recursive=True)


def test_shards_are_copied_where_no_other_model_comes_between(released, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_of_shard", None)  # nothing of the release is encoded again
    with cnnfilterdb.open(released) as db:
        manifest = db.publish("owner/all", folder=tmp_path / "release", version="1.0.0")
    known = {file.table: file for file in released[1].storage.manifest.files if file.table.startswith("filters_")}
    for kernel in ("3x3", "5x5"):
        copied = manifest.of(f"filters_{kernel}")[-1]
        assert (copied.sha256, copied.first_model, copied.last_model) == (
            known[f"filters_{kernel}"].sha256,
            "custom/x",
            "custom/z",
        )
    with cnnfilterdb.open(tmp_path / "release") as found, cnnfilterdb.open(released) as db:
        assert found.verify() == []
        pd.testing.assert_frame_equal(found.filters(), db.filters(), check_exact=True)
        pd.testing.assert_frame_equal(found.kl_shift("domain"), db.kl_shift("domain"), check_exact=True)


def test_shards_of_models_that_are_taken_from_another_part_are_not_copied(released, tmp_path, tensors):
    before, remote = released
    with cnnfilterdb.open(before) as db:
        db.add(tensors["ct-b"], "y", domain="medical ct", license="MIT")
    with cnnfilterdb.open([before, remote], duplicates="first") as db:
        manifest = db.publish("owner/all", folder=tmp_path / "release", version="1.0.0")
        with cnnfilterdb.open(tmp_path / "release") as found:
            assert manifest.models == 5
            assert found.verify() == []
            pd.testing.assert_frame_equal(found.filters(), db.filters(), check_exact=True)
            np.testing.assert_array_equal(found.layer_weights("custom/y", 0), tensors["ct-b"]["enc.weight"])


def test_a_shard_that_is_damaged_is_not_copied(released, tmp_path, object_store):
    with cnnfilterdb.open(released) as db:
        db.bases()
        store = fsspec.filesystem("s3", **object_store)
        path = "published/after/filters_3x3/00000.parquet"
        content = bytearray(store.cat_file(path))
        content[100] ^= 1
        store.pipe_file(path, bytes(content))
        with pytest.raises(cnnfilterdb.CorruptError, match="SHA-256"):
            db.publish("owner/all", folder=tmp_path / "release", verify=False)
        with pytest.raises(cnnfilterdb.CorruptError, match="nothing was published"):
            db.publish("owner/all", folder=tmp_path / "again")


def test_what_is_not_published(part_paths, tmp_path):
    for path, options, error, message in (
        ([part_paths["folder"], "reference"], {}, cnnfilterdb.SelectionError, "the part reference has the statistics"),
        (part_paths["release"], {}, cnnfilterdb.PublishError, "published already"),
        (part_paths["folder"], {"read_only": True}, cnnfilterdb.PublishError, "open for reading only"),
    ):
        with cnnfilterdb.open(path, **options) as db, pytest.raises(error, match=message):
            db.publish("owner/all", folder=tmp_path / "release", verify=False)

"""The index: frozen bases, gaps, refits, kills, kernel sizes and variants."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA

import cnnfilterdb
from cnnfilterdb.analysis.bases import moments_of
from cnnfilterdb.errors import SelectionError
from cnnfilterdb.schema import papers_layers
from cnnfilterdb.stats import Basis, sparse_kernels
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index


def files(path):
    """Every file of the index with its content."""
    return {file.relative_to(path): file.read_bytes() for file in (path / "index").rglob("*") if file.is_file()}


def scaled(filters):
    peak = np.abs(filters).max(axis=1, keepdims=True)
    return (filters / np.where(peak > 0, peak, 1)).astype(np.float64)


@pytest.fixture
def copy(sample_path, tmp_path):
    return shutil.copytree(sample_path, tmp_path / "copy.db")


def test_bases_of_every_kernel_size_are_pcas(sample, tensors):
    fitted = {basis.basis.kernel: basis for basis in sample.bases()}
    assert set(fitted) == {"3x3", "5x5", "7x7"}  # 1x1 kernels are counted only
    for kernel, one in fitted.items():
        size = int(kernel[0])
        weights = [t for model in tensors.values() for t in model.values() if t.shape[2:] == (size, size)]
        filters = np.concatenate([weight.reshape(-1, size**2) for weight in weights]).astype(np.float32)
        pca = PCA().fit(scaled(filters))
        assert (one.basis.filters, one.layers) == (len(filters), len(weights))
        # With fewer filters than weights, PCA gives fewer components.
        count = len(pca.explained_variance_)
        np.testing.assert_allclose(one.basis.explained_variance[:count], pca.explained_variance_, atol=1e-9)
        found = one.basis.project(filters)
        assert (one.basis.low, one.basis.high) == (found.min(), found.max())
        assert one.basis_id.startswith(f"{kernel}-")


def test_a_second_build_changes_nothing(copy):
    before = files(copy)
    index = Index(Store.open(copy))
    assert index.missing() == {}
    assert index.unindexed() == []
    assert index.build() == index.build(refit=True) == []
    assert files(copy) == before


def test_gaps_are_filled_with_what_was_there(copy):
    before = files(copy)
    gone = list(copy.glob("index/*/histograms/custom-photo-a-*"))
    assert len(gone) == 2  # 3x3 and 7x7
    for file in gone:
        file.unlink()
    index = Index(Store.open(copy))
    assert sorted(index.missing().values()) == [["custom/photo-a"]] * 2
    told = []
    assert index.build(progress=lambda *step: told.append(step)) == []
    assert files(copy) == before
    assert {(what, done, total) for what, done, total in told} == {
        ("histograms of 3x3", 1, 1),
        ("histograms of 7x7", 1, 1),
    }


def test_a_basis_is_frozen_and_comes_back_in_use(copy, tensors):
    with cnnfilterdb.create(copy) as db:
        (first,) = (fitted for fitted in db.bases() if fitted.basis.kernel == "3x3")
        frozen = (copy / "index" / first.basis_id / "basis.parquet").read_bytes()
        db.add({"a.weight": 5 * tensors["ct-b"]["mid.weight"] ** 2}, "squares", domain="squares")
        assert (copy / "index" / first.basis_id / "basis.parquet").read_bytes() == frozen
        (second,) = db.index(refit=True)
        assert second.basis_id != first.basis_id
        assert "custom/squares" in second.models
        assert "custom/squares" not in first.models
        db.remove("custom/squares")
        (again,) = db.index(refit=True)  # the layers are those of the first basis again
        assert again.basis_id == first.basis_id
        np.testing.assert_array_equal(again.basis.components, first.basis.components)
        assert db.kl_shift("domain").attrs["basis"] == first.basis_id
        assert db.index(refit=True) == []
        with pytest.raises(SelectionError, match=rf"no basis 'x' .*{first.basis_id}"):
            db.kl_shift("domain", basis="x")


KILLED = """
import os, sys
from cnnfilterdb.store.index import Index
from cnnfilterdb.store.folder import Store

steps = int(sys.argv[2])
def progress(what, done, total):
    global steps
    if what.startswith("histograms"):
        steps -= 1
        if steps < 0:
            os._exit(9)
Index(Store.open(sys.argv[1])).build(refit=True, progress=progress)
"""


@pytest.mark.parametrize("steps", [0, 3])
def test_a_killed_build_leaves_nothing_half(copy, steps):
    shutil.rmtree(next(copy.glob("index/3x3-*")))
    before = files(copy)
    done = subprocess.run([sys.executable, "-c", KILLED, str(copy), str(steps)], check=False)
    assert done.returncode == 9
    assert files(copy) == before
    with cnnfilterdb.create(copy) as db:  # which clears up, and builds what is missing when asked
        assert list((copy / ".staging").iterdir()) == []
        python, rows = db.kl_shift("domain"), db.sql("FROM group_sizes(domain)").df()
        counted = db.groups("domain")
        np.testing.assert_array_equal(counted.counts.sum(axis=2)[:, 0], rows["filters"])
        assert len(python) == 3
        assert db.verify() == []


def test_an_error_in_a_build_leaves_nothing(copy):
    shutil.rmtree(next(copy.glob("index/3x3-*")))
    before = files(copy)

    def progress(what, done, total):
        if what.startswith("histograms") and done == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        Index(Store.open(copy)).build(progress=progress)
    assert files(copy) == before
    assert list((copy / ".staging").iterdir()) == []


def test_moments_without_sparse_filters(tmp_path):
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(20, 4, 3, 3)).astype(np.float32) for _ in range(3)]
    layers[0][::3] *= 1e-4
    layers[2][1, 2] = 0
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add({f"{i}.weight": layer for i, layer in enumerate(layers)}, "m")
        rows = papers_layers(Store.open(db.path).layers())
        kept = [layer.reshape(-1, 9)[~sparse_kernels(layer.reshape(-1, 9))] for layer in layers]
        filters = np.concatenate(kept)
        assert len(filters) == 3 * 80 - 7 * 4 - 1
        for variant, expected in (("nonsparse", filters), ("all", np.concatenate(layers).reshape(-1, 9))):
            moments = moments_of(rows, "3x3", variant=variant)
            assert moments.count == len(expected)
            pca = PCA().fit(scaled(expected))
            basis = Basis.fit(moments, "3x3", variant=variant)
            np.testing.assert_allclose(basis.explained_variance, pca.explained_variance_, rtol=1e-9)
            np.testing.assert_allclose(basis.mean, pca.mean_, atol=1e-12)
            assert db.basis(variant=variant).filters == len(expected)
        with pytest.raises(SelectionError, match="'x' is none of all, nonsparse"):
            moments_of(rows, "3x3", variant="x")


def test_large_and_lonely_kernels_are_stored_without_a_basis(tmp_path):
    rng = np.random.default_rng(0)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add({"a.weight": rng.normal(size=(8, 4, 13, 13)), "b.weight": rng.normal(size=(1, 1, 5, 5))}, "m")
        assert db.index() == []
        assert len(db.filters(kernel="13x13")) == 32
        with pytest.raises(SelectionError, match="no basis for 13x13"):
            db.kl_shift("domain", kernel="13x13")

"""The index: frozen bases, gaps, refits, kills, kernel sizes and variants."""

import errno
import os
import shutil
import subprocess
import sys
from datetime import datetime

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import PCA

import cnnfilterdb
from cnnfilterdb.analysis.bases import moments_of
from cnnfilterdb.core.errors import DatabaseError, SelectionError
from cnnfilterdb.core.schema import papers_layers
from cnnfilterdb.core.sharding import Share
from cnnfilterdb.stats import Basis, sparse_kernels
from cnnfilterdb.store import annotations as notes
from cnnfilterdb.store import folder as store_module
from cnnfilterdb.store import index as index_files
from cnnfilterdb.store.folder import Store
from cnnfilterdb.store.index import Index
from cnnfilterdb.store.seals import write_sealed
from cnnfilterdb.store.verify import verify_folder


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


def test_histograms_of_a_model_that_was_replaced_while_they_were_checked_are_not_damaged(copy, monkeypatch, recwarn):
    """The hashes of the layers were read before another process replaced the model, its histograms after that."""
    before = files(copy)
    with cnnfilterdb.open(copy) as db:
        index, real = Index(db.storage), Index.damage
        (histograms,) = (copy / "index").glob("3x3-*/histograms/custom-face-*.parquet")

        def outdated(self):
            monkeypatch.setattr(Index, "damage", real)
            return {histograms.relative_to(copy).as_posix(): "computed from other weights"}

        monkeypatch.setattr(Index, "damage", outdated)
        index.build()
    assert files(copy) == before
    assert not (copy / ".quarantine").exists()
    assert not recwarn.list


def test_a_basis_that_cannot_be_read_for_a_moment_is_not_set_aside(copy, monkeypatch):
    """Superseded bases cannot be fitted again: an error of the disk that passes must not cost them."""
    before = files(copy)
    real, failed = index_files.sealed_rows, []

    def once(root, path, schema):
        if path.endswith("basis.parquet") and "3x3" in path and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(root, path, schema)

    index_files.read_basis.cache_clear()
    monkeypatch.setattr(index_files, "sealed_rows", once)
    Index(Store.open(copy)).build()
    assert failed
    assert files(copy) == before


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
    stated = []
    assert index.build(progress=lambda *step: stated.append(step)) == []
    assert files(copy) == before
    assert {(what, done, total) for what, done, total in stated} == {
        ("histograms of 3x3", 1, 1),
        ("histograms of 7x7", 1, 1),
    }


def test_a_basis_is_frozen_and_comes_back_in_use(copy, tensors):
    with cnnfilterdb.create(copy) as db:
        (first,) = (fitted for fitted in db.bases() if fitted.basis.kernel == "3x3")
        frozen = (copy / "index" / first.basis_id / "basis.parquet").read_bytes()
        db.add({"a.weight": 5 * tensors["ct-b"]["mid.weight"] ** 2}, "squares", domain="squares", new_words=True)
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


def fingerprints(path):
    return {file.stem: file.read_bytes() for file in path.glob("index/fingerprints/custom-*.parquet")}


def test_fingerprints_follow_their_models(copy, tensors):
    before = fingerprints(copy)
    assert len(before) == 5
    with cnnfilterdb.create(copy) as db:
        assert not db.sql("SELECT 1 FROM layers ANTI JOIN fingerprints USING (model_id, layer) WHERE stored").fetchall()
        db.remove("custom/ct-a")
        assert len(fingerprints(copy)) == 4
        key = db.add(tensors["ct-b"], "ct-b", overwrite=True)  # another commit, of the same weights
        assert len(fingerprints(copy)) == 3
        db.kl_shift("domain")  # needs none, and waits for none
        assert len(fingerprints(copy)) == 3
        assert db.spectra(where=f"model_id = '{key}'").shape[0] > 0
        assert fingerprints(copy) == {stem: text for stem, text in before.items() if "ct-a" not in stem}
        assert db.verify() == []


def test_a_database_without_fingerprints_says_what_computes_them(copy):
    before = fingerprints(copy)
    shutil.rmtree(copy / "index" / "fingerprints")  # as an earlier version wrote it
    with cnnfilterdb.open(copy, read_only=True) as db:
        assert db.verify() == []
        assert len(db.sql("SHOW TABLES").df()) > 5
        for ask in (db.spectra, db.related_models, lambda: db.sql("FROM related_models").df()):
            with pytest.raises(DatabaseError, match=r"5 models without fingerprints, such as .*`cnnfilterdb index`"):
                ask()
    with cnnfilterdb.open(copy) as db:
        db.annotate("custom/ct-a", domain="medical ct")  # which writes init.sql again
        duckdb.connect().execute((copy / "init.sql").read_text())
        db.related_models()
    assert fingerprints(copy) == before


@pytest.mark.parametrize("damage", ["cut", "of other weights"])
def test_damaged_fingerprints_are_computed_again(copy, damage):
    before = fingerprints(copy)
    first, second = sorted(copy.glob("index/fingerprints/custom-*.parquet"))[:2]
    if damage == "cut":
        first.write_bytes(first.read_bytes()[:100])
    else:
        shutil.copy(second, first)
    with cnnfilterdb.open(copy) as db:
        assert [problem.path for problem in db.verify()] == [first] * len(db.verify())
        with pytest.warns(UserWarning, match="fingerprints"):
            db.index()
        assert db.verify() == []
    assert fingerprints(copy) == before


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
    with cnnfilterdb.open(copy) as db:  # which builds what is missing when asked, and tidies up first
        python, rows = db.kl_shift("domain"), db.sql("FROM group_sizes(domain)").df()
        assert list((copy / ".staging").iterdir()) == []
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
        with pytest.raises(SelectionError, match="'x' is not one of all, nonsparse"):
            moments_of(rows, "3x3", variant="x")


def test_large_and_lonely_kernels_are_stored_without_a_basis(tmp_path):
    rng = np.random.default_rng(0)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add({"a.weight": rng.normal(size=(8, 4, 13, 13)), "b.weight": rng.normal(size=(1, 1, 5, 5))}, "m")
        assert db.index() == []
        assert len(db.filters(kernel="13x13")) == 32
        with pytest.raises(SelectionError, match="no basis for 13x13"):
            db.kl_shift("domain", kernel="13x13")


# ---------------------------------------------------------------------------------------- weights that change meanwhile


def weights(seed):
    rng = np.random.default_rng(seed)
    return {"a.weight": (rng.normal(size=(16, 4, 3, 3)) * rng.uniform(0.1, 3, (3, 3))).astype(np.float32)}


def scanned_shift(db):
    """The shift from the filters themselves, in the basis in use."""
    basis = db.bases()[-1].basis
    return db.kl_shift("domain", basis=basis, bins=basis.bins, range=(basis.low, basis.high)).to_numpy()


@pytest.mark.parametrize("moment", ["range", "histograms"])
@pytest.mark.parametrize("filled", [False, True], ids=["new basis", "gap"])
def test_a_model_replaced_during_a_fit_never_gets_old_histograms(tmp_path, moment, filled):
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        for number in range(4):
            db.add(weights(number), f"m{number}", domain=f"d{number % 2}", new_words=True)
        if filled:
            db.index()
            for file in db.path.glob("index/3x3-*/histograms/*"):
                file.unlink()
        replaced = []

        def progress(what, done, total):
            if what.startswith(moment) and not replaced:
                replaced.append(what)
                with cnnfilterdb.open(db.path) as other:
                    other.add(weights(99), "m0", domain="d0", overwrite=True, new_words=True)

        Index(Store.open(db.path)).build(progress=progress)
        if not (filled and moment == "range"):
            assert replaced
        assert db.verify() == []
        assert Index(Store.open(db.path)).damage() == {}
        stored = db.kl_shift("domain")
        assert Index(Store.open(db.path)).missing() == {}
        np.testing.assert_allclose(stored.to_numpy(), scanned_shift(db), rtol=1e-9)


def test_histograms_of_other_weights_are_never_part_of_an_answer(tmp_path):
    """Whatever put them there: another copy of the folder, say."""
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        for number in range(4):
            db.add(weights(number), f"m{number}", domain=f"d{number % 2}", new_words=True)
        db.index()
        expected = db.kl_shift("domain").to_numpy()
        (file,) = db.path.glob("index/3x3-*/histograms/custom-m0-*")
        good = file.read_bytes()
        db.add(weights(99), "m0", domain="d0", overwrite=True, new_words=True)
        old = file.read_bytes()
        assert old != good
        db.add(weights(0), "m0", domain="d0", overwrite=True, new_words=True)
        file.write_bytes(old)
        assert any("computed from other weights" in problem.message for problem in db.verify())
        index = Index(Store.open(db.path))
        assert list(index.damage()) == [file.relative_to(db.path).as_posix()]
        with pytest.warns(UserWarning, match="other weights"):
            index.build()
        assert file.read_bytes() == good
        np.testing.assert_array_equal(db.kl_shift("domain").to_numpy(), expected)
        assert db.verify() == []


# --------------------------------------------------------------------------------------------------------- damage


def rewritten(path, change):
    table = change(pq.ParquetFile(path).read())
    write_sealed(table, path)


def put(table, column, value):
    number = table.column_names.index(column)
    return table.set_column(number, table.schema.field(column), pa.array([value], table.schema.field(column).type))


BROKEN_BASES = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "foreign": lambda path: path.write_bytes(b"PAR1 nothing at all PAR1"),
    "other columns": lambda path: write_sealed(pa.table({"a": [1]}), path),
    "no rows": lambda path: rewritten(path, lambda table: table.slice(0, 0)),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:500] + b"?" + path.read_bytes()[501:]),
    "unsealed": lambda path: pq.write_table(pq.read_table(path, partitioning=None), path),
    "NaN": lambda path: rewritten(path, lambda table: put(table, "mean", [float("nan")] * 9)),
    "short": lambda path: rewritten(path, lambda table: put(table, "mean", [0.0] * 8)),
    "no bins": lambda path: rewritten(path, lambda table: put(table, "bins", 0)),
    "many bins": lambda path: rewritten(path, lambda table: put(table, "bins", 2_000_000_000)),
    "no range": lambda path: rewritten(path, lambda table: put(table, "high", None)),
    "hostile": lambda path: rewritten(path, lambda table: put(table, "basis_id", "x\n;COPY (SELECT 1) TO '/tmp/x';--")),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", BROKEN_BASES)
def test_a_broken_basis_is_skipped_and_rebuilt(copy, how):
    with cnnfilterdb.open(copy) as db:
        expected, count = db.kl_shift("domain"), len(db.models())
    (path,) = copy.glob("index/3x3-*/basis.parquet")
    BROKEN_BASES[how](path)
    index = Index(Store.open(copy))
    assert all(fitted.basis.kernel != "3x3" for fitted in index.bases())
    with cnnfilterdb.open(copy) as db:
        assert len(db.models()) == count
        shift = db.kl_shift("domain")
        np.testing.assert_array_equal(shift.to_numpy(), expected.to_numpy())
        assert shift.attrs["basis"] == expected.attrs["basis"]
        assert db.verify() == []


BROKEN_HISTOGRAMS = {name: BROKEN_BASES[name] for name in ("empty", "truncated", "foreign", "other columns", "flipped")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", BROKEN_HISTOGRAMS)
def test_broken_histograms_are_rebuilt(copy, how):
    with cnnfilterdb.open(copy) as db:
        expected = db.kl_shift("domain")
    path = sorted(copy.glob("index/3x3-*/histograms/*.parquet"))[0]
    BROKEN_HISTOGRAMS[how](path)
    with cnnfilterdb.open(copy) as db:
        assert db.verify() != []
        assert len(db.models()) == 5
        if how != "flipped":  # which DuckDB may not notice
            np.testing.assert_array_equal(db.kl_shift("domain").to_numpy(), expected.to_numpy())
        db.index()
        np.testing.assert_array_equal(db.kl_shift("domain").to_numpy(), expected.to_numpy())
        assert db.verify() == []


def test_a_refit_works_with_the_clock_set_back(copy, tensors, monkeypatch):
    with cnnfilterdb.open(copy) as db:
        first = {fitted.basis.kernel: fitted for fitted in db.bases()}["3x3"]
        db.add({"a.weight": 5 * tensors["ct-b"]["mid.weight"] ** 2}, "squares", domain="squares", new_words=True)

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime(1999, 1, 1, tzinfo=tz)

        monkeypatch.setattr("cnnfilterdb.analysis.fitting.datetime", Clock)
        (second,) = db.index(refit=True)
        assert second.created_at.year == 1999
        assert second.sequence > first.sequence
        assert db.kl_shift("domain").attrs["basis"] == second.basis_id
        assert db.sql("SELECT DISTINCT basis_id FROM group_histograms(domain)").fetchall() == [(second.basis_id,)]
        assert Index(Store.open(copy)).prune() == [first.basis_id]
        assert not (copy / "index" / first.basis_id).exists()
        assert db.kl_shift("domain").attrs["basis"] == second.basis_id
        assert db.verify() == []


def test_transposed_layers_alone_are_not_indexed_at_every_question(tmp_path, monkeypatch):
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add(weights(0), "m", domain="d", new_words=True)
        db.add(weights(1), "n", domain="e", new_words=True)
        with Store.open(db.path).writer("custom/t") as writer:
            weight = np.random.default_rng(0).normal(size=(4, 4, 5, 5)).astype(np.float32)
            writer.add_layer({"layer_name": "a", "dtype": "float32", "kind": "transposed"}, weight)
            writer.commit({})
        built = []
        original = Index.build
        monkeypatch.setattr(Index, "build", lambda self, **options: built.append(1) or original(self, **options))
        for _ in range(3):
            db.kl_shift("domain")
        assert len(built) == 1


# --------------------------------------------------------------------------------------------- damage of any file


def small_files(path):
    return [
        *sorted(path.glob("models/*.parquet")),
        *sorted(path.glob("index/*/basis.parquet")),
        *sorted(path.glob("index/*/histograms/*.parquet"))[:4],
        *(path / name for name in ("init.sql", "cnnfilterdb.json", "annotations.csv")),
    ]


@pytest.mark.thorough
def test_every_flipped_byte_is_found_and_repaired(copy):
    with cnnfilterdb.open(copy) as db:
        db.annotate("custom/face", domain="portraits", new_words=True)
        assert db.verify() == []
    rng = np.random.default_rng(0)
    for file in small_files(copy):
        content = file.read_bytes()
        for position in [0, len(content) - 1, *rng.integers(0, len(content), 2).tolist()]:
            file.write_bytes(
                content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :]
            )
            found = [*Store.open(copy).verify()] if file.name != "cnnfilterdb.json" else verify_folder(copy)
            found += notes.annotation_problems(Store.open(copy)) if file.name == "annotations.csv" else []
            assert any(problem.path == file for problem in found), (file, position)
        file.write_bytes(content)
    assert cnnfilterdb.open(copy).verify() == []


@pytest.mark.filterwarnings("ignore")
def test_repair_rebuilds_what_is_derived_and_names_what_is_lost(copy):
    with cnnfilterdb.open(copy) as db:
        db.annotate("custom/ct-a", domain="medical ct")
    for pattern in (
        "index/3x3-*/basis.parquet",
        "index/5x5-*/histograms/*",
        "filters/*/*/custom-face-*",
        "models/_empty*",
    ):
        file = sorted(copy.glob(pattern))[0]
        file.write_bytes(file.read_bytes()[:-20])
    (copy / "init.sql").write_text("SELECT 1;")
    (copy / "layers" / "notes.parquet").write_bytes(b"mine")
    (copy / "annotations.csv").write_text("model_id,column,value\ncustom/ct-a,domain,medical ct\n\n"[:-1])
    with cnnfilterdb.open(copy) as db:
        foreign, left = sorted(db.repair(), key=lambda problem: problem.model_id or "")
        assert left.model_id == "custom/face"
        assert "import custom/face again" in left.message
        # It is left where it is, and named; queries do not read it.
        assert foreign.path == copy / "layers" / "notes.parquet"
        assert db.verify() == db.repair() == [foreign]
        assert "custom/ct-a" in set(db.layers()["model_id"])
        assert foreign.path.read_bytes() == b"mine"
        assert list((copy / ".quarantine").rglob("custom-face-*"))
        foreign.path.unlink()
        assert db.verify() == db.repair() == []
        assert len(db.models()) == 4
        assert db.kl_shift("domain").shape == (2, 2)


def test_shares_of_an_index_are_built_at_the_same_time_and_leave_nothing_to_do(copy):
    whole = files(copy)
    derived = [path for path in whole if path.parts[1] == "fingerprints" or "histograms" in path.parts]
    for path in derived:
        if "_empty" not in path.stem and not path.stem.startswith("."):
            (copy / path).unlink()
    count = 3
    script = "import sys, cnnfilterdb; cnnfilterdb.FilterDB(sys.argv[1]).index(shard=sys.argv[2])"
    tasks = [subprocess.Popen([sys.executable, "-c", script, copy, f"{number + 1}/{count}"]) for number in range(count)]
    assert [task.wait(300) for task in tasks] == [0] * count
    assert files(copy) == whole
    steps = []
    with cnnfilterdb.open(copy, read_only=False) as db:
        assert db.verify() == []
        assert db.index(progress=lambda *step: steps.append(step)) == []
        assert steps == []
        assert db._index.missing() == {}


def test_a_share_of_an_index_is_that_of_its_models(copy):
    with cnnfilterdb.open(copy, read_only=False) as db:
        for path in (copy / "index/fingerprints").glob("custom*"):
            path.unlink()
        everything = db._index.without_fingerprints()
        assert len(everything) == 5
        db.index(shard="1/2")
        left = db._index.without_fingerprints()
        assert left == Share(2, 2).among(everything)
        assert 0 < len(left) < 5
        for wrong in ({"refit": True}, {"prune": True}):
            with pytest.raises(SelectionError, match="a share fits and removes no bases"):
                db.index(shard="1/2", **wrong)
        with pytest.raises(SelectionError, match="expected I/N"):
            db.index(shard="3/2")


def test_a_share_of_a_database_without_bases_fits_none(copy):
    shutil.rmtree(copy / "index")
    with cnnfilterdb.open(copy, read_only=False) as db:
        db.index(shard="1/1")
        assert db._index.without_fingerprints() == []
        assert db._index.bases() == []
        assert db.index() != []


def test_questions_do_not_fail_while_another_process_indexes(sample_path, tmp_path, monkeypatch):
    path = shutil.copytree(sample_path, tmp_path / "db")
    with cnnfilterdb.open(path) as db:
        expected = db.kl_shift("domain")
        basis = next(fitted.basis_id for fitted in db.bases() if fitted.basis.kernel == "3x3")
        for missing in (path / "index" / basis / "histograms").glob("custom-photo-*"):
            missing.unlink()
        monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.05)
        with Store.open(path).staging(basis):
            found = db.kl_shift("domain")
            pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
            assert found.attrs["basis"] == expected.attrs["basis"]
            for ask in (
                lambda: db.sql("FROM kl_shift(domain)").df(),
                lambda: db.kl_shift_intervals("domain", samples=20),
            ):
                with pytest.raises(DatabaseError, match=r"another process is writing the index.*wait") as caught:
                    ask()
                assert "\n" not in str(caught.value)
        assert len(db.sql("FROM kl_shift(domain)").df()) == 9
        assert db.verify() == []

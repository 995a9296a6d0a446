"""Several parts answer as the database that has the same models in one folder."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

import cnnfilterdb

EDGE = [[1, 0, -1], [1, 0, -1], [1, 0, -1]]


def same(found: pd.DataFrame, expected: pd.DataFrame, *, exact: bool = True) -> None:
    pd.testing.assert_frame_equal(found, expected, check_exact=exact, **({} if exact else {"rtol": 1e-12}))


def test_the_basis_is_that_of_all_models(parts, sample):
    assert [fitted.basis_id for fitted in parts.bases()] == [
        fitted.basis_id for fitted in sorted(sample.bases(), key=lambda fitted: fitted.basis.kernel)
    ]
    for found in parts.bases():
        expected = sample._bases.get(found.basis_id)
        assert (found.models, found.layers) == (expected.models, expected.layers)
        for array in ("mean", "components", "explained_variance"):
            np.testing.assert_array_equal(getattr(found.basis, array), getattr(expected.basis, array))
        assert (found.basis.low, found.basis.high) == (expected.basis.low, expected.basis.high)


def test_models(parts, sample):
    found = parts.models()
    assert found.pop("part").tolist() == ["folder", "release", "s3", "release", "folder"]
    same(found.drop(columns="ingested_at"), sample.models().drop(columns="ingested_at"))
    assert parts.models(where="part = 's3'")["name"].tolist() == ["face"]
    assert parts.models(where="kernel = '7x7'")["name"].tolist() == ["photo-a"]


def test_layers_and_filters(parts, sample):
    same(parts.layers(), sample.layers())
    for kernel in ("3x3", "5x5", "7x7"):
        same(parts.filters(kernel=kernel), sample.filters(kernel=kernel))
    same(parts.filters(where="domain = 'natural'"), sample.filters(where="domain = 'natural'"))
    np.testing.assert_array_equal(parts.layer_weights("custom/face", 1), sample.layer_weights("custom/face", 1))
    assert [batch.num_rows for batch in parts.filter_batches(rows=500)] == [
        batch.num_rows for batch in sample.filter_batches(rows=500)
    ]


@pytest.mark.parametrize("kernel", ["3x3", "5x5"])
@pytest.mark.parametrize("balance", ["filters", "models"])
def test_shifts(parts, sample, kernel, balance):
    options = {"kernel": kernel, "balance": balance}
    exact = balance == "filters"
    for by in ("domain", "name"):
        same(parts.kl_shift(by, **options), sample.kl_shift(by, **options), exact=exact)
    if kernel == "3x3":
        same(
            parts.kl_shift_intervals("domain", samples=20, balance=balance),
            sample.kl_shift_intervals("domain", samples=20, balance=balance),
            exact=exact,
        )


def test_shifts_that_need_the_filters(parts, sample):
    for options in ({"bins": 20}, {"range": (-1.0, 1.0)}, {"basis": "selection"}):
        same(parts.kl_shift("domain", **options), sample.kl_shift("domain", **options))


def test_tests_of_significance(parts, sample):
    for method in ("shift_test", "variance_explained"):
        same(
            getattr(parts, method)("domain", permutations=99),
            getattr(sample, method)("domain", permutations=99),
            exact=False,
        )


def test_quality_descriptors_and_structure(parts, sample):
    same(parts.quality("domain"), sample.quality("domain"), exact=False)
    same(parts.quality("layer_name", kernel="5x5"), sample.quality("layer_name", kernel="5x5"), exact=False)
    same(parts.descriptors(per="layer"), sample.descriptors(per="layer"), exact=False)
    same(parts.spectra(), sample.spectra(), exact=False)
    same(parts.shared_models(), sample.shared_models())


def test_nearest(parts, sample):
    same(parts.nearest(EDGE, top=7, rotation=True), sample.nearest(EDGE, top=7, rotation=True))
    where = "domain = 'medical ct'"
    same(parts.nearest(EDGE, top=3, where=where), sample.nearest(EDGE, top=3, where=where))


@pytest.mark.parametrize(
    "query",
    [
        "FROM group_sizes(domain)",
        "FROM kl_shift(domain)",
        "FROM shift_metrics(domain)",
        "FROM filter_quality(domain)",
        "SELECT kernel, layers, filters, bins, low, high FROM current_bases ORDER BY kernel",
        "SELECT model_id, layer, recipe, filters, counts, below, above FROM histograms ORDER BY ALL",
        "SELECT sum(c0) FROM coefficients_5x5",
        "FROM nearest_3x3([1, 0, -1, 1, 0, -1, 1, 0, -1], top := 5)",
        "SELECT * EXCLUDE (part, ingested_at) FROM facts ORDER BY model_id, layer",
        "FROM annotations",
        "SELECT model_id, layer, kurtosis, sketch FROM fingerprints ORDER BY ALL",
    ],
)
def test_sql(parts, sample, query):
    expected = sample.sql(query.replace("EXCLUDE (part, ", "EXCLUDE (")).df()
    same(parts.sql(query).df(), expected, exact="coefficients" not in query and "quality" not in query)


def test_parts_are_groups(parts):
    sizes = parts.sql("FROM group_sizes(part)").df()
    assert sizes["group"].tolist() == ["folder", "release", "s3"]
    assert parts.kl_shift("part").shape == (3, 3)
    assert parts.sql("SELECT DISTINCT part FROM models_stored ORDER BY part").fetchall() == [
        ("folder",),
        ("release",),
        ("s3",),
    ]


def test_the_catalog_lists_every_view(parts, sample):
    names = {row[0] for row in sample.sql("SHOW TABLES").fetchall()}
    assert {row[0] for row in parts.sql("SHOW TABLES").fetchall()} == names


def test_copies_in_other_processes_and_threads(parts, sample):
    expected = sample.kl_shift("domain")
    same(pickle.loads(pickle.dumps(parts)).kl_shift("domain"), expected)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(parts.kl_shift, ["domain"] * 4):
            same(found, expected)


def test_verify_reads_every_part(parts):
    assert parts.verify() == []


def test_one_part_is_that_database(sample_path, sample):
    with cnnfilterdb.open([sample_path]) as db:
        assert [fitted.basis_id for fitted in db.bases()] == [fitted.basis_id for fitted in sample.bases()]
        same(db.kl_shift("domain"), sample.kl_shift("domain"))
        assert not any(db.storage.counted.derived.values())  # nothing was counted again


def test_confined(part_paths, object_store, tmp_path):
    remote = cnnfilterdb.open(part_paths["s3"], storage_options=object_store)
    with cnnfilterdb.open([part_paths["folder"], part_paths["release"], remote], read_only=True) as db:
        assert db.kl_shift("domain").shape == (3, 3)
        (tmp_path / "secret.csv").write_text("a\n1\n")
        with pytest.raises(cnnfilterdb.QueryError, match="disabled"):
            db.sql(f"FROM '{tmp_path}/secret.csv'").df()
        with pytest.raises(cnnfilterdb.QueryError, match="reading only"):
            db.sql("COPY models TO 'x.csv'")


@pytest.mark.thorough
def test_a_release_goes_through_as_export_and_report(parts, sample, tmp_path):
    done = parts.export(tmp_path / "all.npz")
    assert (done.filters, done.models) == (
        sample.export(tmp_path / "same.npz").filters,
        len(sample.models(where="kernel = '3x3'")),
    )
    np.testing.assert_array_equal(np.load(tmp_path / "all.npz")["filters"], np.load(tmp_path / "same.npz")["filters"])
    assert parts.report(tmp_path / "report.html", by="part").stat().st_size > 100_000

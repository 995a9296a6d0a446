"""What is kept in memory gives the answers that the files give, and follows them."""

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.explore import watched as module
from cnnfilterdb.explore.views import Explorer
from cnnfilterdb.explore.watched import WatchedReader


@pytest.fixture(scope="module")
def both(sample_path):
    with cnnfilterdb.open(sample_path, read_only=True) as db, WatchedReader(db, memory="256MB") as watched:
        yield db, watched


@settings(max_examples=40)
@given(
    by=st.sampled_from(["domain", "model_id", "filters > 300", "layer / 3", "family || task", "scaled_mean[1] > 0"]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "where": st.sampled_from([None, "domain <> 'faces'", "raw_mean[2] < 0 OR filters > 100"]),
            "recipe": st.sampled_from(["cvpr2022", "medneurips2022"]),
            "balance": st.sampled_from(["filters", "layers", "models", "families"]),
            "all_layers": st.booleans(),
            "min_models": st.integers(1, 2),
            "bins": st.sampled_from([None, 20]),
            "basis": st.sampled_from([None, "selection"]),
        },
    ),
)
def test_groups_are_those_of_the_files(both, by, options):
    def asked(db):
        try:
            return db.groups(by, **options)
        except cnnfilterdb.SelectionError as error:
            return str(error)

    expected, found = (asked(db) for db in both)
    if isinstance(expected, str):
        assert found == expected
        return
    assert found.labels == expected.labels
    np.testing.assert_allclose(found.counts, expected.counts, rtol=1e-12)
    for name in ("models", "layers", "filters", "outside", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.low, found.high, found.basis_id) == (expected.low, expected.high, expected.basis_id)


def test_other_questions_are_those_of_the_files(both):
    expected, found = ((db.kl_shift("domain"), db.quality("task"), db.embed(), db.shared_models()) for db in both)
    for one, other in zip(expected, found, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=1e-9)


@pytest.mark.parametrize("view", ["models", "layers", "facts"])
def test_views_that_are_kept_are_those_of_the_files(both, view):
    expected, found = (db._table(f"FROM {view} ORDER BY model_id" + (", layer" * (view != "models"))) for db in both)
    assert found.schema.equals(expected.schema)
    assert found.to_pylist() == expected.to_pylist()


def test_models_that_are_added_and_removed_are_seen(sample_path, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    path = tmp_path / "copy.db"
    shutil.copytree(sample_path, path)
    with cnnfilterdb.open(path, read_only=False) as db, WatchedReader(db, memory="256MB") as watched:
        assert len(watched.groups("model_id").labels) == 5
        db.remove("custom/face")
        assert "custom/face" not in watched.groups("model_id").labels
        db.add({"a.weight": np.random.default_rng(1).normal(size=(8, 8, 3, 3))}, "new", domain="thermal")
        assert "custom/new" in watched.groups("model_id").labels
        assert watched.kl_shift("domain").shape == (3, 3)


@pytest.mark.parametrize("limit", ["_MOST_BYTES", "_MOST_LAYERS"])
def test_what_is_too_large_is_read_every_time(both, monkeypatch, limit):
    db, _ = both
    monkeypatch.setattr(module, limit, 0)
    with WatchedReader(db, memory="256MB") as watched:
        pd.testing.assert_frame_equal(watched.kl_shift("domain"), db.kl_shift("domain"), rtol=1e-9)


def test_views_of_one_model_do_not_read_all_models(both, monkeypatch):
    _, watched = both
    explorer = Explorer(watched, "sample")
    explorer.prepare()

    def read_again(*_):
        raise AssertionError("the models were read again")

    monkeypatch.setattr(type(watched.storage), "model_ids", read_again)
    assert explorer.start({})["models"] == 5
    assert len(explorer.layer({"model": "custom/ct-a", "layer": 1})) > 1000
    with pytest.raises(cnnfilterdb.UnknownModelError, match="ct-a"):
        explorer.kernel({"model": "custom/ct-aa"})


def test_a_release_is_explored_like_a_folder(both, release_path):
    db, _ = both
    with cnnfilterdb.open(release_path, read_only=True) as release, WatchedReader(release, memory="256MB") as watched:
        explorer = Explorer(watched, "release")
        explorer.prepare()
        assert explorer.models({})["total"] == 5
        pd.testing.assert_frame_equal(watched.kl_shift("domain"), db.kl_shift("domain"), rtol=1e-9)
        assert explorer.nearest({"model": "custom/ct-a", "layer": 1})["nearest"][0]["similarity"] == pytest.approx(1)

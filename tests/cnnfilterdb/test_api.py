"""The rules that every method follows: what is refused, what one name is, where a database is found again."""

import math
import pickle

import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.core.errors import (
    CnnFilterDbError,
    NotADatabaseError,
    QueryError,
    SelectionError,
    UnknownModelError,
)

EDGE = np.array([[1, 0, -1]] * 3)


@pytest.fixture
def db():
    """A database that a test may change."""
    with cnnfilterdb.example() as example:
        yield example


def test_open_never_creates(tmp_path):
    with pytest.raises(NotADatabaseError, match="does not exist"):
        cnnfilterdb.open(tmp_path / "typo")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="creat"):
        cnnfilterdb.open(tmp_path / "typo", creat=True)
    assert cnnfilterdb.create(tmp_path / "new").models().empty
    assert cnnfilterdb.open(tmp_path / "new").models().empty


def test_what_open_returns(db, release_path):
    assert type(cnnfilterdb.open(db.path)) is cnnfilterdb.FilterDB
    assert type(cnnfilterdb.open(db.path, read_only=False)) is cnnfilterdb.FilterDB
    assert type(cnnfilterdb.open(db.path, read_only=True)) is cnnfilterdb.Reader
    assert type(cnnfilterdb.open(release_path)) is cnnfilterdb.Reader
    with pytest.raises(NotADatabaseError, match="can only be read"):
        cnnfilterdb.open(release_path, read_only=False)
    for write in (cnnfilterdb.create, lambda path: cnnfilterdb.pull(release_path, path)):
        with pytest.raises(NotADatabaseError, match="can only be read"):
            write(release_path)
    with pytest.raises(SelectionError, match="storage_options"):
        cnnfilterdb.open(db.path, storage_options={"token": "x"})


def test_an_address_is_no_place_to_write_to(release_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotADatabaseError, match="can only be read"):
        cnnfilterdb.pull(release_path, "hf://datasets/me/x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run:1", "file:x", "it's"])
def test_a_relative_path_with_any_name_survives_a_change_of_directory(name, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cnnfilterdb.example(name)
    db = cnnfilterdb.open(name)
    expected = db.kl_shift("domain")
    monkeypatch.chdir("elsewhere")
    assert len(db.models()) == 3
    assert db.kl_shift("domain").equals(expected)
    assert pickle.loads(pickle.dumps(db)).kl_shift("domain").equals(expected)
    assert name in repr(db)


def test_everything_but_the_subject_is_a_keyword(db):
    for wrong in (
        lambda: db.models("true"),
        lambda: db.filters("true"),
        lambda: db.kl_shift("domain", "true"),
        lambda: db.nearest(EDGE, 3),
        lambda: db.plot.filters("custom/scans", 1),
    ):
        with pytest.raises(TypeError, match="positional"):
            wrong()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda db: db.kl_shift("domain", balanse="models"), "unknown option 'balanse'; did you mean 'balance'"),
        (lambda db: db.kl_shift_components("domain", kernal="3x3"), "did you mean 'kernel'"),
        (lambda db: db.kl_shift_intervals("domain", min_model=2), "did you mean 'min_models'"),
        (lambda db: db.nearest_groups("domain", "natural", wheer="true"), "did you mean 'where'"),
        (lambda db: db.kl_shift("domain", metric="x"), "expected one of kl, directed"),
        (lambda db: db.kl_shift("domain", weights=[1, "a"]), "one per component"),
        (lambda db: db.kl_shift("domain", bins=1.5), "whole number"),
        (lambda db: db.kl_shift("domain", range=(0, 1, 2)), "two numbers"),
        (lambda db: db.kl_shift("domain", range=(1, math.nan)), "two finite numbers"),
        (lambda db: db.kl_shift_intervals("domain", bins=0), "leave out bins"),
        (lambda db: db.kl_shift_intervals("domain", basis="selection"), "must be a stored one"),
        (lambda db: db.kl_shift("domain, task"), "is 2 expressions; join them into one"),
        (lambda db: db.kl_shift("raw_mean"), "group by a text, number or date"),
        (lambda db: db.kl_shift("raw_mean", bins=5), "group by a text, number or date"),
        (lambda db: db.kl_shift(""), "by: empty"),
        (lambda db: db.quality("domain", kernel="junk"), "not a kernel size: 'junk'"),
        (lambda db: db.quality("domain", kernel="9x9"), "no 9x9 filters by domain"),
        (lambda db: db.moments(where="domain = 'x'"), "no 3x3 filters where domain = 'x'"),
        (lambda db: db.models(where="domain ="), "'domain =' is not a SQL expression"),
        (lambda db: db.filter_batches(kernel="junk"), "not a kernel size"),
        (lambda db: db.filter_batches(rows=0), "rows: 0 given"),
        (lambda db: db.descriptor_batches(where="nosuch = 1"), "nosuch"),
        (lambda db: db.layer_weights("custom/scans", 9), "its layers are 0 to 3"),
        (lambda db: db.layer_weights("custom/scans", 3), "1x1 kernels, which are not stored"),
        (lambda db: db.add({}, "x", domain=5), "domain: 5 given; expected text"),
        (lambda db: db.add({}, "x", metrics={"acc": "high"}), "expected numbers by name"),
        (lambda db: db.annotate("custom/scans", domain="x", reset="domain", new_words=True), "both set and reset"),
        (lambda db: db.remove(["custom/scans"]), "give each model as an argument"),
        (lambda db: db.ingest("files", [5]), "names: 5 given"),
    ],
)
def test_wrong_arguments_get_one_line(db, ask, message):
    with pytest.raises(SelectionError, match=message) as caught:
        ask(db)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "empty"),
        ("SELEC 1", "syntax error"),
        ("SELECT nosuch FROM models", "nosuch"),
        ("SELECT CAST(name AS INTEGER) FROM models", "Could not convert"),
        ("SELECT error('stop')", "stop"),
    ],
)
def test_sql_that_fails_is_a_query_error_whenever_it_fails(db, query, message):
    for read in (lambda rows: rows.df(), lambda rows: rows.fetchall(), lambda rows: rows.limit(3).to_arrow_table()):
        with pytest.raises(QueryError, match=message) as caught:
            read(db.sql(query))
        assert "\n" not in str(caught.value)
        assert not isinstance(caught.value, SelectionError)


def test_a_result_is_used_like_a_relation(db):
    rows = db.sql("SELECT name FROM models WHERE domain = $domain", {"domain": "natural"})
    assert rows.columns == ["name"]
    assert rows.order("name DESC").fetchall() == [("photos-small",), ("photos-large",)]
    assert "photos-large" in repr(rows)
    assert "aggregate" in dir(rows)
    assert db.sql("SELECT ? + ?", [1, 2]).fetchall() == [(3,)]


def test_no_condition_is_spelt_alike_everywhere(db):
    for where in (None, "", "  ", "true", "true -- all"):
        assert len(db.models(where=where)) == 3
        assert len(db.layers(where=where)) == 11
        assert len(db.filters(where=where)) == 1488
        assert db.kl_shift("domain", where=where).shape == (2, 2)
        assert len(db.nearest(EDGE, where=where)) == 10


def test_one_text_is_one_name(db):
    assert db.annotate("custom/scans", domain="thermal") == ["custom/scans"]
    assert db.annotate("custom/scans", reset="domain") == ["custom/scans"]
    db.remove("custom/scans", "custom/scans")
    assert len(db.models()) == 2
    with pytest.raises(UnknownModelError, match=r"missing\.pt"):
        db.ingest("files", "missing.pt")


def test_groups_may_be_nan(db):
    by = "CASE WHEN domain = 'natural' THEN 'nan'::DOUBLE ELSE 1 END"
    stored, scanned = db.kl_shift(by), db.kl_shift(by, basis=db.basis())
    np.testing.assert_allclose(scanned, stored, atol=1e-12)
    np.testing.assert_array_equal(stored.index, [1, math.nan])
    (row,) = db.kl_shift_intervals(by, samples=10).itertuples()
    assert row.shift == pytest.approx(stored.iloc[0, 1])
    assert (row.models_a, row.models_b) == (1, 2)


def test_weights_of_a_layer_are_those_that_were_added(db, sample, tensors):
    for name, layers in (("ct-a", ("enc", "mid", "up")), ("photo-a", ("stem", "a"))):
        for number, layer in enumerate(layers):
            found = sample.layer_weights(f"custom/{name}", number)
            np.testing.assert_array_equal(found, tensors[name][f"{layer}.weight"])
    with pytest.raises(UnknownModelError, match="near: custom/scans"):
        db.layer_weights("custom/scan", 0)


def test_a_search_for_nothing_is_empty_like_the_filters(db):
    assert db.nearest(EDGE, where="domain = 'x'").empty
    assert db.filters(where="domain = 'x'").empty


def test_objects_print_without_reading(db):
    folder = db.path
    for table in folder.glob("models/custom-*.parquet"):
        table.write_bytes(b"damaged")
    assert repr(db) == f"FilterDB({str(folder)!r})"
    assert "error" in cnnfilterdb.open(folder)._repr_html_()


def test_notebooks_show_tables(db):
    for shown in (db, db.basis(), db.groups("domain"), cnnfilterdb.IngestReport(), cnnfilterdb.TransferReport()):
        assert shown._repr_html_().startswith("<table")
    assert "&lt;b&gt;" in db.groups("'<b>' || domain")._repr_html_()


def test_a_release_can_be_pickled_after_a_question(release_path, sample):
    release = cnnfilterdb.open(release_path)
    expected = release.kl_shift("domain")
    again = pickle.loads(pickle.dumps(release))
    assert again.kl_shift("domain").equals(expected)
    assert again.sql("SELECT count(*) FROM models").fetchall() == [(5,)]


def test_the_example_is_the_same_on_every_call_and_overwrites_nothing(tmp_path):
    first, second = cnnfilterdb.example(), cnnfilterdb.example(tmp_path / "mine")
    assert first.filters().equals(second.filters())
    assert first.verify() == []
    with pytest.raises(CnnFilterDbError, match="already exists"):
        cnnfilterdb.example(tmp_path / "mine")

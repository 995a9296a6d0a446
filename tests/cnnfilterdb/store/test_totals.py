"""Histograms of whole models: they change how much is read, and no answer."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cnnfilterdb
from cnnfilterdb.analysis.grouping import BALANCES, Grouping
from cnnfilterdb.analysis.sums import Sums
from cnnfilterdb.core import paths
from cnnfilterdb.core.recipes import RECIPES
from cnnfilterdb.core.schema import MODELS
from cnnfilterdb.core.sqltext import uses_only
from cnnfilterdb.store import gathered
from cnnfilterdb.store.contents import Contents


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Eight models of which six are gathered, with layers that the papers would not have read, and 5x5 kernels."""
    path = tmp_path_factory.mktemp("totals") / "a [*] db"
    torch.manual_seed(0)

    with pytest.MonkeyPatch.context() as patch, cnnfilterdb.create(path) as db:
        patch.setattr(gathered, "LEAST", 6)
        for number in range(8):
            layers = [nn.Conv2d(3, 4 + i, 3) for i in range(number % 3 + 1)]
            if number % 2:
                layers.append(nn.ConvTranspose2d(3, 5, 3))
            if number == 3:
                layers = [nn.Conv2d(3, 6, 5)]
            weights = nn.ModuleList(layers)
            known = {"domain": ["natural", "medical ct", None][number % 3], "family": [None, "one", "two"][number % 3]}
            db.add(weights, f"m{number}", task=f"task {number // 4}", new_words=True, **known)
            if number == 5:
                patch.setattr(Contents, "gather", db._store.gather, raising=False)
                db.index()
                patch.setattr(gathered, "LEAST", 64)
        db.index()
        basis_id = db._bases.current()["3x3"].basis_id
        assert [len(files) for files in (db.storage.totals(basis_id).totals, db.storage.totals(basis_id).layers)] == [
            1,
            2,
        ]
    return path


@pytest.fixture
def db(path):
    with cnnfilterdb.open(path, read_only=True) as db:
        yield db


def totals_file(path):
    (file,) = path.glob(f"{paths.GATHERED}/*/totals-3x3-*.parquet".replace("[", "[[]"))
    return file


def rows_read(monkeypatch):
    """The number of rows of each batch of histograms that is added up."""
    found, add = [], Sums.add

    def counted(self, batch, *, balanced):
        found.append(batch.num_rows)
        add(self, batch, balanced=balanced)

    monkeypatch.setattr(Sums, "add", counted)
    return found


def test_they_are_the_sums_of_the_layers(db, path):
    totals = pq.read_table(totals_file(path)).to_pylist()
    rows = db.sql(
        "SELECT h.*, f.papers_layer FROM histograms AS h JOIN facts AS f USING (model_id, layer, tensor_sha256) "
        "WHERE f.kernel = '3x3'"
    ).to_arrow_table()
    assert {row["model_id"] for row in totals} == {f"custom/m{number}" for number in (0, 1, 2, 4, 5)}
    assert len(totals) == len(RECIPES) * (5 + 2)  # two have transposed layers
    for row in totals:
        same = [pc.equal(rows[name], row[name]) for name in ("model_id", "recipe", "papers_layer", "basis_id")]
        layers = rows.filter(pc.and_(pc.and_(same[0], same[1]), pc.and_(same[2], same[3])))
        assert row["layers"] == layers.num_rows > 0
        assert row["filters"] == pc.sum(layers["filters"]).as_py()
        assert row["counts"] == np.sum(layers["counts"].to_pylist(), axis=0).tolist()
        assert row["outside"] == np.sum(layers["below"].to_pylist()) + np.sum(layers["above"].to_pylist())
        assert {row["low"]} == set(layers["low"].to_pylist())
        assert {row["high"]} == set(layers["high"].to_pylist())


BY = ["domain", "task", "model_id", "name", "coalesce(domain, 'none') || task", "task = 'task 0'", "true", "parameters",
      "CASE WHEN parameters > 150 THEN 'large' ELSE NULL END", "len(name)", "kind", "conv_depth", "layer"]  # fmt: skip
WHERE = [None, "domain IS NOT NULL", "name IN ('m1', 'm4', 'm7')", "task LIKE '%0'", "name <> 'm0'", "kind = 'conv'"]


@settings(max_examples=60)
@given(
    by=st.sampled_from(BY),
    where=st.sampled_from(WHERE),
    balance=st.sampled_from(BALANCES),
    recipe=st.sampled_from(list(RECIPES)),
    all_layers=st.booleans(),
    kernel=st.sampled_from(["3x3", "5x5"]),
)
def test_no_answer_changes(path, by, where, balance, recipe, all_layers, kernel):
    asked = {"where": where, "balance": balance, "recipe": recipe, "all_layers": all_layers, "kernel": kernel}

    def answers(db):
        try:
            groups = db.groups(by, **asked)
        except cnnfilterdb.SelectionError as error:
            return str(error), None
        intervals = db.kl_shift_intervals(by, samples=3, **asked) if len(groups.labels) > 1 else None
        return groups, intervals

    with cnnfilterdb.open(path, read_only=True) as db, pytest.MonkeyPatch.context() as patch:
        found, intervals = answers(db)
        patch.setattr(Contents, "totals", lambda self, basis_id: None)
        expected, known = answers(db)
        if isinstance(expected, str):
            assert found == expected
            return
        assert found.labels == expected.labels
        for name in ("models", "layers", "filters", "outside"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert (found.low, found.high, found.basis_id) == (expected.low, expected.high, expected.basis_id)
        np.testing.assert_allclose(found.counts, expected.counts, rtol=1e-12)
        if known is not None:
            np.testing.assert_allclose(intervals[["shift", "low", "high"]], known[["shift", "low", "high"]], rtol=1e-9)


def test_questions_about_models_read_no_layers_of_them(db, monkeypatch):
    read = rows_read(monkeypatch)
    layers = db.groups("domain").layers.sum()
    assert sum(read) < layers
    read.clear()
    assert db.groups("domain", balance="layers").layers.sum() == layers == sum(read)


@pytest.mark.parametrize("change", ["missing", "twice", "old weights", "another recipe only"])
def test_a_model_whose_histograms_are_not_those_of_its_layers_has_none(path, tmp_path, change, monkeypatch):
    copy = tmp_path / "db"
    shutil.copytree(path, copy)
    shutil.rmtree(copy / paths.GATHERED)
    (file,) = copy.glob("index/3x3-*/histograms/custom-m2-*.parquet")
    rows = pq.read_table(file)
    one = pc.and_(pc.equal(rows["layer"], 1), pc.equal(rows["recipe"], "medneurips2022"))
    changed = {
        "missing": lambda: rows.filter(pc.invert(one)),
        "twice": lambda: pa.concat_tables([rows, rows.filter(one)]),
        "old weights": lambda: pa.concat_tables(
            [rows.filter(pc.invert(one)), rows.filter(one).set_column(3, rows.schema.field(3), [["0" * 64]])]
        ),
        "another recipe only": lambda: rows.filter(pc.equal(rows["recipe"], "cvpr2022")),
    }
    pq.write_table(changed[change](), file)
    monkeypatch.setattr(gathered, "LEAST", 2)
    with cnnfilterdb.open(copy) as db:
        db._store.gather()
    assert "custom/m2" not in pq.read_table(totals_file(copy))["model_id"].to_pylist()
    with cnnfilterdb.open(copy, read_only=True) as db:
        assert db.storage.totals(next(copy.glob("index/3x3-*")).name).layers == (
            f"{copy}/{paths.layers_path(paths.slug('custom/m2'))}",
        )
        assert db.groups("name").layers[1:3].tolist() == [2, 3]
        if change != "twice":
            with pytest.raises(cnnfilterdb.DatabaseError, match=r"layer \d of custom/m2 is not in the index"):
                db.groups("name", recipe="medneurips2022")
            assert db.groups("name", where="name <> 'm2'", recipe="medneurips2022").models.sum() == 6


def test_histograms_of_other_lengths_are_left_out(path, tmp_path, monkeypatch):
    copy = tmp_path / "db"
    shutil.copytree(path, copy)
    shutil.rmtree(copy / paths.GATHERED)
    (file,) = copy.glob("index/3x3-*/histograms/custom-m2-*.parquet")
    rows = pq.read_table(file)
    shorter = pa.array([[1, 2]] * rows.num_rows, rows.schema.field("counts").type)
    pq.write_table(rows.set_column(rows.schema.get_field_index("counts"), rows.schema.field("counts"), shorter), file)
    monkeypatch.setattr(gathered, "LEAST", 2)
    with cnnfilterdb.open(copy) as db:
        db._store.gather()
    assert pq.read_table(totals_file(copy)).num_rows == 0
    with cnnfilterdb.open(copy, read_only=True) as db:
        with pytest.raises(cnnfilterdb.DatabaseError, match="a histogram of 2 counts, expected 630"):
            db.groups("name")
        assert db.groups("name", where="name <> 'm2'").models.sum() == 6


def test_a_file_with_more_rows_than_models_can_have_is_not_used(path, tmp_path, monkeypatch):
    with cnnfilterdb.open(path, read_only=True) as db:
        assert db.storage.gathered.chunks()
    monkeypatch.setattr(gathered, "RECIPES", {})
    gathered._chunk.cache_clear()
    with cnnfilterdb.open(path, read_only=True) as db:
        assert not db.storage.gathered.chunks()
    gathered._chunk.cache_clear()


@pytest.mark.parametrize(
    ("by", "of_models"),
    [("domain", True), ('"Domain"', True), ("metrics['top1'] > 0.5", True), ("lower(name) LIKE 'a%'", True),
     ("CASE WHEN NOT untrained THEN task END", True), ("true", True), ("'kind'", True),
     ("kind", False), ("facts", False), ("facts.domain", False), ("rank() OVER (ORDER BY parameters)", False),
     ("parameters::INTEGER", False), ("list_transform(skipped, lambda x: x)", False),
     ("filters", False), ("files", False), ("metrics.top1", False), ("domain || kernel", False)],
)  # fmt: skip
def test_what_is_about_models(by, of_models):
    assert Grouping(by).of_models is of_models
    assert Grouping("domain", where=f"({by}) IS NOT NULL").of_models is of_models
    assert not Grouping(by, balance="layers").of_models


@given(
    st.sampled_from(MODELS.names), st.sampled_from(["{} = 1", "f({}, 'x')", "NOT {} IS NULL", "{}[1]", "-{} -- kind"])
)
def test_columns_of_models_are_known_in_any_expression(column, text):
    assert uses_only(text.format(column), MODELS.names)
    assert not uses_only(text.format(f"{column}_"), MODELS.names)

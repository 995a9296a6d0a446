"""The SQL face: what the macros answer against the Python functions, and init.sql in a plain DuckDB connection."""

import re
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

import cnnfilterdb
from cnnfilterdb.core.errors import QueryError, SelectionError
from cnnfilterdb.core.sqltext import identifier, literal
from cnnfilterdb.sql import NEEDS_INDEX
from cnnfilterdb.stats import METRICS

README = Path(__file__).parents[3] / "README.md"


def plain(path: Path, moved_to: Path | None = None) -> duckdb.DuckDBPyConnection:
    """A connection of someone who has no more than init.sql."""
    connection = duckdb.connect()
    if moved_to:
        connection.execute("SET VARIABLE cnnfilterdb_path = $path", {"path": str(moved_to)})
    connection.execute((path / "init.sql").read_text(encoding="utf-8"))
    return connection


@pytest.fixture(scope="module")
def sql(sample_path):
    """A plain connection to the sample database."""
    with cnnfilterdb.open(sample_path) as db:
        db.sql("SELECT 1")
    return plain(sample_path)


def square(rows, value):
    return rows.pivot(index="group_a", columns="group_b", values=value)


# ---------------------------------------------------------------------------------------- the same as in Python


@pytest.mark.parametrize("recipe", ["cvpr2022", "medneurips2022"])
@pytest.mark.parametrize("balance", ["filters", "layers", "models", "families"])
def test_every_metric_is_pythons(sample, sql, recipe, balance):
    rows = sql.sql(f"FROM shift_metrics(domain, recipe := '{recipe}', balance := '{balance}')").df()
    parts = sql.sql(f"FROM kl_shift_components(domain, recipe := '{recipe}', balance := '{balance}')").df()
    for metric in METRICS:
        expected = sample.kl_shift("domain", metric=metric, recipe=recipe, balance=balance)
        np.testing.assert_allclose(square(rows, metric), expected, atol=1e-9)
        assert list(square(rows, metric).index) == list(expected.index)
        components = sample.kl_shift_components("domain", metric=metric, recipe=recipe, balance=balance)
        joined = parts.merge(components, on=["group_a", "group_b", "component"], suffixes=("", "_python"))
        assert len(joined) == len(parts) == len(components)
        column = "divergence_python"
        found = joined["divergence" if metric == "kl" else metric]
        np.testing.assert_allclose(found, joined[column], atol=1e-9)
        np.testing.assert_allclose(joined["weight"], joined["weight_python"], atol=1e-15)


@pytest.mark.parametrize(
    ("by", "where"),
    [
        ("domain", "true"),
        ("layer", "domain <> 'faces'"),
        ("floor(layer / 2)", "task <> 'Denoising'"),
        ("domain || ' / ' || task", "filters > 10"),
        ("filters > 200", "true"),
    ],
)
def test_kl_shift_is_pythons_for_any_expression(sample, sql, by, where):
    rows = sql.sql(f'FROM kl_shift({by}, "where" := {where})').df()
    for value, metric in (("shift", "kl"), ("directed", "directed")):
        expected = sample.kl_shift(by, where=where, metric=metric)
        np.testing.assert_allclose(square(rows, value), expected, atol=1e-9)
    sizes = sample.groups(by, where=where).sizes()
    found = rows.drop_duplicates("group_a").set_index("group_a").reindex(sizes.index)
    for column in ("models", "filters", "outside"):
        np.testing.assert_allclose(found[f"{column}_a"], sizes[column])
    counted = sql.sql(f'FROM group_sizes({by}, "where" := {where})').df().set_index("group").reindex(sizes.index)
    np.testing.assert_array_equal(counted, sizes[["models", "layers", "filters"]])


@pytest.mark.parametrize("kernel", ["3x3", "5x5", "7x7"])
def test_histograms_are_pythons(sample, sql, kernel):
    rows = sql.sql(f"FROM group_histograms(domain, kernel := '{kernel}')").df()
    groups = sample.groups("domain", kernel=kernel)
    assert list(rows["group"]) == groups.labels
    np.testing.assert_array_equal(np.stack(rows["counts"]), groups.counts.reshape(len(groups.labels), -1))
    np.testing.assert_allclose(np.stack(rows["weights"])[0], groups.weights)
    shares = sql.sql(
        f"SELECT list_sum(p) AS p, list_sum(share) AS s FROM group_probabilities(domain, kernel := '{kernel}')"
    )
    for total in shares.fetchall():
        assert total == pytest.approx((1, 1), abs=1e-12)


@pytest.mark.parametrize("balance", ["filters", "models"])
def test_histograms_by_model_add_up_to_those_of_the_groups(sql, balance):
    whole = sql.sql(f"FROM group_histograms(task, balance := '{balance}')").df().set_index("group")
    parts = sql.sql(f"FROM group_histograms(task, balance := '{balance}', by_model := true)").df()
    assert len(parts) == 5
    assert set(parts["models"]) == {1}
    for task, rows in parts.groupby("group"):
        np.testing.assert_allclose(np.sum(list(rows["counts"]), axis=0), whole.loc[task, "counts"], rtol=1e-12)
        assert rows["filters"].sum() == whole.loc[task, "filters"]


def test_small_groups_are_left_out(sample, sql):
    everything = sample.kl_shift("task")
    for given, options in (
        ("min_models := 2", {"min_models": 2}),
        ("min_filters := 500", {"min_filters": 500}),
        ("min_models := 1, min_filters := 1100", {"min_filters": 1100}),
    ):
        expected = sample.kl_shift("task", **options)
        assert 0 < len(expected) < len(everything)
        for macro, value in (("kl_shift", "shift"), ("shift_metrics", "kl")):
            found = square(sql.sql(f"FROM {macro}(task, {given})").df(), value)
            assert list(found.index) == list(expected.index)
            np.testing.assert_allclose(found, expected, atol=1e-9)
    assert sql.sql("FROM kl_shift(task, min_models := 99)").fetchall() == []
    with pytest.raises(SelectionError, match="no group by task has 99 models"):
        sample.kl_shift("task", min_models=99)


def test_nearest_groups_are_pythons(sample, sql):
    for by, target in (("name", "face"), ("layer", 0)):
        expected = sample.nearest_groups(by, target, top=2)
        rows = sql.sql(f"FROM nearest_groups({by}, {target!r}, top := 2)").df()
        assert list(rows["group"]) == list(expected.index)
        np.testing.assert_allclose(rows["shift"], expected["shift"], atol=1e-9)
        assert list(rows["filters"]) == list(expected["filters"])
    assert len(sql.sql("FROM nearest_groups(name, 'face', \"where\" := domain <> 'natural')").fetchall()) == 2


def test_transposed_layers_come_in_on_demand(tmp_path, tensors):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    up = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ConvTranspose2d(8, 4, 3))
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add(up, "up", domain="upwards", new_words=True)
        db.add(tensors["face"], "face", domain="faces")
        for all_layers, filters in ((False, 24), (True, 24 + 32)):
            rows = db.sql(f"FROM kl_shift(domain, all_layers := {all_layers})").df().set_index("group_a")
            assert rows.loc["upwards", "filters_a"].tolist() == [filters] * 2
            expected = db.kl_shift("domain", all_layers=all_layers)
            assert rows["shift"].max() == pytest.approx(expected.to_numpy().max(), abs=1e-9)
            sizes = dict(
                db.sql(f'SELECT "group", filters FROM group_sizes(domain, all_layers := {all_layers})').fetchall()
            )
            assert sizes["upwards"] == filters


# ---------------------------------------------------------------------------------- a plain client, odd folders


@pytest.mark.parametrize(
    "name", ["moved", 'it\'s "mine"', "a[1]*?{b,c}", "[!x]", "ünïcode 日本 🙂", "spaces and %41 $path", "semi;colon--"]
)
def test_any_folder_name_works_wherever_it_moves(sample_path, tmp_path, name):
    path = tmp_path / name / "my.db"
    shutil.copytree(sample_path, path)
    # A neighbour that a wildcard in the name would match.
    shutil.copytree(sample_path, tmp_path / re.sub(r"[\[\]*?{},!]", "", name + "1") / "my.db")
    with cnnfilterdb.open(path) as db:
        expected = db.kl_shift("domain")
        assert len(db.models()) == 5
        assert sum(batch.num_rows for batch in db.filter_batches()) == len(db.filters())
    assert square(plain(path).sql("FROM kl_shift(domain)").df(), "shift").to_numpy() == pytest.approx(
        expected.to_numpy(), abs=1e-9
    )
    moved = tmp_path / f"{name}2"
    path.rename(moved)
    connection = plain(moved, moved)
    assert connection.sql("FROM models").df().shape[0] == 5
    assert square(connection.sql("FROM kl_shift(domain)").df(), "shift").to_numpy() == pytest.approx(
        expected.to_numpy(), abs=1e-9
    )


def test_quoting():
    connection = duckdb.connect()
    for text in ("it's", 'a"b', "'; DROP TABLE x; --", "日本", "\\"):
        assert connection.sql(f"SELECT {literal(text)}").fetchall() == [(text,)]
        assert connection.sql(f"SELECT 1 AS {identifier(text)}").columns == [text]


def test_models_without_an_index_are_indexed_before_a_question(tmp_path, tensors):
    # Each name is asked of a database whose index does not exist yet.
    calls = {
        "bases": "bases",
        "basis_rows": "(SELECT basis_rows('3x3'))",
        "coefficients_3x3": "coefficients_3x3",
        "current_bases": "current_bases",
        "fingerprints": "fingerprints",
        "histograms": "histograms",
        "layer_sketches": "layer_sketches",
        "nearest_groups": "nearest_groups(name, 'm')",
        "related_models": "(SELECT count(*) FROM related_models)",
        "spectra": "spectra",
        "svd_coefficients": "(SELECT svd_coefficients(w) FROM filters_3x3)",
    }
    for number, name in enumerate(sorted(NEEDS_INDEX | {"coefficients_3x3"})):
        with cnnfilterdb.create(tmp_path / f"{number}.db") as db:
            db.add({"a.weight": tensors["face"]["a.weight"]}, "m")
            db.add({"a.weight": tensors["ct-b"]["mid.weight"]}, "n")
            assert db.sql(f"FROM {calls.get(name, name + '(name)')}").fetchall(), name


# ------------------------------------------------------------------------------------------------ wrong questions


@pytest.mark.parametrize(
    "macro", ["kl_shift", "kl_shift_components", "shift_metrics", "group_histograms", "group_totals", "group_layers"]
)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("recipe := 'x'", "recipe: 'x' is not one of cvpr2022, medneurips2022"),
        ("balance := 'x'", "balance: 'x' is not one of filters, layers, models, families"),
        ("basis := '3x3-nope'", "no basis 3x3-nope for 3x3 kernels"),
    ],
)
def test_unknown_arguments_get_one_clear_line(sql, macro, given, message):
    with pytest.raises(duckdb.Error, match=message):
        sql.sql(f"FROM {macro}(domain, {given})").fetchall()


def test_unknown_columns_and_groups(sql):
    with pytest.raises(duckdb.BinderException, match="nosuch"):
        sql.sql("FROM kl_shift(nosuch)")
    with pytest.raises(duckdb.Error, match="no group nobody to compare"):
        sql.sql("FROM nearest_groups(domain, 'nobody')").fetchall()
    with pytest.raises(duckdb.Error, match="no group faces to compare"):
        sql.sql("FROM nearest_groups(domain, 'faces', \"where\" := false)").fetchall()
    assert sql.sql('FROM kl_shift(domain, "where" := false)').fetchall() == []


def test_a_basis_of_another_kernel_size_is_refused(sample, sql):
    other = next(fitted.basis_id for fitted in sample.bases() if fitted.basis.kernel == "5x5")
    with pytest.raises(duckdb.Error, match=f"no basis {other} for 3x3 kernels"):
        sql.sql(f"FROM kl_shift(domain, basis := '{other}')").fetchall()


def test_a_group_outside_the_range_is_named(tmp_path, tensors):
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(64, 4, 3, 3)).astype(np.float32)
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add({"a.weight": spread[:, :1] * 0 + 1 + 1e-3 * spread[:, :1]}, "flat", domain="flat", new_words=True)
        db.index()
        db.add({"a.weight": -np.ones((4, 1, 3, 3), np.float32)}, "far", domain="far", new_words=True)
        with pytest.raises(SelectionError, match="no coefficient"):
            db.kl_shift("domain")
        with pytest.raises(QueryError, match="group far: no coefficient is in the range"):
            db.sql("FROM kl_shift(domain)").fetchall()


@pytest.mark.thorough
def test_thousands_of_groups(tmp_path):
    rng = np.random.default_rng(0)
    layers = {f"l{i}.weight": rng.normal(size=(2, 2, 3, 3)).astype(np.float32) for i in range(2001)}
    with cnnfilterdb.create(tmp_path / "a.db") as db:
        db.add(layers, "m")
        whole = db.kl_shift("layer")
        assert whole.shape == (2001, 2001)
        for macro in ("kl_shift", "kl_shift_components", "shift_metrics"):
            with pytest.raises(QueryError, match="2001 groups: at most 2000 can be compared"):
                db.sql(f"FROM {macro}(layer)").fetchall()
        rows = db.sql(
            'SELECT max(shift) AS most, count(*) AS n FROM kl_shift(layer, "where" := layer < 300)'
        ).fetchall()
        assert rows == [(pytest.approx(whole.iloc[:300, :300].to_numpy().max(), abs=1e-9), 90_000)]


# -------------------------------------------------------------------------------------------------- descriptions


def test_views_are_created_without_looking_for_the_files_of_models(sample_path, sql, tmp_path):
    """It would be done a hundred times; the files without rows have the same columns."""
    places = [path.relative_to(sample_path) for path in sample_path.rglob("_empty*") if path.is_file()]
    places += [path.relative_to(sample_path) for path in (sample_path / "index/_empty").rglob("*.parquet")]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sample_path / place, tmp_path / place)
    for place in ("models", "layers", "filters/kernel=3x3/source=custom", "index/3x3-0a/histograms"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "damaged-0123456789.parquet").write_bytes(b"")  # an error for those who open it
    connection = duckdb.connect()
    connection.execute("SET VARIABLE cnnfilterdb_path = $path", {"path": str(tmp_path)})
    connection.execute((sample_path / "init.sql").read_text(encoding="utf-8"))
    columns = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE schema_name = 'main' ORDER BY ALL"
    assert connection.sql(columns).fetchall() == sql.sql(columns).fetchall()
    with pytest.raises(duckdb.Error):
        connection.sql("FROM models").fetchall()
    connection.execute("SET VARIABLE cnnfilterdb_path = $path", {"path": str(sample_path)})
    assert connection.sql("FROM kl_shift(domain)").fetchall() == sql.sql("FROM kl_shift(domain)").fetchall()


def test_everything_in_init_sql_is_explained(sample_path, sql):
    text = (sample_path / "init.sql").read_text(encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    blocks = re.split(r"\n\s*\n", text)
    described, undescribed = [], []
    for block in blocks:
        commented = block.lstrip().startswith("--")
        for name in re.findall(r'CREATE OR REPLACE (?:MACRO|VIEW) "?(\w+)', block):
            known = commented or re.search(rf"\b{name}\b", readme)
            (described if known else undescribed).append(name)
    assert undescribed == []
    there = sql.sql("SELECT DISTINCT function_name FROM duckdb_functions() WHERE NOT internal").fetchall()
    there += sql.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
    assert {name for (name,) in there} == set(described)
    assert {"kl_shift", "shift_metrics", "nearest_groups", "filters_7x7", "coefficients_5x5"} <= set(described)

"""The database as users hold it, against the papers' method done plainly in memory."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb.core import schema
from cnnfilterdb.core.errors import NotADatabaseError, SelectionError, UnknownModelError


def by_domain(db, kernel="3x3"):
    """Raw filters by domain and over everything, straight from the filters table."""
    size = np.prod([int(side) for side in kernel.split("x")])
    frame = db.filters(kernel=kernel).merge(db.models()[["model_id", "domain"]])
    columns = [f"w{i}" for i in range(size)]
    groups = {label: part[columns].to_numpy() for label, part in frame.groupby("domain")}
    return groups, frame[columns].to_numpy()


@pytest.mark.parametrize("recipe", ["cvpr2022", "medneurips2022"])
def test_shift_agrees_with_the_notebook_in_python_and_in_sql(sample, notebook, recipe):
    groups, everything = by_domain(sample)
    expected = notebook(groups, everything, recipe)
    matrix = sample.kl_shift(by="domain", recipe=recipe)
    assert list(matrix.index) == list(groups)
    np.testing.assert_allclose(matrix.to_numpy(), expected, atol=1e-9)

    rows = sample.sql(f"FROM kl_shift(domain, recipe := '{recipe}')").df()
    square = rows.pivot(index="group_a", columns="group_b", values="shift")
    np.testing.assert_allclose(square.to_numpy(), expected, atol=1e-9)
    assert rows["filters_a"].iloc[0] == len(groups[rows["group_a"].iloc[0]])


def test_components_add_up_to_the_shift(sample):
    total = sample.sql("SELECT group_a, group_b, sum(shift) AS s FROM kl_shift_components(domain) GROUP BY ALL").df()
    square = total.pivot(index="group_a", columns="group_b", values="s")
    np.testing.assert_allclose(square.to_numpy(), sample.kl_shift("domain").to_numpy(), atol=1e-12)


@pytest.mark.parametrize("balance", ["filters", "layers", "models", "families"])
def test_balance_is_the_same_in_python_and_in_sql(sample, balance):
    matrix = sample.kl_shift("task", balance=balance)
    rows = sample.sql(f"FROM kl_shift(task, balance := '{balance}')").df()
    square = rows.pivot(index="group_a", columns="group_b", values="shift")
    np.testing.assert_allclose(square.to_numpy(), matrix.to_numpy(), atol=1e-9)
    scanned = sample.kl_shift("task", balance=balance, basis=sample.basis())
    np.testing.assert_allclose(scanned.to_numpy(), matrix.to_numpy(), atol=1e-12)


def test_a_scan_gives_what_the_index_gives(sample):
    stored = sample.kl_shift("domain")
    scanned = sample.kl_shift("domain", bins=70, range=stored.attrs["range"])
    np.testing.assert_allclose(scanned.to_numpy(), stored.to_numpy(), atol=1e-12)


def test_basis_of_a_selection_is_that_of_its_filters(sample, notebook):
    groups, _ = by_domain(sample)
    kept = {label: groups[label] for label in ("faces", "natural")}
    matrix = sample.kl_shift("domain", where="domain IN ('faces', 'natural')", basis="selection")
    np.testing.assert_allclose(matrix.to_numpy(), notebook(kept, np.concatenate(list(kept.values()))), atol=1e-9)


def test_other_kernel_sizes(sample):
    assert sample.basis(kernel="5x5").components.shape == (25, 25)
    assert len(sample.filters(kernel="7x7")) == 16 * 3
    with pytest.raises(SelectionError, match="no basis for 9x9"):
        sample.kl_shift("domain", kernel="9x9")


def test_where_and_keep_narrow_the_rows(sample):
    matrix = sample.kl_shift("name", where="domain = 'natural'")
    assert list(matrix) == ["photo-a", "photo-b"]
    rows = sample.sql("FROM kl_shift(name, \"where\" := domain = 'natural')").df()
    assert rows["shift"].max() == pytest.approx(matrix.to_numpy().max(), abs=1e-12)


def test_coefficients_agree_in_sql_and_python(sample):
    python = sample.coefficients(where="name = 'face'")
    view = sample.sql(
        "SELECT * FROM coefficients_3x3 WHERE model_id = 'custom/face' ORDER BY layer, out_channel, in_channel"
    ).df()
    columns = [f"c{i}" for i in range(9)]
    np.testing.assert_allclose(view[columns].to_numpy(), python[columns].to_numpy(), atol=1e-12)
    macro = sample.sql(
        "SELECT svd_coefficients(w) AS c FROM filters_3x3 WHERE model_id = 'custom/face' "
        "ORDER BY layer, out_channel, in_channel"
    ).df()
    np.testing.assert_allclose(np.stack(macro["c"]), python[columns].to_numpy(), atol=1e-12)


def test_scalar_macros(sample):
    assert sample.sql("SELECT scale_filter([0.5, -2.0, 1.0]) AS s").fetchall() == [([0.25, -1.0, 0.5],)]
    assert sample.sql("SELECT scale_filter([0.0, 0.0]) AS s").fetchall() == [([0.0, 0.0],)]
    found = sample.sql(
        "SELECT model_id, layer, sparsity(w) AS s, any_value(l.sparsity) AS stored "
        "FROM filters_3x3 JOIN layers AS l USING (model_id, layer) GROUP BY ALL"
    ).df()
    np.testing.assert_allclose(found["s"], found["stored"])


def test_tables_as_data_frames(sample, tensors):
    models = sample.models(where="domain LIKE 'medical%'")
    assert list(models["name"]) == ["ct-a", "ct-b"]
    layers = sample.layers(where="task = 'Face Detection'")
    assert list(layers["layer_name"]) == ["a", "b"]
    filters = sample.filters(where="name = 'face'")
    expected = np.concatenate([tensors["face"][f"{name}.weight"].reshape(-1, 9) for name in "ab"])
    np.testing.assert_array_equal(filters[[f"w{i}" for i in range(9)]].to_numpy(), expected)
    streamed = sum(batch.num_rows for batch in sample.filter_batches(where="name = 'face'", rows=7))
    assert streamed == len(filters)


def test_unfinished_stream_does_not_block(sample):
    stream = sample.filter_batches(rows=10)
    next(stream)
    assert len(sample.models()) == 5
    stream.close()


def test_later_models_are_projected_and_counted(sample_path, tmp_path, tensors):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    db = cnnfilterdb.open(path)
    before = db.kl_shift("domain")
    wild = {name: np.where(np.arange(9).reshape(3, 3) % 2, 1, -1) * np.abs(t) if t.ndim == 4 else t
            for name, t in tensors["face"].items()}  # fmt: skip
    db.add({k: v.astype(np.float32) for k, v in wild.items()}, "wild", domain="checkerboards", new_words=True)
    after = db.kl_shift("domain")
    assert after.attrs["basis"] == before.attrs["basis"]
    pd.testing.assert_frame_equal(after.loc[before.index, before.columns], before, check_names=False)
    assert "checkerboards" in after
    assert db.index() == []
    (refitted, *_) = db.index(refit=True)
    assert db.kl_shift("domain").attrs["basis"] == refitted.basis_id != before.attrs["basis"]
    np.testing.assert_allclose(
        db.kl_shift("domain", basis=before.attrs["basis"]).to_numpy(), after.to_numpy(), atol=1e-12
    )
    db.remove("custom/wild")
    pd.testing.assert_frame_equal(db.kl_shift("domain", basis=before.attrs["basis"]), before)
    assert db.verify() == []


def test_sql_refuses_to_leave_out_what_is_not_indexed(sample_path, tmp_path):
    path = shutil.copytree(sample_path, tmp_path / "copy.db")
    db = cnnfilterdb.open(path)
    db.sql("SELECT 1").fetchall()
    for file in path.glob("index/3x3-*/histograms/*face*"):
        file.unlink()
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET VARIABLE cnnfilterdb_path = '{path}'")
    connection.execute((path / "init.sql").read_text())
    for query in (
        "FROM kl_shift(domain)", "SELECT layers FROM group_totals(domain)", "SELECT count(*) FROM group_layers(domain)",
        "SELECT counts FROM group_histograms(domain)", "SELECT outside FROM group_histograms(domain)",
    ):  # fmt: skip
        with pytest.raises(duckdb.Error, match="custom/face is not in the index"):
            connection.sql(query).fetchall()
    assert len(db.sql("FROM kl_shift(domain)").df()) == 9  # in Python the gap is filled first


def test_the_folder_moves_with_its_init_file(sample_path, tmp_path):
    import duckdb

    path = shutil.copytree(sample_path, tmp_path / "moved.db")
    with cnnfilterdb.open(path) as db:
        expected = db.kl_shift("domain")
    connection = duckdb.connect()
    connection.execute((path / "init.sql").read_text())
    rows = connection.sql("FROM kl_shift(domain)").df()
    assert rows["shift"].max() == pytest.approx(expected.to_numpy().max(), abs=1e-12)


def test_a_result_depends_on_no_order(sample, sample_path):
    first = sample.sql("FROM kl_shift(domain)").fetchall()
    again = cnnfilterdb.open(sample_path).sql("FROM kl_shift(domain)").fetchall()
    assert first == again


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda db: db.kl_shift("nosuch"), "nosuch"),
        (lambda db: db.kl_shift("domain", where="domain = 'none'"), "no 3x3 filters"),
        (lambda db: db.kl_shift("domain", recipe="x"), "recipe"),
        (lambda db: db.kl_shift("domain", balance="x"), "balance"),
        (lambda db: db.kl_shift("domain", bins=0), "bins"),
        (lambda db: db.kl_shift("domain", range=(1, 1)), "range"),
        (lambda db: db.kl_shift("domain", weights=[1, 2]), "weights"),
        (lambda db: db.kl_shift("domain", weights="x"), "weights"),
        (lambda db: db.kl_shift("domain", basis="3x3-nope"), "no basis"),
        (lambda db: db.kl_shift("domain", basis=db.basis(kernel="5x5")), "5x5"),
        (lambda db: db.models(where="nosuch = 1"), "nosuch"),
        (lambda db: db.add({}, "x", domian="y"), "did you mean domain"),
        (lambda db: db.add({}, "x", overwite=True), "did you mean overwrite"),
        (lambda db: db.add({}, "x", task="segmantation"), "unknown task 'segmantation'; did you mean 'Segmentation'"),
        (lambda db: db.add(42, "x"), "int"),
        (lambda db: db.add({}, "face"), "already"),
    ],
)
def test_wrong_questions_get_one_clear_line(sample, call, message):
    with pytest.raises(SelectionError, match=message):
        call(sample)


def test_unknown_models_and_folders(sample, tmp_path):
    with pytest.raises(UnknownModelError, match="custom/face"):
        sample.remove("custom/fase")
    with pytest.raises(NotADatabaseError):
        cnnfilterdb.open(tmp_path / "none")


def test_an_empty_database_answers(tmp_path):
    db = cnnfilterdb.create(tmp_path / "empty.db")
    assert db.models().empty
    assert db.layers().empty
    assert db.filters().empty
    assert db.verify() == []
    with pytest.raises(SelectionError):
        db.kl_shift("domain")


def test_torch_is_never_imported(sample_path, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, cnnfilterdb\n"
        f"db = cnnfilterdb.open({str(sample_path)!r})\n"
        "db.kl_shift('domain'); db.sql('FROM kl_shift(domain)').df(); db.plot.kl_shift(by='domain')\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_facts_that_can_be_given_are_those_that_are_stored():
    stored = {field.name for field in dataclasses.fields(schema.ModelFacts)}
    assert set(schema.GivenFacts.__annotations__) == stored
    assert set(schema.ANNOTATED) == stored - {"file_format", "weights_sha256", "metrics", "original"}
    assert stored <= set(schema.MODELS.names)

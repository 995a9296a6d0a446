"""What a database says of single layers and filters: descriptors, quality and moments, in Python and in SQL."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.fft import dctn

import cnnfilterdb
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.stats import (
    DESCRIPTORS,
    QUALITY_RULES,
    Moments,
    binary_residual,
    degeneration,
    descriptors,
    layer_statistics,
    sparse_kernels,
    sparsity,
)

KEYS = ["model_id", "layer", "out_channel", "in_channel"]
KERNELS = ["3x3", "2x2", "1x3", "5x5", "1x2"]


def edge_layers():
    """Layers at the edges of all rules: of zeros, equal kernels, one kernel, negative, sparse, quantised, binary."""
    rng = np.random.default_rng(7)
    random = rng.normal(size=(20, 10, 3, 3))
    some = random.copy()
    some.reshape(-1, 9)[: 200 // 3] *= 1e-4
    pattern = rng.normal(size=(1, 1, 3, 3)) * rng.lognormal(size=(20, 10, 1, 1))
    repetitive = pattern + 1e-3 * random
    collapsed = repetitive.copy()
    collapsed[:5] *= 1e-4
    layers = {
        "zeros": np.zeros((4, 2, 3, 3)),
        "equal": np.full((4, 2, 3, 3), 0.5),
        "negative": -np.abs(random[:4]),
        "one": random[:1, :1],
        "random": random,
        "sparse": some @ np.diag([1, 0.5, 0.3]),
        "repetitive": repetitive,
        "collapsed": collapsed,
        "regular": random @ np.diag([1, 0.6, 0.3]),
        "quantised": np.round(random * 8) / 8,
        "binary": np.sign(random) * 0.1,
        "with zeros": np.where(rng.random((20, 10, 1, 1)) < 0.3, 0, random),
        "two": random[:5, :3, :2, :2],
        "line": random[:5, :3, :1],
        "pair": random[:5, :3, :1, :2],
        "large": rng.normal(size=(8, 4, 5, 5)).cumsum(axis=2),
    }
    return {name: weight.astype(np.float32) for name, weight in layers.items()}


@pytest.fixture(scope="module")
def layers():
    return edge_layers()


@pytest.fixture(scope="module")
def edges(tmp_path_factory, layers):
    """A database of these layers, half of them in another model."""
    path = tmp_path_factory.mktemp("edges") / "edges.db"
    names = list(layers)
    with cnnfilterdb.create(path) as db:
        for number, part in enumerate((names[::2], names[1::2])):
            db.add(
                {f"{name}.weight": layers[name] for name in part},
                f"model {number}",
                domain=f"half {number}",
                new_words=True,
            )
        yield db


def assert_near(found, expected, name):
    """Equal, NaN and NULL alike; directions but for half a turn."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)
    apart = np.abs(found - expected)
    if name == "orientation":
        apart = np.minimum(apart, np.pi - apart)
    assert np.nanmax(apart, initial=0) <= 1e-6, name


# ----------------------------------------------------------------------------------------------------- descriptors

TAKE_A_SIZE = ["mirror_x", "mirror_y", "centre_surround", "dct_low", "dct_high", "fft_low", "orientation", "coherence"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_macros_give_the_numbers_of_python(edges, kernel):
    macros = {name: f"{name}(w, kernel := '{kernel}')" if name in TAKE_A_SIZE else f"{name}(w)" for name in DESCRIPTORS}
    macros["norm"] = "kernel_norm(w)"
    columns = ", ".join(f"{macro} AS {name}" for name, macro in macros.items())
    found = edges.sql(f"SELECT {columns} FROM filters_{kernel} ORDER BY {', '.join(KEYS)}").df()
    expected = edges.descriptors(kernel=kernel)
    assert len(found) == len(expected) > 0
    for name in DESCRIPTORS:
        assert_near(found[name], expected[name], name)


def test_sizes_are_those_of_3x3_unless_another_is_named(edges):
    for name in TAKE_A_SIZE:
        same, size = edges.sql(
            f"SELECT bool_and({name}(w) IS NOT DISTINCT FROM {name}(w, kernel := '3x3')), count({name}(w)) "
            "FROM (FROM filters_3x3 LIMIT 50)"
        ).fetchall()[0]
        assert same, name
        assert size > 0


def test_ternary_kernels_and_the_transform_in_sql(edges):
    rows = edges.sql(
        f'SELECT w, binary_residual(w, "values" := 3) AS rest, dct(w) AS c FROM filters_3x3 ORDER BY {", ".join(KEYS)}'
    ).df()
    filters = np.stack(list(rows["w"])).astype(np.float32)
    assert_near(rows["rest"], binary_residual(filters, values=3), "binary_residual")
    expected = dctn(filters.astype(np.float64).reshape(-1, 3, 3), axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(np.stack(list(rows["c"])), expected.reshape(-1, 9), atol=1e-9)
    with pytest.raises(Exception, match="4 given; expected 2"):
        edges.sql('SELECT binary_residual([1.0, 2.0], "values" := 4)').fetchall()


@pytest.mark.parametrize("kernel", ["3x3", "5x5"])
def test_descriptors_per_filter(sample, kernel):
    found = sample.descriptors(where="domain = 'medical ct'", kernel=kernel)
    assert list(found) == [*KEYS, *DESCRIPTORS]
    filters = sample.filters(where="domain = 'medical ct'", kernel=kernel)
    pd.testing.assert_frame_equal(found[KEYS], filters[KEYS])
    expected = descriptors(filters.drop(columns=KEYS).to_numpy(np.float32), kernel)
    for name in DESCRIPTORS:
        np.testing.assert_array_equal(found[name], expected[name])


def test_descriptors_are_streamed_with_their_columns(edges):
    batches = list(edges.descriptor_batches(rows=64))
    assert len(batches) > 1
    assert sum(batch.num_rows for batch in batches) == len(edges.filters())
    for name, text in DESCRIPTORS.items():
        assert batches[0].schema.field(name).metadata == {b"description": text.encode()}
    # What is not defined is NULL, not NaN: the 8 kernels of a layer of zeros have a norm but no symmetry.
    kept = [batch.to_pandas() for batch in batches]
    assert not pd.concat(kept)["norm"].isna().any()
    assert sum(batch["symmetry"].null_count for batch in batches) == (pd.concat(kept)["norm"] == 0).sum() > 8


@pytest.mark.parametrize("kernel", KERNELS)
def test_descriptors_per_layer(edges, layers, kernel):
    found = edges.descriptors(kernel=kernel, per="layer")
    assert list(found) == ["model_id", "layer", "filters", *DESCRIPTORS]
    rows = edges.layers(where=f"kernel = '{kernel}'")
    pd.testing.assert_frame_equal(found[["model_id", "layer", "filters"]], rows[["model_id", "layer", "filters"]])
    each = edges.descriptors(kernel=kernel)
    for (_, row), name in zip(found.iterrows(), rows["layer_name"], strict=True):
        part = each[(each["model_id"] == row["model_id"]) & (each["layer"] == row["layer"])]
        assert len(part) == row["filters"] == math.prod(layers[name].shape[:2])
        for column in DESCRIPTORS:
            if column == "orientation":
                there = part["orientation"].notna()
                direction = (part["coherence"] * np.exp(2j * part["orientation"]))[there].sum()
                expected = np.angle(direction) / 2 % np.pi if there.any() else np.nan
            else:
                expected = part[column].mean()
            assert_near([row[column]], [expected], column)


def test_layers_that_span_row_groups_are_described_as_one(tmp_path):
    """More filters than one row group holds."""
    weight = np.random.default_rng(0).normal(size=(700, 200, 3, 3)).astype(np.float32)
    with cnnfilterdb.create(tmp_path / "large.db") as db:
        db.add({"small.weight": weight[:3, :5], "large.weight": weight}, "large")
        found = db.descriptors(per="layer")
        assert list(found["filters"]) == [15, 140_000]
        expected = descriptors(weight.reshape(-1, 9), "3x3")
        for name in ("norm", "dct_low", "coherence"):
            assert found[name][1] == pytest.approx(expected[name].mean(), rel=1e-9)


def test_descriptors_of_nothing(sample):
    for per in ("filter", "layer"):
        found = sample.descriptors(where="domain = 'cars'", per=per)
        assert found.empty
        assert set(DESCRIPTORS) <= set(found)
    with pytest.raises(SelectionError, match="'model' given; expected filter or layer"):
        sample.descriptors(per="model")
    for per in ("filter", "layer"):
        with pytest.raises(ValueError, match="not a kernel size: 'round'"):
            sample.descriptors(kernel="round", per=per)
    with pytest.raises(SelectionError):
        sample.descriptors(where="no_such_column = 1", per="layer")


# --------------------------------------------------------------------------------------------------------- quality


def test_the_table_holds_the_statistics_of_each_layer(edges, layers):
    rows = edges.layers().set_index("layer_name")
    assert set(rows.index) == set(layers)
    columns = ["sparsity", "variance_entropy", "randomness_threshold", "variance_entropy_clean",
               "variance_entropy_scaled", "orthogonality", "binary_filters", "levels"]  # fmt: skip
    for name, weight in layers.items():
        expected = layer_statistics(weight)
        for column in columns:
            value = getattr(expected, column)
            assert_near([rows.loc[name, column]], [np.nan if value is None else value], f"{name}, {column}")
        kept = (~sparse_kernels(weight.reshape(-1, weight[0, 0].size))).sum()
        there = rows.loc[name, "nonsparse_filters"]
        assert (rows.loc[name, "filters"] if pd.isna(there) else there) == kept


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threshold", [0.01, 0.3])
def test_sparsity_by_all_rules_in_sql(edges, layers, kernel, threshold):
    columns = ", ".join(f"sparsity(w, threshold := {threshold}, rule := '{rule}') AS {rule}" for rule in QUALITY_RULES)
    found = edges.sql(
        f"SELECT any_value(l.layer_name) AS name, {columns} "
        f"FROM filters_{kernel} JOIN layers AS l USING (model_id, layer) GROUP BY model_id, layer"
    ).df().set_index("name")  # fmt: skip
    there = {name: weight for name, weight in layers.items() if weight.shape[2:] == kernel_shape(kernel)}
    assert set(found.index) == set(there)
    for name, weight in there.items():
        for rule in QUALITY_RULES:
            expected = sparsity(weight.reshape(-1, weight[0, 0].size), threshold, rule=rule)
            assert found.loc[name, rule] == pytest.approx(expected, abs=1e-12), (name, rule)


def test_edges_of_the_rules_in_sql(edges):
    def found(rule, *kernels):
        rows = ", ".join(f"({list(kernel)}::FLOAT[])" for kernel in kernels)
        return edges.sql(f"SELECT sparsity(w, rule := '{rule}') FROM (VALUES {rows}) AS t(w)").fetchall()[0][0]

    limit = float(np.float32(0.01))
    assert [found(rule, (1, 0), (limit, -limit)) for rule in QUALITY_RULES] == [0, 0, 0.5, 0]
    assert [found(rule, (0, 0), (0, 0)) for rule in QUALITY_RULES] == [0, 1, 1, 0]
    # The product with the threshold vanishes in single precision only.
    tiny = np.array([[1e-45, 0], [0, 0]], np.float32)
    for rule in QUALITY_RULES:
        assert found(rule, *tiny.tolist()) == sparsity(tiny, rule=rule), rule
    with pytest.raises(Exception, match="'cvpr2023' is not one of cvpr2022"):
        found("cvpr2023", (1, 0))


def test_labels_in_sql_are_those_of_python(edges):
    grid = [
        (entropy, threshold, share, weights)
        for entropy in (None, 0.0, 0.4, 0.5, 0.9, 0.93, 0.95, 1.4)
        for threshold in (None, -0.1, 0.0, 0.95, 1.4)
        for share in (None, 0.0, 0.14, 0.5)
        for weights in (1, 4, 9, 25)
    ]
    table = pd.DataFrame(grid, columns=["h", "t", "s", "k"]).astype(float)
    for options in ({}, {"margin": 0.1, "low_entropy": 0.45, "high_sparsity": 0.3}):
        given = "".join(f", {name} := {value}" for name, value in options.items())
        rows = ", ".join("(" + ", ".join("NULL" if v is None else repr(v) for v in row) + ")" for row in grid)
        label = f"degeneration(h::DOUBLE, t::DOUBLE, s::DOUBLE, weights := k{given})"
        labels = [label for (label,) in edges.sql(f"SELECT {label} FROM (VALUES {rows}) AS g(h, t, s, k)").fetchall()]
        expected = degeneration(table["h"], table["t"], table["s"], weights=table["k"], **options)
        assert labels == expected.tolist()
        assert set(labels) == {None, "random", "collapsed", "sparse", "repetitive", "regular"}


def group_by_hand(rows, **thresholds):
    """What db.quality says of some rows of the layers table."""

    def mean(column, weights):
        there = rows[column].notna()
        return (rows[column] * weights)[there].sum() / weights[there].sum() if there.any() else np.nan

    sizes = rows["kernel_h"] * rows["kernel_w"]
    labels = pd.Series(
        degeneration(
            rows["variance_entropy"], rows["randomness_threshold"], rows["sparsity"], weights=sizes, **thresholds
        )
    ).dropna()
    share = {label: (labels == label).mean() for label in ("random", "collapsed", "sparse", "repetitive")}
    positive = rows["randomness_threshold"] > 0
    return {
        "models": rows["model_id"].nunique(),
        "layers": len(rows),
        "filters": rows["filters"].sum(),
        "nonsparse_filters": rows["nonsparse_filters"].fillna(rows["filters"]).sum(),
        "sparsity": mean("sparsity", rows["filters"]),
        "variance_entropy": mean("variance_entropy", rows["filters"]),
        "variance_entropy_clean": mean("variance_entropy_clean", rows["filters"]),
        "normalised_entropy": (rows["variance_entropy"] / rows["randomness_threshold"])[positive].mean(),
        "orthogonality": mean("orthogonality", rows["out_channels"]),
        **{f"{label}_layers": value for label, value in share.items()},
        "degenerated_layers": share["random"] + share["collapsed"],
        "quantised_layers": (rows["levels"] <= 0.5 * rows["filters"] * sizes / rows["out_channels"]).mean(),
        "binary_filters": rows["binary_filters"].sum(),
    }


@pytest.mark.parametrize("kernel", ["3x3", "5x5", "2x2"])
@pytest.mark.parametrize("thresholds", [{}, {"margin": 0.2}, {"low_entropy": 0.9}, {"high_sparsity": 0.05}])
def test_quality_of_groups(edges, kernel, thresholds):
    # The layer of zeros counts as dead, if anything does.
    rows = edges.layers(where=f"kernel = '{kernel}' AND dead IS NOT TRUE").merge(edges.models()[["model_id", "domain"]])
    found = edges.quality("domain", kernel=kernel, **thresholds)
    assert found.index.name == "domain"
    groups = dict(list(rows.groupby("domain")))
    assert list(found.index) == list(groups)
    for label, part in groups.items():
        for name, expected in group_by_hand(part, **thresholds).items():
            assert_near([found.loc[label, name]], [expected], name)
    assert set(found) == set(group_by_hand(rows))


def test_layers_are_labelled_as_they_were_made(edges):
    columns = ["random_layers", "collapsed_layers", "sparse_layers", "repetitive_layers", "degenerated_layers"]
    found = edges.quality("layer_name", all_layers=True)
    for name, expected in {
        "random": (1, 0, 0, 0, 1), "collapsed": (0, 1, 0, 0, 1), "sparse": (0, 0, 1, 0, 0),
        "repetitive": (0, 0, 0, 1, 0), "regular": (0, 0, 0, 0, 0),
    }.items():  # fmt: skip
        assert tuple(found.loc[name, columns]) == expected, name
    # One kernel, and kernels without variance, have no isotropy.
    for name in ("one", "zeros", "equal"):
        assert found.loc[name, columns].isna().all(), name
    assert found.loc["quantised", "quantised_layers"] == 1
    assert found.loc["random", "quantised_layers"] == 0
    assert (found.loc["binary", "binary_filters"], found.loc["regular", "sparsity"]) == (200, 0)
    loose = edges.quality("layer_name", margin=1.0)
    assert loose.loc["regular", "random_layers"] == 1
    strict = edges.quality("layer_name", high_sparsity=0.9)
    assert strict.loc["collapsed", "repetitive_layers"] == 1
    assert strict.loc["sparse", "degenerated_layers"] == 0


# --------------------------------------------------------------------------------------------------------- moments


def test_moments_of_a_selection(sample, edges, tensors, layers):
    filters = np.concatenate([tensors[name][f"{layer}.weight"].reshape(-1, 9) for name in ("photo-b", "face")
                              for layer in "abc" if f"{layer}.weight" in tensors[name]])  # fmt: skip
    found = sample.moments(where="name IN ('photo-b', 'face')")
    expected = Moments.of(filters)
    assert found.count == len(filters)
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-12)
    scaled = (filters / np.abs(filters).max(axis=1, keepdims=True)).astype(np.float64)
    np.testing.assert_allclose(found.covariance, np.cov(scaled, rowvar=False), atol=1e-12)
    assert sample.moments(kernel="7x7").count == 48

    kept = layers["sparse"].reshape(-1, 9)[~sparse_kernels(layers["sparse"].reshape(-1, 9))]
    assert 0 < len(kept) < 200
    found = edges.moments(where="layer_name = 'sparse'", variant="nonsparse")
    assert found.count == len(kept)
    np.testing.assert_allclose(found.mean, Moments.of(kept).mean, atol=1e-12)
    np.testing.assert_allclose(found.scatter, Moments.of(kept).scatter, atol=1e-9)


def test_moments_that_cannot_be_answered(sample):
    with pytest.raises(SelectionError, match="'dense' is not one of all, nonsparse"):
        sample.moments(variant="dense")
    with pytest.raises(SelectionError):
        sample.moments(where="domain = 'cars'")
    with pytest.raises(SelectionError):
        sample.moments(kernel="9x9")

"""Search, against brute force in memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnfilterdb
from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import Nearest, Pattern, symmetries

SOBEL = np.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])


def brute_force(filters, kernel, sign=False, offset=False, rotation=False):
    """Cosine of every filter (n, h, w) with every variant of a kernel, by the definition."""
    variants = [kernel]
    if rotation:
        variants = [turned for k in (kernel, kernel[:, ::-1]) for turned in (np.rot90(k, i) for i in range(4))]
    variants = [v for v in variants if v.shape == kernel.shape]
    flat = filters.reshape(len(filters), -1).astype(np.float64)
    if offset:
        flat = flat - flat.mean(axis=1, keepdims=True)
        variants = [v - v.mean() for v in variants]
    cosines = np.stack([flat @ v.ravel() / (np.linalg.norm(flat, axis=1) * np.linalg.norm(v)) for v in variants])
    return (np.abs(cosines) if sign else cosines).max(axis=0)


@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("rotation", [False, True])
def test_nearest_is_what_brute_force_finds(sample, sign, offset, rotation):
    frame = sample.filters()
    weights = frame[[f"w{i}" for i in range(9)]].to_numpy().reshape(-1, 3, 3)
    expected = np.sort(brute_force(weights, SOBEL, sign, offset, rotation))[::-1][:25]
    found = sample.nearest(SOBEL, top=25, sign=sign, centred=offset, rotation=rotation)
    np.testing.assert_allclose(found["similarity"], expected, atol=1e-12)
    # The rows are those of the filters themselves.
    rows = found[[f"w{i}" for i in range(9)]].to_numpy().reshape(-1, 3, 3)
    np.testing.assert_allclose(brute_force(rows, SOBEL, sign, offset, rotation), expected, atol=1e-12)
    keys = ["model_id", "layer", "out_channel", "in_channel"]
    merged = found.merge(frame, on=keys, suffixes=("", "_stored"))
    assert len(merged) == 25
    np.testing.assert_array_equal(merged["w4"], merged["w4_stored"])


@pytest.mark.parametrize(("sign", "offset"), [(False, False), (True, False), (False, True), (True, True)])
def test_sql_finds_the_same(sample, sign, offset):
    python = sample.nearest(SOBEL, top=7, sign=sign, centred=offset)
    numbers = SOBEL.ravel().tolist()
    sql = sample.sql(f"FROM nearest_3x3({numbers}, top := 7, sign := {sign}, centred := {offset})").df()
    np.testing.assert_allclose(sql["similarity"], python["similarity"], atol=1e-12)
    assert list(sql["out_channel"]) == list(python["out_channel"])


def test_other_sizes_and_conditions(sample):
    found = sample.nearest(np.eye(7), top=3)
    assert set(found["model_id"]) == {"custom/photo-a"}
    assert "w48" in found
    narrowed = sample.nearest(SOBEL, top=5, where="domain = 'faces'")
    assert set(narrowed["model_id"]) == {"custom/face"}
    sql = sample.sql(f"FROM nearest_3x3({SOBEL.ravel().tolist()}, top := 5, \"where\" := domain = 'faces')").df()
    np.testing.assert_allclose(sql["similarity"], narrowed["similarity"], atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (np.zeros((3, 3)), {}, "zeros"),
        (np.ones((3, 3)), {"centred": True}, "constant"),
        (np.ones(9), {}, "shape"),
        (np.full((3, 3), np.nan), {}, "finite"),
        (np.ones((9, 9)), {}, "no 9x9 filters"),
        (SOBEL, {"top": 0}, "at least 1"),
        (SOBEL, {"where": "nosuch = 1"}, "nosuch"),
    ],
)
def test_wrong_questions(sample, kernel, options, message):
    with pytest.raises(SelectionError, match=message):
        sample.nearest(kernel, **options)


def test_kernels_without_direction_are_never_found(tmp_path):
    weight = np.zeros((4, 1, 3, 3), np.float32)
    weight[1] = 0.7
    weight[2] = SOBEL * 1e-30
    db = cnnfilterdb.create(tmp_path / "a.db")
    db.add({"a.weight": weight}, "m")
    found = db.nearest(SOBEL, top=10)
    assert list(found["out_channel"]) == [2, 1]
    assert found["similarity"][0] == pytest.approx(1)
    assert list(db.nearest(SOBEL, top=10, centred=True)["out_channel"]) == [2]


def test_shared_layers_show_shared_ancestry(tmp_path):
    rng = np.random.default_rng(0)
    trunk = {f"{i}.weight": rng.normal(size=(8, 8, 3, 3)).astype(np.float32) for i in range(3)}
    tuned = trunk | {"2.weight": rng.normal(size=(8, 8, 3, 3)).astype(np.float32)}
    zeros = {"0.weight": np.zeros((8, 8, 3, 3), np.float32)}
    db = cnnfilterdb.create(tmp_path / "a.db")
    for name, tensors in {"parent": trunk, "child": tuned, "zeros": zeros, "more zeros": zeros}.items():
        db.add(tensors, name)
    (row,) = db.shared_models().itertuples()
    assert (row.model_a, row.model_b, row.shared_layers, row.shared_filters) == (
        "custom/child",
        "custom/parent",
        2,
        128,
    )
    assert row.share == pytest.approx(2 / 3)
    layers = db.sql("FROM shared_layers").df()
    assert list(layers["models"]) == [2, 2]


kernels = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(size=(3, 3)))


@given(kernels, st.floats(1e-6, 1e6), st.floats(-5, 5))
@settings(max_examples=50)
def test_similarity_ignores_what_it_says(kernel, scale, constant):
    def similarity(pattern, weights):
        columns = list(np.ascontiguousarray(weights.reshape(1, -1).T, np.float32))
        return pattern.similarity(columns)[0][0]

    assert similarity(Pattern.of(kernel), kernel * scale) == pytest.approx(1, abs=1e-6)
    assert similarity(Pattern.of(kernel), -kernel * scale) == pytest.approx(-1, abs=1e-6)
    assert similarity(Pattern.of(kernel, sign=True), -kernel * scale) == pytest.approx(1, abs=1e-6)
    assert similarity(Pattern.of(kernel, centred=True), kernel + constant) == pytest.approx(1, abs=1e-5)
    for turned in symmetries(kernel).values():
        assert similarity(Pattern.of(kernel, rotation=True), turned * scale) == pytest.approx(1, abs=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 8), st.integers(0, 30))
def test_nearest_does_not_depend_on_the_order_of_updates(values, limit, cut):
    similarity = np.array(values) / 5
    places = np.arange(len(values))[:, None]
    whole = Nearest(limit)
    whole.update(similarity, places)
    first, second = Nearest(limit), Nearest(limit)
    first.update(similarity[cut:], places[cut:])
    second.update(similarity[:cut], places[:cut])
    first.merge(second)
    np.testing.assert_array_equal(whole.places, first.places)
    expected = sorted(zip(-similarity, places.ravel(), strict=True))[:limit]
    assert whole.places.ravel().tolist() == [place for _, place in expected]

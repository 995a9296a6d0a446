import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import gaussian_kde

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.plots import binned_density, ridge, silverman_bandwidth


@pytest.mark.parametrize("filters", [200, 2000, 20000])
def test_density_agrees_with_the_kernel_density_of_the_values(filters):
    """Within 2 % of the peak of scipy's estimate from the unbinned values, where bins are finer than its bandwidth."""
    rng = np.random.default_rng(filters)
    values = np.concatenate([rng.normal(-0.6, 0.35, filters // 2), rng.normal(0.7, 0.5, filters - filters // 2)])
    counts, edges = np.histogram(values, bins=140, range=(-4, 4))
    x = np.linspace(-4, 4, 801)
    oracle = gaussian_kde(values, "silverman")
    assert silverman_bandwidth(counts, -4, 4) == pytest.approx(np.sqrt(oracle.covariance[0, 0]), rel=0.01)
    density = binned_density(counts, edges[0], edges[-1], x)
    expected = oracle(x)
    assert np.abs(density - expected).max() < 0.02 * expected.max()


def test_a_single_bin_is_the_difference_of_two_normal_distribution_functions():
    from scipy.stats import norm

    x = np.linspace(-2, 2, 41)
    density = binned_density([0, 0, 5, 0], -2, 2, x, bandwidth=0.3)
    assert density == pytest.approx(norm.cdf(x / 0.3) - norm.cdf((x - 1) / 0.3), abs=1e-12)


@settings(max_examples=40)
@given(
    arrays.arrays(np.int64, st.integers(1, 80), elements=st.integers(0, 10**9)).filter(lambda counts: counts.any()),
    st.floats(-10, 5),
    st.floats(0.1, 20),
)
def test_density_integrates_to_one_and_keeps_the_mean(counts, low, span):
    high = low + span
    x = np.linspace(low - 3 * span, high + 3 * span, 20001)
    density = binned_density(counts, low, high, x)
    step = x[1] - x[0]
    assert (density >= 0).all()
    assert density.sum() * step == pytest.approx(1.0, abs=2e-3)
    centres = low + span * (np.arange(counts.size) + 0.5) / counts.size
    assert (density * x).sum() * step == pytest.approx(np.average(centres, weights=counts), abs=0.02 * span)


def test_bins_of_millions_of_filters_leave_no_steps():
    from scipy.stats import norm

    edges = np.linspace(-4, 4, 71)
    counts = np.round(1e9 * np.diff(norm.cdf(edges))).astype(int)
    x = np.linspace(-3, 3, 601)
    curve = binned_density(counts, -4, 4, x)
    slopes = np.sign(np.diff(curve))
    assert (np.diff(slopes[slopes != 0]) != 0).sum() == 1  # up once, down once
    assert np.abs(curve - norm.pdf(x)).max() < 0.01 * norm.pdf(0)


@pytest.mark.parametrize("groups", [1, 2, 8, 16, 40])
def test_layout_is_legible_whatever_the_groups_are_named(histograms, assert_legible, long_labels, groups):
    short = [f"group {i}" for i in range(groups)]
    for labels in (short, long_labels(groups)):
        figure = ridge(
            histograms(groups, 300),
            -4,
            4,
            labels,
            explained_variance_ratio=np.full(9, 1 / 9),
            title="A title that is far too long to fit " * 8,
        )
        assert len(figure.axes) == 9
        assert_legible(figure)
        assert max(figure.get_size_inches()) < 14


def test_axes_show_the_groups_the_components_and_their_shares(histograms):
    ratio = np.array([0.5, 0.2, 0.1, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01])
    counts = histograms(3)
    figure = ridge(
        counts, -4, 4, ["x", "y", "z"], filters=[12_900, 5, 10**9], explained_variance_ratio=ratio, components=[0, 4]
    )
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["x", "y", "z"]
    assert {"12.9 k", "5", "1 B", "filters", "$c_{0}$", "50.0 %"} <= {text.get_text() for text in first.texts}
    assert {text.get_text() for text in second.texts} == {"$c_{4}$", "5.0 %"}


def drawn(axes):
    """The curves of a column from top to bottom, x and y: each has an area, a white line, and its line."""
    return [path.vertices.T for path in axes.collections[0].get_paths()[2::3]]


def test_curves_are_the_densities_on_the_baselines_of_their_rows(histograms):
    counts = histograms(3)
    axes = ridge(counts, -4, 4, ["x", "y", "z"], xlim="full").axes[2]
    for row, (x, y) in enumerate(drawn(axes)):
        density = binned_density(counts[row, 2], -4, 4, x)
        assert y - (2 - row) == pytest.approx(density * (y.max() - (2 - row)) / density.max())
    assert axes.get_xlim() == (-4, 4)


def test_column_scale_draws_equal_areas(histograms):
    counts = histograms(2)
    axes = ridge(counts, -4, 4, ["x", "y"], xlim="full", scale="column").axes[0]
    areas = []
    for row, (x, y) in enumerate(drawn(axes)):
        areas.append(np.trapezoid(y - (1 - row), x))
    assert areas[0] == pytest.approx(areas[1], rel=0.02)


@settings(max_examples=30)
@given(st.floats(-1, 1), st.floats(0.05, 0.8))
def test_automatic_range_keeps_99_percent_of_every_curve(centre, spread):
    rng = np.random.default_rng(0)
    values = [rng.normal(centre, spread, 4000), rng.normal(0, 0.2, 4000)]
    counts = np.stack([[np.histogram(group, 70, (-4, 4))[0]] for group in values])
    left, right = ridge(counts, -4, 4, ["x", "y"]).axes[0].get_xlim()
    for group in values:
        assert ((group >= left) & (group <= right)).mean() >= 0.99
    assert right - left < 8


def test_no_figure_is_kept_alive(histograms):
    import gc
    import weakref

    figure = ridge(histograms(2), -4, 4, ["x", "y"])
    reference = weakref.ref(figure)
    del figure
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.zeros((0, 9, 70)), "labels": []}, "nothing to draw"),
        ({"counts": np.zeros((2, 9, 70))}, "group 'x' has no filters"),
        ({"counts": np.ones((2, 70))}, "expected 3 dimensions"),
        ({"labels": ["x"]}, "one for each of 2 groups"),
        ({"low": 1.0, "high": 1.0}, "edges of a range"),
        ({"components": [9]}, "some of 0 to 8"),
        ({"components": []}, "some of 0 to 8"),
        ({"filters": [1]}, "one number for each of 2 groups"),
        ({"explained_variance_ratio": [1.0]}, "expected 9 values"),
        ({"bandwidth": 0.0}, "positive number"),
        ({"bandwidth": "scott"}, "'silverman' or a positive number"),
        ({"xlim": (1, 0)}, "'auto', 'full' or"),
    ],
)
def test_what_cannot_be_drawn_is_reported_in_one_line(change, message):
    arguments = {"counts": np.ones((2, 9, 70)), "low": -4.0, "high": 4.0, "labels": ["x", "y"]} | change
    with pytest.raises(SelectionError, match=message) as caught:
        ridge(**arguments)
    assert "\n" not in str(caught.value)


def test_a_component_without_any_value_in_the_range_is_a_flat_line():
    counts = np.ones((2, 2, 10))
    counts[0, 1] = 0
    axes = ridge(counts, -1, 1, ["x", "y"]).axes[1]
    _, flat = drawn(axes)[0]
    assert set(flat) == {1.0}

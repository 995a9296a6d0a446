"""Moments, bases, histograms and shifts against scikit-learn, NumPy and SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.decomposition import PCA

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import (
    Basis,
    Histogram,
    Moments,
    histograms,
    kl_shift,
    kl_shift_components,
    probabilities,
    scaled_norm_max,
)


def scaled(filters):
    peak = np.abs(filters).max(axis=1, keepdims=True)
    return (filters / np.where(peak > 0, peak, 1)).astype(np.float64)


def columns(filters):
    return list(np.ascontiguousarray(filters.T))


def make(seed, count=400, size=9):
    rng = np.random.default_rng(seed)
    mixing = np.eye(size) + 0.5 * rng.normal(size=(size, size))
    filters = (rng.normal(size=(count, size)) @ mixing * rng.lognormal(size=(count, 1))).astype(np.float32)
    filters[rng.random(count) < 0.02] = 0
    return filters


@pytest.mark.parametrize(("size", "kernel"), [(9, "3x3"), (7, "1x7"), (25, "5x5"), (49, "7x7")])
def test_basis_is_scikit_learns(size, kernel):
    filters = make(size, 3000, size)
    basis = Basis.fit(Moments.of(filters), kernel)
    pca = PCA(n_components=size).fit(scaled(filters))
    np.testing.assert_allclose(basis.mean, pca.mean_, atol=1e-14)
    np.testing.assert_allclose(basis.explained_variance, pca.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(basis.explained_variance_ratio, pca.explained_variance_ratio_, rtol=1e-10)
    signs = np.sign((basis.components * pca.components_).sum(axis=1))
    np.testing.assert_allclose(basis.components, pca.components_ * signs[:, None], atol=1e-7)
    largest = np.abs(basis.components).argmax(axis=1)
    assert (basis.components[np.arange(size), largest] > 0).all()
    expected = pca.transform(scaled(filters)) * signs
    np.testing.assert_allclose(basis.project(filters), expected, atol=1e-6)
    low, high = basis.coefficient_range(columns(filters))
    found = basis.project(filters)
    assert (low, high) == (found.min(), found.max())


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(0, 300))
@settings(max_examples=30)
def test_moments_merge_in_any_order(seed, count, cut):
    filters = make(seed, count)
    cut = min(cut, count)
    whole = Moments.of(filters)
    parts = [Moments.of(filters[:cut]), Moments.of(filters[cut:])]
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0]), Moments.merge_all([Moments.empty(9), *parts])):
        assert merged.count == count
        np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-13)
        np.testing.assert_allclose(merged.scatter, whole.scatter, atol=1e-10)
    expected = scaled(filters)
    np.testing.assert_allclose(whole.mean, expected.mean(axis=0), atol=1e-13)
    centred = expected - expected.mean(axis=0)
    np.testing.assert_allclose(whole.scatter, centred.T @ centred, atol=1e-10)
    again = Moments.unpack(whole.count, whole.mean, whole.packed())
    np.testing.assert_array_equal(again.scatter, whole.scatter)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100), st.sampled_from([(-3.0, 3.0), (-0.5, 0.25), (0.0, 2.0)]))
@settings(max_examples=30)
def test_histograms_are_numpys(seed, bins, limits):
    filters = make(seed, 700)
    basis = Basis.fit(Moments.of(make(1)), "3x3")
    found = Histogram.of_columns(columns(filters), basis, *limits, bins)
    coefficients = basis.project(filters)
    for i in range(9):
        expected = np.histogram(coefficients[:, i], bins=bins, range=limits)[0]
        np.testing.assert_array_equal(found.counts[i], expected)
        assert found.below[i] == (coefficients[:, i] < limits[0]).sum()
        assert found.above[i] == (coefficients[:, i] > limits[1]).sum()
    assert (found.counts.sum(axis=1) + found.below + found.above == len(filters)).all()
    first, second = (
        Histogram.of_columns(columns(part), basis, *limits, bins) for part in (filters[:101], filters[101:])
    )
    np.testing.assert_array_equal(first.merge(second).counts, found.counts)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 255, 700, 3000]),
    st.sampled_from([2, 9, 25]),
    st.sampled_from([-44, -41, -39, -37, -20, 0, 37]),
    st.booleans(),
)
@settings(max_examples=60)
def test_range_is_that_of_the_coefficients_at_any_magnitude(seed, count, size, exponent, repeated):
    rng = np.random.default_rng(seed)
    basis = Basis.fit(Moments.of(make(seed, 500, size)), f"1x{size}")
    filters = rng.uniform(-1, 1, (count, size)) * 10.0 ** (exponent * rng.integers(0, 2, (count, 1)))
    if repeated:  # the largest coefficients are hardly apart in single precision
        filters[::3] = np.sign(basis.components[0]) * (1 - 1e-6 * rng.random(filters[::3].shape))
    filters = filters.astype(np.float32)
    found = basis.project(filters)
    assert basis.coefficient_range(columns(filters)) == (found.min(), found.max())


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 9, 25]), st.floats(-3, 3), st.floats(0, 4))
def test_a_filter_beyond_a_range_is_at_least_as_long_as_it_must_be(seed, size, low, width):
    rng = np.random.default_rng(seed)
    basis = Basis.fit(Moments.of(make(seed, 300, size)), f"1x{size}")
    # Some along the components, which are the shortest that reach a coefficient.
    filters = np.concatenate([rng.uniform(-1, 1, (200, size)), basis.components, -basis.components]).astype(np.float32)
    norms = np.linalg.norm(scaled(filters), axis=1)
    found = basis.project(filters)
    beyond = (found.min(axis=1) < low) | (found.max(axis=1) > low + width)
    assert (norms[beyond] >= basis.reach(low, low + width)).all()
    longest = max((scaled_norm_max(filters[row : row + 1]) for row in range(len(filters))), default=0)
    assert longest == pytest.approx(norms.max(), rel=1e-12)


@pytest.mark.parametrize("place", [0, 100, 299, 1999])
def test_zeros_may_be_at_an_end_of_the_range(place):
    filters = (1 + 0.1 * np.random.default_rng(0).random((2000, 9))).astype(np.float32)
    filters[place] = 0
    basis = Basis.fit(Moments.of(filters), "3x3")
    found = basis.project(filters)
    assert basis.coefficient_range(columns(filters)) == (found.min(), found.max())
    assert found[place].min() == found.min() or found[place].max() == found.max()
    alone = basis.coefficient_range(columns(filters[place : place + 1]))
    assert alone == (found[place].min(), found[place].max())


def test_several_ranges_at_once_and_both_edges():
    filters = make(3)
    basis = Basis.fit(Moments.of(filters), "3x3")
    limits = basis.coefficient_range(columns(filters))
    wide, exact = histograms(columns(filters), basis, [(-3, 3), limits], 70)
    assert exact.below.sum() == exact.above.sum() == 0
    np.testing.assert_array_equal(wide.counts, Histogram.of_columns(columns(filters), basis, -3, 3, 70).counts)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 255, 700, 3000]),
    st.sampled_from([2, 9, 25]),
    st.sampled_from([-44, -41, -39, -37, -20, 0, 37]),
    st.sampled_from([None, 1, 2, 7]),
    st.sampled_from([[(-2.0, 2.0)], [(-2.0, 2.0), (-1.0, 1.0)], [(0.25, 0.5), (-3.0, 9.0), (0.25, 0.5)]]),
    st.sampled_from([1, 8, 70, 5000]),
)
@settings(max_examples=100)
def test_histograms_are_numpys_at_any_magnitude_and_on_edges(seed, count, size, exponent, levels, limits, bins):
    rng = np.random.default_rng(seed)
    filters = rng.uniform(-1, 1, (count, size))
    if levels:  # coefficients are often equal to edges, of several ranges at once
        filters = np.round(filters * levels) / levels
        basis = Basis(f"1x{size}", np.zeros(size), np.eye(size), np.ones(size), np.full(size, 1 / size), count)
    else:
        basis = Basis.fit(Moments.of(make(seed, 500, size)), f"1x{size}")
    filters = (filters * 10.0 ** (exponent * rng.integers(0, 2, (count, 1)))).astype(np.float32)
    coefficients = basis.project(filters)
    for found, (low, high) in zip(histograms(columns(filters), basis, limits, bins), limits, strict=True):
        for i in range(size):
            expected = np.histogram(coefficients[:, i], bins=bins, range=(low, high))[0]
            np.testing.assert_array_equal(found.counts[i], expected)
        np.testing.assert_array_equal(found.below, (coefficients < low).sum(axis=0))
        np.testing.assert_array_equal(found.above, (coefficients > high).sum(axis=0))


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 300, 699])
def test_weights_that_are_not_finite_are_refused(weight, where):
    filters = make(3, 700)
    basis = Basis.fit(Moments.of(filters), "3x3")
    filters[where, 4] = weight
    with pytest.raises(FloatingPointError, match="not finite"):
        histograms(columns(filters), basis, [(-3, 3), (-1, 1)], 70)


counts = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).poisson(np.random.default_rng(seed).gamma(0.3, 40, size=(5, 9, 70))) + 0.0
)


@given(counts, st.permutations(range(5)))
@settings(max_examples=25)
def test_shift_is_scipys_entropy(counts, order):
    counts[:, :, 0] += 1  # no histogram is empty
    weights = np.linspace(1, 2, 9)
    matrix = kl_shift(counts, weights, -2, 3)
    p = probabilities(counts, -2, 3)
    for i, density in enumerate(counts[:, 4]):
        expected = density / density.sum() / (5 / 70)
        expected[expected == 0] = np.finfo(np.float32).eps
        np.testing.assert_allclose(p[i, 4], expected / expected.sum(), rtol=1e-13)
    expected = np.zeros((5, 5))
    for a in range(5):
        for b in range(5):
            both = entropy(p[a], p[b], axis=1) + entropy(p[b], p[a], axis=1)
            expected[a, b] = (weights * both).sum()
    np.testing.assert_allclose(matrix, expected, rtol=1e-10, atol=1e-10)
    assert (matrix == matrix.T).all()
    assert (matrix.diagonal() == 0).all()
    assert (matrix >= 0).all()
    parts = kl_shift_components(counts, -2, 3)
    np.testing.assert_allclose(np.tensordot(weights, parts, 1), matrix, rtol=1e-10, atol=1e-10)
    turned = kl_shift(counts[list(order)], weights, -2, 3)
    np.testing.assert_allclose(turned, matrix[np.ix_(order, order)], atol=1e-12)


def test_degenerate_filters_have_documented_values():
    zeros = np.zeros((50, 9), np.float32)
    basis = Basis.fit(Moments.of(zeros), "3x3")
    assert (basis.explained_variance_ratio == 0).all()
    same = Basis.fit(Moments.of(np.tile(make(0)[:1], (40, 1))), "3x3")
    assert (same.explained_variance == 0).all()
    with pytest.raises(SelectionError, match="at least 2 filters"):
        Basis.fit(Moments.of(zeros[:1]), "3x3")
    with pytest.raises(SelectionError, match="do not fit 5x5"):
        Basis.fit(Moments.of(zeros), "5x5")
    with pytest.raises(SelectionError, match="no coefficient in the range"):
        kl_shift(np.zeros((2, 9, 70)), np.ones(9), 0, 1)

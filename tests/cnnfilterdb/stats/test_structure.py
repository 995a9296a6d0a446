"""Symmetry, correlation and subspaces against plain definitions, and draws against the moments that they come from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import (
    Basis,
    Initializer,
    Moments,
    first_layer_profile,
    mean_symmetry,
    spatial_correlation,
    subspace_overlap,
)


def plain_symmetry(kernel):
    kernel = kernel / np.linalg.norm(kernel)
    turned = [np.rot90(kernel, 2), np.fliplr(kernel), np.flipud(kernel)]
    if kernel.shape[0] == kernel.shape[1]:
        turned += [kernel.T, np.rot90(kernel, 2).T, np.rot90(kernel), np.rot90(kernel, 3)]
    return 1 - np.mean([np.linalg.norm(one - kernel) for one in turned]) / 2


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000))
def test_symmetry_of_any_size(height, width, seed):
    kernels = np.random.default_rng(seed).normal(size=(3, height, width))
    found = mean_symmetry(kernels)
    np.testing.assert_allclose(found, [plain_symmetry(kernel) for kernel in kernels], atol=1e-7)
    np.testing.assert_allclose(found, mean_symmetry(-3 * kernels[:, ::-1]), atol=1e-7)  # neither scale nor turn matters


def test_symmetry_of_random_and_of_zero_kernels():
    rng = np.random.default_rng(0)
    assert mean_symmetry(rng.normal(size=(20_000, 3, 3))).mean() == pytest.approx(0.41, abs=0.01)
    assert np.isnan(mean_symmetry(np.zeros((1, 3, 3))))[0]


def test_correlation_by_distance():
    rng = np.random.default_rng(1)
    kernels = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12))
    found = spatial_correlation(np.cov(kernels.T), 3, 4)
    correlation = np.corrcoef(kernels.T)
    pairs = [
        correlation[4 * y + x, 4 * v + u]
        for y, x in np.ndindex(3, 4)
        for v, u in np.ndindex(3, 4)
        if (abs(v - y), abs(u - x)) == (1, 2)
    ]
    assert found[1, 2] == pytest.approx(np.mean(pairs))
    assert found[0, 0] == pytest.approx(1)
    assert np.isnan(spatial_correlation(np.diag([1.0, 0.0]), 1, 2)).any()


def test_overlap_of_subspaces():
    rng = np.random.default_rng(2)
    data = [rng.normal(size=(400, 9)) @ rng.normal(size=(9, 9)) for _ in range(3)]
    covariances = np.stack([np.cov(one.T) for one in data])
    found = subspace_overlap(covariances, 3)
    own, other = (np.linalg.svd(one - one.mean(0), full_matrices=False)[2][:3] for one in data[:2])
    centred = data[1] - data[1].mean(0)
    assert found[0, 1] == pytest.approx(((centred @ own.T) ** 2).sum() / ((centred @ other.T) ** 2).sum())
    np.testing.assert_allclose(found.diagonal(), 1)
    np.testing.assert_allclose(subspace_overlap(covariances, 9), 1)
    with pytest.raises(SelectionError, match="dimensions: 10 given; kernels of 9 weights"):
        subspace_overlap(covariances, 10)


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(3)
    return (rng.normal(size=(5000, 9)) @ rng.normal(size=(9, 9)) + 0.3).astype(np.float32)


def test_gaussian_draws_have_the_moments_of_the_selection(trained):
    moments = Moments.of(trained)
    drawn = Initializer(Basis.fit(moments, "3x3")).sample((200, 250, 3, 3), unit="scaled").reshape(-1, 9)
    np.testing.assert_allclose(drawn.mean(axis=0), moments.mean, atol=0.01)
    np.testing.assert_allclose(np.cov(drawn.T), moments.covariance, atol=0.01)


def test_draws_from_histograms_have_their_distribution(trained):
    basis = Basis.fit(Moments.of(trained), "3x3")
    coefficients = basis.project(trained)
    edges = np.linspace(coefficients.min(), coefficients.max(), 71)
    shares = np.stack([np.histogram(column, edges)[0] / len(trained) for column in coefficients.T])
    source = Initializer(basis, edges, shares)
    drawn = source.sample((200, 200, 3, 3), unit="scaled").reshape(-1, 9)
    again = (drawn - basis.mean) @ basis.components.T
    for column, share in zip(again.T, shares, strict=True):
        np.testing.assert_allclose(np.histogram(column, edges)[0] / len(drawn), share, atol=0.008)
    np.testing.assert_allclose(np.cov(drawn.T), Moments.of(trained).covariance, atol=0.02)
    weight = source.sample((64, 100, 3, 3))
    assert weight.dtype == np.float32
    assert (weight**2).mean() == pytest.approx(2 / 900, rel=0.05)


def test_draws_repeat_and_refuse_what_they_cannot_be(trained):
    source = Initializer(Basis.fit(Moments.of(trained), "3x3"))
    np.testing.assert_array_equal(source.sample((2, 3, 3, 3), seed=5), source.sample((2, 3, 3, 3), seed=5))
    assert (source.sample((2, 3, 3, 3), seed=5) != source.sample((2, 3, 3, 3), seed=6)).any()
    assert (source.sample((4, 5, 3, 3)) ** 2).mean() > 0
    with pytest.raises(SelectionError, match=r"shape: \(2, 3, 5, 5\) given; expected"):
        source.sample((2, 3, 5, 5))
    with pytest.raises(SelectionError, match="unit: 'glorot' given"):
        source.sample((2, 3, 3, 3), unit="glorot")
    with pytest.raises(SelectionError, match="all selected kernels are zeros"):
        Initializer(Basis.fit(Moments.of(np.zeros((9, 9), np.float32)), "3x3")).sample((2, 3, 3, 3))


def test_profile_of_a_first_layer():
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(20_000, 3, 3, 5)).astype(np.float32)
    found = first_layer_profile(weight)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, 1 / 45, rtol=0.05)  # the basis is orthonormal: white filters have a flat profile
    ramp = np.zeros((1, 3, 1, 2), np.float32)
    ramp[0, 0], ramp[0, 2] = [1, -1], [-1, 1]  # red against blue, changing from left to right
    assert first_layer_profile(ramp)[1, 0, 1] == pytest.approx(1)
    both = first_layer_profile(np.concatenate([weight[:9], weight[:9, ::-1]]))
    np.testing.assert_allclose(both, first_layer_profile(weight[:9]))  # neither does the order of colours matter
    with pytest.raises(SelectionError, match=r"expected \(out channels, 3, height, width\)"):
        first_layer_profile(np.ones((3, 1, 3, 3), np.float32))

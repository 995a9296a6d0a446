"""Partition of variation, dispersion, scaling and neighbours against regression, analysis of variance and SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import f_oneway

from cnnfilterdb.errors import SelectionError
from cnnfilterdb.stats import dispersion, embedding, gower, neighbour_purity, partition


def squared(points):
    return squareform(pdist(points, "sqeuclidean"))


def dummies(levels):
    return np.eye(levels.max() + 1)[levels]


def explained(points, factors):
    """Sum of squares that a linear model of some factors explains, by least squares on the coordinates."""
    centred = points - points.mean(axis=0)
    if not factors:
        return 0.0
    design = np.concatenate([np.ones((len(points), 1)), *map(dummies, factors)], axis=1)
    fitted = design @ np.linalg.lstsq(design, centred, rcond=None)[0]
    return float((fitted**2).sum())


def test_one_factor_is_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, 40)
    values = rng.normal(size=40) + 0.5 * groups
    term, residual, total = partition(squared(values[:, None]), [groups], permutations=999)
    expected = f_oneway(*(values[groups == group] for group in range(4)))
    assert term.f == pytest.approx(expected.statistic)
    assert term.p == pytest.approx(expected.pvalue, abs=0.03)
    assert (term.df, residual.df, total.df) == (3, 36, 39)
    assert term.r2 + residual.r2 == pytest.approx(1)
    mean_square = residual.ss / 36
    assert term.omega2 == pytest.approx((term.ss - 3 * mean_square) / (total.ss + mean_square))


def test_the_example_of_scikit_bio():
    """The distances of the documentation of skbio.stats.distance.permanova, whose pseudo-F is 2."""
    distances = np.array([[0, 1, 1, 4], [1, 0, 3, 2], [1, 3, 0, 3], [4, 2, 3, 0]], float)
    term, *_ = partition(distances**2, [np.array([0, 0, 1, 1])])
    assert term.f == pytest.approx(2.0)
    assert term.p == pytest.approx(0.67, abs=0.06)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_several_factors_are_a_regression(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(30, 3))
    factors = [rng.integers(0, levels, 30) for levels in (3, 2, 4)]
    shifts = squared(points)
    *sequential, residual, _ = partition(shifts, factors, permutations=1)
    *marginal, _, _ = partition(shifts, factors, permutations=1, marginal=True)
    whole = explained(points, factors)
    for i, (term, other) in enumerate(zip(sequential, marginal, strict=True)):
        assert term.ss == pytest.approx(explained(points, factors[: i + 1]) - explained(points, factors[:i]), abs=1e-8)
        assert other.ss == pytest.approx(whole - explained(points, factors[:i] + factors[i + 1 :]), abs=1e-8)
    assert sum(term.ss for term in sequential) == pytest.approx(whole)
    assert residual.df == 30 - 1 - sum(term.df for term in sequential)


def test_a_factor_that_others_determine_adds_nothing():
    rng = np.random.default_rng(2)
    family = rng.integers(0, 5, 25)
    task = np.array([0, 0, 1, 1, 1])[family]  # each family has one task
    family_term, task_term, *_ = partition(squared(rng.normal(size=(25, 2))), [family, task])
    assert family_term.df == 4
    assert (task_term.df, task_term.ss, task_term.r2) == (0, 0.0, 0.0)
    assert (task_term.f, task_term.p, task_term.omega2) == (0, 1, 0)
    task_first, then, *_ = partition(squared(rng.normal(size=(25, 2))), [task, family])
    assert (task_first.df, then.df) == (1, 3)


def test_as_many_levels_as_models_leave_nothing_to_test():
    shifts = squared(np.random.default_rng(0).normal(size=(6, 2)))
    term, residual, _ = partition(shifts, [np.arange(6)])
    assert (term.df, residual.df, term.r2) == (5, 0, pytest.approx(1))
    assert (term.f, term.p, term.omega2) == (0, 1, 0)


def test_strata_hold_what_differs_between_them():
    rng = np.random.default_rng(4)
    stratum = np.repeat([0, 1], 10)
    label = np.where(np.arange(20) % 10 == 0, 1 - stratum, stratum)
    shifts = squared((5 * stratum + rng.normal(size=20))[:, None])
    free, *_ = partition(shifts, [label])
    held, *_ = partition(shifts, [label], strata=stratum)
    assert free.f == held.f
    assert free.p <= 0.01 < 0.05 < held.p


def test_unequal_spread_is_found():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 25)
    points = rng.normal(size=(50, 2)) * np.where(groups, 3.0, 1.0)[:, None]
    found = dispersion(squared(points), groups)
    centres = np.stack([points[groups == group].mean(axis=0) for group in (0, 1)])
    distances = np.linalg.norm(points - centres[groups], axis=1)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)
    assert found.f == pytest.approx(f_oneway(distances[:25], distances[25:]).statistic)
    assert found.p == 0.001
    equal = dispersion(squared(rng.normal(size=(50, 2))), groups)
    assert equal.p > 0.05


def test_coordinates_give_the_distances_back():
    points = np.random.default_rng(1).normal(size=(12, 3))
    found = embedding(squared(points), 3)
    np.testing.assert_allclose(squared(found.coordinates), squared(points), rtol=1e-8)
    assert found.explained.sum() == pytest.approx(1)
    assert found.negative == pytest.approx(0, abs=1e-9)
    again = embedding(squared(points), 3)
    np.testing.assert_array_equal(found.coordinates, again.coordinates)


def test_purity():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], 8)
    apart = neighbour_purity(squared(rng.normal(size=(24, 2)) + 20 * labels[:, None]), labels)
    assert (apart.share, apart.p, apart.models) == (1.0, 0.001, 24)
    mixed = neighbour_purity(squared(rng.normal(size=(24, 2))), labels)
    assert mixed.p > 0.05
    assert mixed.null_mean == pytest.approx(7 / 23, abs=0.03)
    one = neighbour_purity(squared(rng.normal(size=(24, 2)) + 20 * labels[:, None]), labels, of=1)
    assert (one.share, one.models) == (1.0, 8)


def test_purity_across_families():
    # Two families far apart, each with both labels: the nearest of another family has the same label.
    points = np.array([[0, 0], [0, 1], [9, 0], [9, 1]], float)
    labels, family = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    assert neighbour_purity(squared(points), labels).share == 0
    assert neighbour_purity(squared(points), labels, apart=family).share == 1


def test_what_cannot_be_answered():
    good = squared(np.random.default_rng(0).normal(size=(5, 2)))
    with pytest.raises(SelectionError, match="square"):
        gower(good[:3])
    with pytest.raises(SelectionError, match="symmetric"):
        gower(good + np.triu(np.ones((5, 5))))
    with pytest.raises(SelectionError, match="0 factors"):
        partition(good, [])
    with pytest.raises(SelectionError, match="two groups"):
        dispersion(good, np.zeros(5, int))
    with pytest.raises(SelectionError, match="dimensions: 9"):
        embedding(good, 9)
    with pytest.raises(SelectionError, match="neighbours"):
        neighbour_purity(good, np.zeros(5, int), neighbours=5)

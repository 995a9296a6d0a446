"""Partition of variation, dispersion, scaling and neighbours against vegan, scikit-bio, scikit-learn and regression."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial.distance import pdist, squareform
from scipy.stats import f_oneway
from sklearn.manifold import ClassicalMDS

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import dispersion, embedding, gower, neighbour_purity, partition

DUNE = Path(__file__).parents[2] / "data" / "dune.csv"


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


@pytest.fixture(scope="module")
def dune():
    """The vegetation of 20 dune meadows (Jongman, ter Braak and van Tongeren, 1987), as Bray-Curtis dissimilarities.

    It is the example of the R package vegan, which took it from that book.
    """
    table = pd.read_csv(DUNE)
    codes = {name: pd.factorize(table[name])[0] for name in ("management", "manure")}
    return squareform(pdist(table.drop(columns=list(codes)), "braycurtis")), codes


def test_the_published_results_of_adonis_for_one_factor(dune):
    """adonis2(dune ~ Management, dune.env), as printed in vegan's documentation and in many courses."""
    distances, codes = dune
    term, residual, total = partition(distances**2, [codes["management"]])
    assert (term.df, residual.df, total.df) == (3, 16, 19)
    assert [round(one.ss, 4) for one in (term, residual, total)] == [1.4686, 2.8304, 4.2990]
    assert (round(term.r2, 5), round(residual.r2, 5), round(term.f, 4)) == (0.34161, 0.65839, 2.7672)
    assert 0.001 <= term.p <= 0.01


def test_the_published_results_of_adonis_for_factors_that_share_levels(dune):
    """adonis(dune ~ Manure * Management * ..., dune.env): meadows without manure are those of one management.

    So the second factor has one degree of freedom fewer than levels would give it. The rows of the first two factors
    do not depend on those after them.
    """
    distances, codes = dune
    manure, management, *_ = partition(distances**2, [codes["manure"], codes["management"]], permutations=9)
    assert (manure.df, management.df) == (4, 2)
    assert (round(manure.ss, 4), round(management.ss, 4)) == (1.5239, 0.6118)
    assert (round(manure.r2, 5), round(management.r2, 5)) == (0.35447, 0.14232)


def test_dispersion_where_distances_are_not_euclidean(dune):
    """Anderson (2006), equation 3: what lies along negative eigenvalues is subtracted from the squared distance."""
    distances, codes = dune
    groups = codes["management"]
    values, vectors = np.linalg.eigh(gower(distances**2))
    assert values[0] < -0.01
    squared = np.zeros(len(groups))
    for value, vector in zip(values, vectors.T, strict=True):
        axis = vector * np.sqrt(abs(value))
        centres = np.array([axis[groups == group].mean() for group in range(4)])
        squared += np.sign(value) * (axis - centres[groups]) ** 2
    found = dispersion(distances**2, groups, centre="centroid")
    np.testing.assert_allclose(found.distances, np.sqrt(np.abs(squared)), rtol=1e-6)
    expected = f_oneway(*(found.distances[groups == group] for group in range(4)))
    assert found.f == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue, abs=0.03)


def _median(axes):
    """The spatial median of points (n, k), by minimisation."""
    found = minimize(
        lambda place: np.linalg.norm(axes - place, axis=1).sum(), np.median(axes, axis=0), method="BFGS",
        options={"gtol": 1e-9},
    )  # fmt: skip
    return found.x


def test_spread_about_the_median_where_distances_are_not_euclidean(dune):
    """As vegan's betadisper: a spatial median along the positive eigenvalues, and another along the negative ones."""
    distances, codes = dune
    groups = codes["management"]
    values, vectors = np.linalg.eigh(gower(distances**2))
    squared = np.zeros(len(groups))
    for sign in (1, -1):
        axes = (vectors * np.sqrt((sign * values).clip(0)))[:, sign * values > 1e-9]
        for group in range(4):
            inside = groups == group
            squared[inside] += sign * np.sum((axes[inside] - _median(axes[inside])) ** 2, axis=1)
    found = dispersion(distances**2, groups)
    np.testing.assert_allclose(found.distances, np.sqrt(np.abs(squared)), atol=2e-4)
    expected = f_oneway(*(found.distances[groups == group] for group in range(4)))
    assert found.f == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue, abs=0.03)


def test_one_odd_model_moves_the_median_little():
    points = np.append(np.random.default_rng(0).normal(size=(20, 2)), [[50.0, 0.0]], axis=0)
    points = np.concatenate([points, points[:20]])
    groups = np.repeat([0, 1], [21, 20])
    far = dispersion(squared(points), groups)
    np.testing.assert_allclose(
        far.distances[:21], np.linalg.norm(points[:21] - _median(points[:21]), axis=1), atol=1e-4
    )
    # Without the odd model: hardly another distance of the rest, which a centroid would have moved by 50 / 21.
    assert np.abs(far.distances[:20] - far.distances[21:]).max() < 0.3
    mean = dispersion(squared(points), groups, centre="centroid")
    assert np.abs(mean.distances[:20] - mean.distances[21:]).max() > 2


def test_a_median_may_be_at_a_model():
    corners = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1.0]])
    points = np.concatenate([corners, [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0], [9.0, 5.0]]])
    found = dispersion(squared(points), np.repeat([0, 1], [5, 4]))
    np.testing.assert_allclose(found.distances, [0, 1, 1, 1, 1, 0, 0, 0, 4], atol=1e-6)


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
    found = dispersion(squared(points), groups, centre="centroid")
    centres = np.stack([points[groups == group].mean(axis=0) for group in (0, 1)])
    distances = np.linalg.norm(points - centres[groups], axis=1)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)
    assert found.f == pytest.approx(f_oneway(distances[:25], distances[25:]).statistic)
    assert found.p == 0.001
    about_medians = dispersion(squared(points), groups)
    assert about_medians.p == 0.001
    # permdisp of scikit-bio 0.7 for these points, with test="median" and test="centroid".
    assert about_medians.f == pytest.approx(67.35148838747916, rel=1e-5)
    assert found.f == pytest.approx(68.14802231304571)
    equal = squared(rng.normal(size=(50, 2)))
    assert all(dispersion(equal, groups, centre=centre).p > 0.05 for centre in ("median", "centroid"))


def test_coordinates_give_the_distances_back():
    points = np.random.default_rng(1).normal(size=(12, 3))
    found = embedding(squared(points), 3)
    np.testing.assert_allclose(squared(found.coordinates), squared(points), rtol=1e-8)
    assert found.explained.sum() == pytest.approx(1)
    assert found.negative == pytest.approx(0, abs=1e-9)
    again = embedding(squared(points), 3)
    np.testing.assert_array_equal(found.coordinates, again.coordinates)


def test_coordinates_are_those_of_scikit_learn(dune):
    distances, _ = dune
    found = embedding(distances**2, 3)
    expected = ClassicalMDS(n_components=3, metric="precomputed").fit_transform(distances)
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(expected), rtol=1e-7, atol=1e-9)


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


def test_neighbours_that_are_equally_far_share_the_places():
    apart = 1.0 - np.eye(6)
    labels = np.array([0, 1, 1, 0, 0, 1])
    for order in (np.arange(6), np.array([1, 2, 5, 0, 3, 4])):
        found = neighbour_purity(apart, labels[order], neighbours=2)
        assert (found.share, found.null_mean, found.p) == (pytest.approx(2 / 5), pytest.approx(2 / 5), 1)


@pytest.mark.filterwarnings("error")
@settings(max_examples=60)
@given(st.data())
def test_no_answer_is_nan_or_infinite_and_no_p_is_zero(data):
    """Models at few places, so that many are equal, groups of one model, factors that others determine, strata."""
    count = data.draw(st.integers(3, 9), "models")

    def levels(most, name):
        drawn = data.draw(st.lists(st.integers(0, most), min_size=count, max_size=count), name)
        return np.unique(drawn, return_inverse=True)[1]

    places = levels(3, "places") * data.draw(st.sampled_from([1e-3, 1.0, 1e6]), "unit")
    shifts = squared(places[:, None] * 1.0)
    groups, other, strata = levels(3, "groups"), levels(2, "other"), levels(2, "strata")
    found = [
        *partition(shifts, [groups, other], marginal=data.draw(st.booleans()), strata=strata, permutations=9),
        neighbour_purity(shifts, groups, permutations=9),
        embedding(shifts, 2),
    ]
    sizes = np.bincount(groups)
    if len(sizes) > 1 and sizes.max() > 1:
        found.append(dispersion(shifts, groups, permutations=9))
    for one in found:
        values = dataclasses.asdict(one)
        assert all(np.isfinite(value).all() for value in values.values() if value is not None), one
        assert values.get("p") is None or 0 < values["p"] <= 1, one
    if not places.any():
        assert [one.p for one in found[:2]] == [1, 1]


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
    with pytest.raises(SelectionError, match="centre: 'middle' given"):
        dispersion(good, np.array([0, 0, 1, 1, 1]), centre="middle")
    with pytest.raises(SelectionError, match="dimensions: 9"):
        embedding(good, 9)
    with pytest.raises(SelectionError, match="neighbours"):
        neighbour_purity(good, np.zeros(5, int), neighbours=5)
    two = np.array([0, 0, 1, 1, 1])
    for question in (
        lambda **options: partition(good, [two], **options),
        lambda **options: dispersion(good, two, **options),
        lambda **options: neighbour_purity(good, two, **options),
    ):
        for permutations in (0, -1, 1.5, None, "many"):
            with pytest.raises(SelectionError, match=r"permutations: .* given; expected a whole number of at least 1"):
                question(permutations=permutations)
        for seed in (-1, 1.5, "x"):
            with pytest.raises(SelectionError, match=r"seed: .* given; expected a whole number of at least 0"):
                question(seed=seed)
        assert question(seed=None, permutations=1)

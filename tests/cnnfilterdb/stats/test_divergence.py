"""Divergences between histograms, against SciPy, pair by pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, wasserstein_distance

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import METRICS, kl_shift, kl_shift_components, probabilities

LOW, HIGH, BINS, SIZE = -2.0, 3.0, 20, 4
SYMMETRIC = [metric for metric in METRICS if metric != "directed"]


def make(seed: int, groups: int = 5) -> np.ndarray:
    """Histograms with many empty bins, none of them empty altogether."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.3, 40, size=(groups, SIZE, BINS))) + 0.0
    counts[..., 0] += 1
    return counts


def largest_event(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation by its definition: the most that the probability of any event differs by."""
    difference = p / p.sum() - q / q.sum()
    return difference[difference > 0].sum()


def scipys(metric: str, p: np.ndarray, q: np.ndarray) -> float:
    """A measure of two histograms by SciPy's words for it."""
    with_epsilon = [probabilities(part, LOW, HIGH) for part in (p, q)]
    centres = LOW + (np.arange(BINS) + 0.5) * (HIGH - LOW) / BINS
    match metric:
        case "kl":
            return entropy(*with_epsilon) + entropy(*reversed(with_epsilon))
        case "directed":
            return entropy(*with_epsilon)
        case "jensen_shannon":
            return jensenshannon(p, q) ** 2
        case "total_variation":
            return largest_event(p, q)
        case _:
            return wasserstein_distance(centres, centres, p, q)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_scipys(metric):
    counts, weights = make(1), np.array([0.5, 0.25, 0.0, 2.0])
    matrix = kl_shift(counts, weights, LOW, HIGH, metric=metric)
    parts = kl_shift_components(counts, LOW, HIGH, metric=metric)
    assert parts.shape == (SIZE, 5, 5)
    for a in range(5):
        for b in range(5):
            expected = [scipys(metric, counts[a, i], counts[b, i]) if a != b else 0 for i in range(SIZE)]
            np.testing.assert_allclose(parts[:, a, b], expected, rtol=1e-10, atol=1e-12)
            assert matrix[a, b] == pytest.approx(weights @ expected, rel=1e-10, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.permutations(range(5)), st.sampled_from(METRICS))
@settings(max_examples=60)
def test_a_shift_is_a_divergence(seed, order, metric):
    counts, weights = make(seed), np.linspace(0, 1, SIZE)
    matrix = kl_shift(counts, weights, LOW, HIGH, metric=metric)
    assert (matrix >= 0).all()
    assert (matrix.diagonal() == 0).all()
    if metric in SYMMETRIC:
        assert (matrix == matrix.T).all()
    turned = kl_shift(counts[list(order)], weights, LOW, HIGH, metric=metric)
    np.testing.assert_allclose(turned, matrix[np.ix_(order, order)], atol=1e-12)
    # The number of filters in a group does not matter, nor do components without weight.
    scaled = kl_shift(counts * np.array([1, 7, 0.01, 1e6, 3])[:, None, None], weights, LOW, HIGH, metric=metric)
    np.testing.assert_allclose(scaled, matrix, atol=1e-9)
    without = kl_shift(counts[:, 1:], weights[1:], LOW, HIGH, metric=metric)
    np.testing.assert_allclose(without, matrix, atol=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_measures_bound_each_other(seed):
    counts, one = make(seed)[:, :1], np.ones(1)
    found = {metric: kl_shift(counts, one, LOW, HIGH, metric=metric) for metric in METRICS}
    directed = found["directed"]
    np.testing.assert_allclose(directed + directed.T, found["kl"], rtol=1e-10, atol=1e-12)
    assert (found["jensen_shannon"] <= np.log(2) + 1e-12).all()
    assert (found["total_variation"] <= 1 + 1e-12).all()
    assert (found["wasserstein"] <= (HIGH - LOW) * found["total_variation"] + 1e-12).all()
    # Pinsker's inequality; the epsilon in empty bins changes little.
    assert (2 * found["total_variation"] ** 2 <= directed + 1e-5).all()


def test_groups_without_common_ground_and_equal_groups():
    counts = np.zeros((3, 1, BINS))
    counts[0, 0, 0] = counts[2, 0, 0] = 5
    counts[1, 0, -1] = 9
    one = np.ones(1)
    found = {metric: kl_shift(counts, one, LOW, HIGH, metric=metric) for metric in METRICS}
    assert all(matrix[0, 2] == 0 for matrix in found.values())
    assert found["jensen_shannon"][0, 1] == pytest.approx(np.log(2))
    assert found["total_variation"][0, 1] == pytest.approx(1)
    assert found["wasserstein"][0, 1] == pytest.approx((HIGH - LOW) * (BINS - 1) / BINS)
    assert 10 < found["directed"][0, 1] < found["kl"][0, 1] < 100  # large, but finite


@pytest.mark.parametrize("metric", METRICS)
def test_one_group_and_groups_of_one_filter(metric):
    counts = make(2)
    np.testing.assert_array_equal(kl_shift(counts[:1], np.ones(SIZE), LOW, HIGH, metric=metric), [[0]])
    single = np.zeros((4, SIZE, BINS))
    single[np.arange(4)[:, None], np.arange(SIZE), np.arange(4)[:, None] + np.arange(SIZE)] = 1
    matrix = kl_shift(single, np.ones(SIZE), LOW, HIGH, metric=metric)
    assert np.isfinite(matrix).all()
    assert (matrix[~np.eye(4, dtype=bool)] > 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_histogram_is_refused_whatever_the_metric(metric):
    counts = make(3)
    counts[2, 1] = 0
    with pytest.raises(SelectionError, match="no coefficient in the range"):
        kl_shift(counts, np.ones(SIZE), LOW, HIGH, metric=metric)


def test_an_unknown_metric_is_refused():
    with pytest.raises(SelectionError, match="'hellinger' is not one of kl, directed"):
        kl_shift(make(4), np.ones(SIZE), LOW, HIGH, metric="hellinger")

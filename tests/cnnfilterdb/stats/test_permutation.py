"""Permutation tests against complete enumeration, and their error rates by simulation."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import false_discovery_control

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import METRICS, adjusted_bh, adjusted_holm, kl_shift, overall_test, paired_shift, shift_test

WEIGHTS = np.array([0.7, 0.3])
RANGE = (-1.0, 1.0)


def models(rng, count, tilt=0.0, filters=400):
    """Histograms of models that differ from each other; `tilt` moves the distribution of their group."""
    base = np.array([0.1, 0.2, 0.4, 0.2, 0.1]) * np.exp(0.3 * tilt * np.array([-1, -0.5, 0, 0.5, 1]))
    shares = rng.dirichlet(60 * base / base.sum(), size=(count, 2))
    return np.array([[rng.multinomial(filters, share) for share in model] for model in shares], float)


@pytest.mark.parametrize("metric", METRICS)
def test_paired_shift_is_the_cell_of_the_matrix(metric):
    rng = np.random.default_rng(3)
    counts = models(rng, 6)
    counts[2, 0, :3] = 0
    matrix = kl_shift(counts, WEIGHTS, *RANGE, metric=metric)
    first, second = np.triu_indices(6, 1)
    found = paired_shift(counts[first], counts[second], WEIGHTS, *RANGE, metric=metric)
    np.testing.assert_allclose(found, matrix[first, second], rtol=1e-9, atol=1e-12)


def enumerated(counts, chosen, metric="kl"):
    """p by all ways to choose which models belong to the first group."""
    count = len(counts)

    def shift(inside):
        inside = list(inside)
        rest = [i for i in range(count) if i not in inside]
        sums = np.stack([counts[inside].sum(axis=0), counts[rest].sum(axis=0)])
        return kl_shift(sums, WEIGHTS, *RANGE, metric=metric)[0, 1]

    observed = shift(chosen)
    null = np.array([shift(inside) for inside in combinations(range(count), len(chosen))])
    return observed, (null >= observed * (1 - 1e-9)).mean(), null


@pytest.mark.parametrize("metric", ["kl", "wasserstein"])
def test_random_permutations_approach_all_of_them(metric):
    rng = np.random.default_rng(5)
    counts = np.concatenate([models(rng, 4), models(rng, 4, tilt=1.0), models(rng, 3, tilt=-2)])
    groups = np.array([0, 1, 0, 1, 0, 1, 0, 1, 2, 2, 2])
    found = shift_test(counts, groups, WEIGHTS, *RANGE, metric=metric, permutations=4000)
    assert found.arrangements.tolist() == [70, 35, 35]
    for row, (a, b) in enumerate(zip(found.first, found.second, strict=True)):
        pair = np.flatnonzero((groups == a) | (groups == b))
        inside = np.flatnonzero(groups[pair] == a)
        observed, p, null = enumerated(counts[pair], inside.tolist(), metric)
        assert found.shift[row] == pytest.approx(observed, rel=1e-9)
        assert found.p[row] == pytest.approx(p, abs=0.03)
        assert found.null_mean[row] == pytest.approx(null.mean(), rel=0.05)
        assert found.null_high[row] == pytest.approx(np.quantile(null, 0.95), rel=0.2)


def test_labels_are_exchanged_within_strata_only():
    rng = np.random.default_rng(7)
    counts = np.concatenate([models(rng, 4, tilt=3), models(rng, 4, tilt=-3)])
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    strata = np.array([9, 9, 9, 9, 4, 4, 4, 4])  # the strata differ, the groups within them do not
    free = shift_test(counts, groups, WEIGHTS, *RANGE, permutations=2000)
    held = shift_test(counts, groups, WEIGHTS, *RANGE, strata=strata, permutations=2000)
    assert (free.arrangements[0], held.arrangements[0]) == (70, 16)
    observed, _, _ = enumerated(counts, [0, 1, 2, 7])
    assert held.shift[0] == pytest.approx(observed)
    null = []
    for out in range(4):
        for into in range(4, 8):
            chosen = [i for i in range(4) if i != out] + [into]
            null.append(enumerated(counts, chosen)[0])
    assert held.null_mean[0] == pytest.approx(np.mean(null), rel=0.05)
    assert held.p[0] == pytest.approx(np.mean(np.array(null) >= observed * (1 - 1e-9)), abs=0.05)


def test_where_nothing_can_be_exchanged_chance_explains_everything():
    rng = np.random.default_rng(1)
    counts = models(rng, 4)
    one = shift_test(counts[:2], np.array([0, 1]), WEIGHTS, *RANGE)
    assert one.arrangements.tolist() == [2]
    assert one.p.tolist() == [1.0]  # both arrangements are the same shift
    held = shift_test(counts, np.array([0, 0, 1, 1]), WEIGHTS, *RANGE, strata=np.array([0, 0, 1, 1]))
    assert (held.arrangements[0], held.p[0]) == (1, 1)
    # Not nearly: an excess of rounding alone would be printed as a number.
    assert held.null_mean[0] == held.null_high[0] == held.shift[0]
    with pytest.raises(SelectionError, match="at least two"):
        shift_test(counts, np.zeros(4, int), WEIGHTS, *RANGE)
    with pytest.raises(SelectionError, match="permutations: 0"):
        shift_test(counts, np.array([0, 0, 1, 1]), WEIGHTS, *RANGE, permutations=0)


def test_p_is_not_below_what_all_arrangements_allow():
    """Of few random permutations, fewer than expected may be the observed arrangement."""
    counts = np.concatenate([models(np.random.default_rng(2), 1, tilt=8.0), models(np.random.default_rng(3), 5)])
    found = [
        shift_test(counts, np.array([0, 1, 1, 1, 1, 1]), WEIGHTS, *RANGE, permutations=19, seed=seed)
        for seed in range(20)
    ]
    assert {one.arrangements[0] for one in found} == {6}
    smallest = min(one.p[0] for one in found)
    assert smallest == pytest.approx(1 / 6)
    assert any(one.p[0] > 1 / 6 for one in found)


def test_p_is_never_zero_and_the_same_seed_gives_the_same_result():
    rng = np.random.default_rng(2)
    counts = np.concatenate([models(rng, 6, tilt=4), models(rng, 6, tilt=-4)])
    groups = np.repeat([0, 1], 6)
    first, again = (shift_test(counts, groups, WEIGHTS, *RANGE, permutations=99, seed=8) for _ in range(2))
    assert 0.01 <= first.p[0] == again.p[0] <= 0.03
    assert first.null_mean[0] == again.null_mean[0] < first.shift[0]
    overall = overall_test(counts, groups, WEIGHTS, *RANGE, permutations=99, seed=8)
    assert 0.01 <= overall.p <= 0.03
    assert overall.shift == pytest.approx(first.shift[0])


@pytest.mark.thorough
def test_error_rates_and_power():
    """Type I error at 5 % and power, each from 400 simulated pairs of six models, for which chance allows +-2.1 %."""
    rng = np.random.default_rng(11)
    groups = np.repeat([0, 1], 6)

    def rejected(tilt):
        found = 0
        for number in range(400):
            counts = np.concatenate([models(rng, 6), models(rng, 6, tilt=tilt)])
            found += shift_test(counts, groups, WEIGHTS, *RANGE, permutations=199, seed=number).p[0] <= 0.05
        return found / 400

    errors, weak, strong = rejected(0), rejected(0.7), rejected(2.5)
    assert 0.028 <= errors <= 0.073
    assert errors < weak < strong
    assert strong > 0.9


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12))
def test_adjusted_p_values(values):
    p = np.array(values)
    np.testing.assert_allclose(adjusted_bh(p), false_discovery_control(p), rtol=1e-12)
    order = np.argsort(p, kind="stable")
    holm, highest = np.empty(len(p)), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        holm[place] = highest
    np.testing.assert_allclose(adjusted_holm(p), holm, rtol=1e-12)


def test_published_adjusted_p_values():
    """The fifteen p-values of Benjamini and Hochberg (1995), section 4.1, as statsmodels 0.15 adjusts them.

    At 5 %, the paper rejects four hypotheses by the false discovery rate, and three by Bonferroni's and Holm's methods.
    """
    p = np.array([0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344,
                  0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0])  # fmt: skip
    holm = [0.0015, 0.0056, 0.0247, 0.114, 0.2211, 0.278, 0.278, 0.278, 0.3213, 1, 1, 1, 1, 1, 1]
    bh = [0.0015, 0.003, 0.0095, 0.035625, 0.0603, 0.063857, 0.063857, 0.0645, 0.0765, 0.486,
          0.581182, 0.714875, 0.753231, 0.813214, 1]  # fmt: skip
    np.testing.assert_allclose(adjusted_holm(p), holm, atol=1e-6)
    np.testing.assert_allclose(adjusted_bh(p), bh, atol=1e-6)
    assert ((adjusted_holm(p) <= 0.05).sum(), (adjusted_bh(p) <= 0.05).sum()) == (3, 4)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from([1.0, 0.1, 3.0, 1e6]), min_size=4, max_size=9))
def test_equal_models_do_not_differ(seed, scales):
    model = models(np.random.default_rng(seed), 1)[0]
    counts = np.array(scales)[:, None, None] * model
    found = shift_test(counts, np.arange(len(scales)) % 2, WEIGHTS, *RANGE, permutations=9)
    overall = overall_test(counts, np.arange(len(scales)) % 2, WEIGHTS, *RANGE, permutations=9)
    assert (found.p[0], overall.p) == (1, 1)
    assert found.shift[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.filterwarnings("error")
@settings(max_examples=40)
@given(st.data())
def test_no_answer_is_nan_and_no_p_is_zero(data):
    """Groups of one model, strata in which nothing can be exchanged, empty bins and histograms."""
    count = data.draw(st.integers(2, 9), "models")
    few = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    groups, strata = (np.unique(data.draw(few), return_inverse=True)[1] for _ in range(2))
    counts = data.draw(arrays(np.float64, (count, 2, 5), elements=st.sampled_from([0, 1, 7, 1e6])), "counts")
    if groups.max() == 0:
        with pytest.raises(SelectionError, match="at least two"):
            shift_test(counts, groups, WEIGHTS, *RANGE)
        return
    settings_of = {"strata": strata, "permutations": 9, "metric": data.draw(st.sampled_from(METRICS), "metric")}
    found = shift_test(counts, groups, WEIGHTS, *RANGE, **settings_of)
    overall = overall_test(counts, groups, WEIGHTS, *RANGE, **settings_of)
    for values in (found.shift, found.null_mean, found.null_high, found.p, [overall.shift, overall.null_high]):
        assert np.isfinite(values).all()
    assert (found.p > 0).all()
    assert overall.p > 0
    assert (found.p[found.arrangements == 1] == 1).all()
    for adjusted in (adjusted_holm(found.p), adjusted_bh(found.p)):
        assert ((found.p <= adjusted) & (adjusted <= 1)).all()


@pytest.mark.parametrize("test", [shift_test, overall_test])
def test_what_cannot_be_answered(test):
    counts = models(np.random.default_rng(0), 6)
    groups = np.repeat([0, 1], 3)
    for permutations in (0, -1, 1.5, None):
        with pytest.raises(SelectionError, match=r"permutations: .* given; expected a whole number of at least 1"):
            test(counts, groups, WEIGHTS, *RANGE, permutations=permutations)
    for seed in (-1, 1.5, "x"):
        with pytest.raises(SelectionError, match=r"seed: .* given; expected a whole number of at least 0"):
            test(counts, groups, WEIGHTS, *RANGE, seed=seed)
    assert test(counts, groups, WEIGHTS, *RANGE, permutations=1, seed=None).p


def test_so_many_models_that_their_arrangements_are_beyond_a_float():
    counts = np.random.default_rng(0).multinomial(50, [0.5, 0.5], size=2200)[:, None, :].astype(float)
    found = shift_test(counts, np.repeat([0, 1], 1100), np.ones(1), 0, 1, permutations=9)
    assert found.arrangements.tolist() == [float("inf")]
    assert 0.1 <= found.p[0] <= 1

"""Bootstrap intervals of shifts, against a plain loop with the same draws."""

import numpy as np
import pytest

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import METRICS, bootstrap, bootstrap_shift, kl_shift

LOW, HIGH, BINS, SIZE = -1.0, 1.0, 6, 3
GROUPS = np.array([0, 1, 0, 2, 1, 1, 0, 0])  # of 4, 3 and 1 models
WEIGHTS = np.array([0.7, 0.2, 0.1])


def make(models=8):
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(1.0, 30, size=(models, SIZE, BINS))) + 1.0


def plain_loop(counts, groups, metric, samples, level, seed):
    """Percentiles of shifts between resamples, one resample after the other."""
    rng = np.random.default_rng(seed)
    number = groups.max() + 1
    rows = [np.flatnonzero(groups == group) for group in range(number)]
    draws = [rng.multinomial(len(row), np.full(len(row), 1 / len(row)), samples) for row in rows]
    shifts = []
    for sample in range(samples):
        drawn = []
        for row, draw in zip(rows, draws, strict=True):
            chosen = [model for model, times in zip(row, draw[sample], strict=True) for _ in range(times)]
            assert len(chosen) == len(row)
            drawn.append(sum(counts[model] for model in chosen))
        shifts.append(kl_shift(np.array(drawn), WEIGHTS, LOW, HIGH, metric=metric))
    return np.quantile(shifts, [(1 - level) / 2, (1 + level) / 2], axis=0)


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_are_those_of_a_plain_loop(metric):
    counts = make()
    found = bootstrap_shift(counts, GROUPS, WEIGHTS, LOW, HIGH, metric=metric, samples=60, level=0.9, seed=5)
    low, high = plain_loop(counts, GROUPS, metric, 60, 0.9, 5)
    for ends, expected in ((found.low, low), (found.high, high)):
        np.testing.assert_allclose(ends[:2, :2], expected[:2, :2], rtol=1e-10, atol=1e-12)
        assert (ends.diagonal() == 0).all()
        assert np.isnan(ends[2, :2]).all()
        assert np.isnan(ends[:2, 2]).all()
    assert (found.low <= found.high)[:2, :2].all()
    if metric != "directed":
        np.testing.assert_array_equal(found.low, found.low.T)


def test_chunks_change_nothing(monkeypatch):
    whole = bootstrap_shift(make(), GROUPS, WEIGHTS, LOW, HIGH, samples=50)
    monkeypatch.setattr(bootstrap, "_CHUNK", 7 * 3 * SIZE * BINS)  # seven resamples at a time: the last is not full
    parts = bootstrap_shift(make(), GROUPS, WEIGHTS, LOW, HIGH, samples=50)
    np.testing.assert_array_equal(whole.low, parts.low)
    np.testing.assert_array_equal(whole.high, parts.high)


def test_the_seed_decides_and_a_higher_level_is_wider():
    def interval(**options):
        return bootstrap_shift(make(), GROUPS, WEIGHTS, LOW, HIGH, samples=200, **options)

    first, again, other = interval(seed=1), interval(seed=1), interval(seed=2)
    np.testing.assert_array_equal(first.high, again.high)
    assert first.high[0, 1] != other.high[0, 1]
    wide, narrow = interval(level=0.99), interval(level=0.5)
    assert wide.low[0, 1] < narrow.low[0, 1] < narrow.high[0, 1] < wide.high[0, 1]


def test_models_that_are_alike_leave_no_doubt():
    counts = np.repeat(make(models=2), 3, axis=0)
    groups = np.array([0, 0, 0, 1, 1, 1])
    found = bootstrap_shift(counts, groups, WEIGHTS, LOW, HIGH, samples=20)
    shift = kl_shift(counts[[0, 3]], WEIGHTS, LOW, HIGH)
    np.testing.assert_allclose(found.low, shift, rtol=1e-10)
    np.testing.assert_allclose(found.high, shift, rtol=1e-10)


def test_resamples_of_models_outside_the_range_do_not_count():
    counts = make(models=4)
    counts[1] = 0  # nothing of it lies in the range: one resample in four of its group is empty
    groups = np.array([0, 0, 1, 1])
    found = bootstrap_shift(counts, groups, WEIGHTS, LOW, HIGH, samples=100)
    assert np.isfinite([found.low[0, 1], found.high[0, 1]]).all()
    # All that is left of the group is its other model.
    alone = bootstrap_shift(counts[[0, 0, 2, 3]], groups, WEIGHTS, LOW, HIGH, samples=400)
    assert found.high[0, 1] == pytest.approx(alone.high[0, 1], rel=0.05)


def test_one_group_of_one_model():
    found = bootstrap_shift(make(models=1), np.array([0]), WEIGHTS, LOW, HIGH, samples=3)
    assert found.low.tolist() == found.high.tolist() == [[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "expected a whole number of at least 2"),
        ({"level": 0}, "a share between 0 and 1"),
        ({"level": 95}, "a share between 0 and 1"),
        ({"metric": "x", "samples": 2}, "'x' is not one of"),
        ({"samples": 100_000_000}, "at most 11111111 samples"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(SelectionError, match=message):
        bootstrap_shift(make(), GROUPS, WEIGHTS, LOW, HIGH, **options)

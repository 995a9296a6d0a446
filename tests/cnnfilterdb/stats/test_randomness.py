"""The randomness threshold against torchconvquality's curve, and against random kernels that are really drawn."""

import csv
import importlib.util
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torchconvquality as tcq
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from cnnfilterdb.stats.randomness import published_threshold, randomness_threshold, simulated_weights


@pytest.fixture(scope="module")
def script():
    """The script that wrote the table."""
    path = Path(__file__).parents[3] / "scripts" / "randomness.py"
    spec = importlib.util.spec_from_file_location("randomness_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table():
    """The shipped table: weights -> [(kernels, entropy), ...]."""
    text = files("cnnfilterdb.stats").joinpath("randomness.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        found.setdefault(int(row["weights"]), []).append((int(row["kernels"]), float(row["entropy"])))
    return found


def drawn(kernels, weights, draws, seed=0):
    """Variance entropies of sets of random normal kernels, from their singular values."""
    sets = np.random.default_rng(seed).normal(size=(draws, kernels, weights))
    variances = np.linalg.svd(sets - sets.mean(axis=1, keepdims=True), compute_uv=False) ** 2
    p = np.maximum(variances / variances.sum(axis=1, keepdims=True), 1e-300)
    return -(p * np.log10(p)).sum(axis=1)


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [(1, -0.16603), (2, -0.00886), (4, 0.23568), (9, 0.55151), (16, 0.72208), (64, 0.90556), (192, 0.93978),
     (1024, 0.94994), (4096, 0.95107), (2**60, 0.95130)],
)  # fmt: skip
def test_published_values(kernels, expected):
    assert published_threshold(kernels) == pytest.approx(expected, abs=5e-6)


@given(st.integers(1, 10**9))
@settings(max_examples=100)
def test_for_3x3_it_is_torchconvqualitys_curve(kernels):
    assert randomness_threshold(kernels) == pytest.approx(tcq._entropy_max_threshold(kernels), abs=1e-12)
    rounded = 1.26 / (1 + np.exp(-0.89 * (np.log2(kernels) - 2.30))) - 0.31
    assert randomness_threshold(kernels) == pytest.approx(rounded, abs=0.0015)


@pytest.mark.parametrize(("kernels", "weights"), [(6, 4), (48, 4), (24, 25), (70, 25), (200, 25), (16, 49)])
def test_for_other_sizes_it_is_the_smallest_of_a_thousand_sets(kernels, weights):
    found = randomness_threshold(kernels, weights)
    sample = drawn(kernels, weights, 1000)
    # The smallest of 1,000 scatters by about as much as the smallest few lie apart.
    smallest = np.sort(sample)[:20]
    assert abs(found - smallest[0]) <= 2 * (smallest[-1] - smallest[0])
    assert (sample < found).mean() <= 0.01


@given(st.sampled_from([weights for weights in simulated_weights() if weights != 9]), st.integers(3, 10**7))
@settings(max_examples=200)
def test_it_rises_with_the_number_of_kernels_and_stays_below_the_largest_entropy(weights, kernels):
    found, more = randomness_threshold(kernels, weights), randomness_threshold(kernels + 1, weights)
    assert 0 < found <= more < np.log10(weights)
    assert found < np.log10(min(kernels - 1, weights)) or kernels == 3


def test_beyond_the_table_it_continues_without_a_step(table):
    for weights, points in table.items():
        last, entropy = points[-1]
        assert last >= 64 * weights
        if weights == 9:  # the published curve goes before it
            continue
        assert randomness_threshold(last, weights) == pytest.approx(entropy, abs=1e-12)
        assert 0 < randomness_threshold(last + 1, weights) - entropy < 2 * (np.log10(weights) - entropy) / last
        assert randomness_threshold(10**9, weights) == pytest.approx(np.log10(weights), abs=1e-6)
    # It does fall as 1 / n there.
    assert randomness_threshold(2000, 4) == pytest.approx(drawn(2000, 4, 1000).min(), abs=1e-3)


def test_it_has_no_value_where_there_is_none():
    assert np.isnan(randomness_threshold(100, 1))
    assert np.isnan(randomness_threshold(100, 10_007))
    assert 10_007 not in simulated_weights()
    assert {4, 9, 25, 49, 121, 31, 961, 1024} <= set(simulated_weights())
    for weights in simulated_weights():
        assert randomness_threshold(1, weights) <= 0
        assert randomness_threshold(2, weights) <= 0


def test_the_script_draws_from_the_same_distribution(script):
    for kernels, weights in [(5, 9), (40, 9), (60, 25)]:
        simulated = script.entropies(kernels, weights, 3000, np.random.default_rng(1))
        assert ks_2samp(simulated, drawn(kernels, weights, 3000)).pvalue > 1e-3


def test_the_script_estimates_the_smallest_of_so_many_values(script):
    values = np.arange(1.0, 8.0)
    # All 35 choices of three of seven values, by hand.
    from itertools import combinations

    expected = np.mean([min(choice) for choice in combinations(values, 3)])
    assert script.smallest(values, 3) == pytest.approx(expected, rel=1e-12)


def test_the_table_is_what_the_script_computes(script, table):
    assert sorted(table) == script.WEIGHTS
    for weights, points in table.items():
        assert [kernels for kernels, _ in points] == script.sizes(weights)
    for weights, kernels in [(4, 16), (6, 3), (16, 64)]:
        assert script.threshold(kernels, weights) == pytest.approx(dict(table[weights])[kernels], abs=2e-6)


def test_the_fit_of_the_simulation_is_the_published_curve(script, capsys):
    """What the script's --check reports: the same method gives the authors' curve to less than 0.01."""
    script.check()
    _, curves, values = capsys.readouterr().out.splitlines()
    assert float(curves.split()[-1]) < 0.01
    assert float(values.split()[-1]) < 0.025

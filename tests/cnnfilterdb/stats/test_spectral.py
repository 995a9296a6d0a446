"""Spectra of layers against WeightWatcher, power laws and what has no spectrum."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kurtosis

from cnnfilterdb.stats import layer_spectrum, power_law

#: alpha, alpha_ks, alpha_hat, lambda_max and stable_rank that WeightWatcher 0.7.7 computes, with min_evals=1, of a
#: torch.nn.Conv2d with these weights. Eight layers of trained models, which are not part of the tests, agree to 3e-14.
WEIGHTWATCHER = {
    "gaussian": (7.143996383362873, 0.1109636359711299, 11.80306377589423, 44.89163454019546, 51.20684308423731),
    "small": (3.3275102210521803, 0.14920553285632, 2.8501852083151107, 7.187070448196862, 8.707237949134056),
    "heavy": (2.0817979875164463, 0.056096607344822136, 4.462333168424459, 139.15525361132762, 6.906046223458052),
}


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return {
        "gaussian": rng.standard_normal((32, 16, 3, 3)).astype(np.float32),
        "small": rng.standard_normal((8, 2, 3, 3)).astype(np.float32),
        "heavy": (0.1 * rng.standard_t(2, (24, 40, 3, 5))).astype(np.float32),
    }


@pytest.mark.parametrize("name", WEIGHTWATCHER)
def test_weightwatcher_agrees(weights, name):
    found = layer_spectrum(weights[name])
    values = found.alpha, found.alpha_ks, found.alpha_hat, found.lambda_max, found.stable_rank
    np.testing.assert_allclose(values, WEIGHTWATCHER[name], rtol=1e-9)


def test_the_largest_eigenvalue_is_half_the_squared_spectral_norm(weights):
    weight = weights["heavy"]
    norms = [np.linalg.norm(weight[:, :, y, x].astype(float), 2) for y, x in np.ndindex(3, 5)]
    assert layer_spectrum(weight).lambda_max == pytest.approx(max(norms) ** 2 / 2)


def test_tails_of_the_weights(weights):
    for weight in weights.values():
        found = layer_spectrum(weight)
        assert found.kurtosis == pytest.approx(kurtosis(weight.ravel().astype(float)))
        flat = np.abs(weight.astype(float)).ravel()
        assert found.peak_ratio == pytest.approx(flat.max() / np.quantile(flat, 0.99))


@pytest.mark.parametrize("exponent", [1.5, 2.5, 4.0])
def test_a_power_law_above_a_uniform_bulk_is_found(exponent):
    rng = np.random.default_rng(4)
    tail = rng.random(1500) ** (-1 / (exponent - 1))
    found = power_law(np.concatenate([tail, rng.random(1000)]))
    assert found is not None
    assert found[0] == pytest.approx(exponent, rel=0.1)
    assert found[2] == pytest.approx(1, rel=0.3)


@given(
    st.lists(st.floats(0.01, 1e4) | st.integers(1, 5).map(float), min_size=8, max_size=200), st.integers(0, 2**32 - 1)
)
def test_the_tail_is_the_one_of_the_definition(values, seed):
    """Every start is tried in full, as the paper says; the product refuses most of them early."""
    values = np.sort(np.concatenate([values, np.random.default_rng(seed).pareto(2, len(values)) + 1]))
    small = len(values) < 20
    best = None
    for start in range(len(values) - (7 if small else 1)):
        tail = values[start:]
        logs = np.log(tail / tail[0])
        if logs.sum() <= 1e-12:
            break
        alpha = 1 + (len(tail) - small) / logs.sum()
        distance = np.abs(1 - np.exp((1 - alpha) * logs) - np.arange(len(tail)) / len(tail)).max()
        if best is None or distance < best[1] - 1e-12:
            best = alpha, distance, tail[0]
    found = power_law(values)
    assert found is not None
    assert found[1] == pytest.approx(best[1], abs=1e-9)
    if found[2] == best[2]:  # tails that fit as well as each other differ by rounding
        assert found[0] == pytest.approx(best[0])


def test_what_has_no_spectrum():
    zeros = layer_spectrum(np.zeros((8, 8, 3, 3), np.float32))
    assert (zeros.alpha, zeros.alpha_hat, zeros.lambda_max, zeros.stable_rank) == (None,) * 4
    assert (zeros.kurtosis, zeros.peak_ratio) == (None, None)
    few = layer_spectrum(np.ones((1, 1, 1, 3), np.float32))
    assert few.alpha is None
    assert few.stable_rank == pytest.approx(3)
    assert power_law(np.ones(50)) is None
    assert power_law(np.arange(1.0, 8.0)) is None


@given(arrays(np.float32, st.integers(1, 400), elements=st.floats(-4, 4, width=32)))
def test_the_peak_ratio_is_that_of_the_percentile(values):
    high = np.quantile(np.abs(values.astype(np.float64)), 0.99)
    found = layer_spectrum(values.reshape(1, -1, 1, 1)).peak_ratio
    assert found == (pytest.approx(np.abs(values.astype(np.float64)).max() / high) if high > 0 else None)


def test_other_threads_work_meanwhile():
    """One long call that holds the interpreter lock would leave the other processors without work."""
    weight = np.random.default_rng(0).normal(size=(1200, 1200, 1, 1)).astype(np.float32)
    pauses, done = [], threading.Event()

    def tick():
        last = time.perf_counter()
        while not done.wait(0.001):
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    ticking = threading.Thread(target=tick)
    ticking.start()
    start = time.perf_counter()
    layer_spectrum(weight)
    took = time.perf_counter() - start
    done.set()
    ticking.join()
    assert max(pauses) < took / 2

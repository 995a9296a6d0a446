"""Sketches estimate cosines and distances of weights with the accuracy that is stated."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnfilterdb.stats import SKETCH_LEVELS, SKETCH_NUMBERS, sketch_cosine, weight_sketch

ERROR = SKETCH_NUMBERS**-0.5


def centred(kernels):
    return (kernels - kernels.mean(axis=0, dtype=np.float64)).ravel()


def exact(a, b):
    x, y = centred(a), centred(b)
    return x @ y / np.sqrt((x @ x) * (y @ y))


def estimated(a, b):
    return sketch_cosine(weight_sketch(a).numbers, weight_sketch(b).numbers)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.sampled_from([(200, 9), (3000, 9), (64, 49), (5000, 1)]), st.floats(0.01, 3))
def test_the_error_of_a_cosine_is_within_six_standard_errors(seed, shape, noise):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape) * rng.exponential(size=shape) + rng.normal(size=shape[1])
    b = a + noise * rng.standard_normal(shape)
    a, b = a.astype(np.float32), b.astype(np.float32)
    cosine = exact(a, b)
    assert abs(estimated(a, b) - cosine) <= 6 * ERROR * (1 - cosine**2) + 1e-6
    # Small distances are estimated as well as large ones.
    ratio = (1 - estimated(a, b)) / (1 - cosine)
    assert 0.15 < ratio < 2.5


def test_unrelated_weights_have_the_stated_standard_error():
    rng = np.random.default_rng(0)
    found = [estimated(*rng.standard_normal((2, 400, 9))) for _ in range(400)]
    assert np.mean(found) == pytest.approx(0, abs=4 * ERROR / 20)
    assert np.std(found) == pytest.approx((SKETCH_NUMBERS**-1 + 1 / 3600) ** 0.5, rel=0.15)


def test_distances_have_the_stated_error():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((500, 9))
    children = [a + 0.02 * rng.standard_normal(a.shape) for _ in range(200)]
    ratio = [np.sqrt((1 - estimated(a, child)) / (1 - exact(a, child))) for child in children]
    assert np.mean(ratio) == pytest.approx(1, abs=0.03)
    assert np.std(ratio) == pytest.approx((2 * SKETCH_NUMBERS) ** -0.5, rel=0.3)


def test_what_unrelated_layers_have_in_common_does_not_make_them_alike():
    rng = np.random.default_rng(2)
    centre = np.array([0, 1, 0, 1, 9, 1, 0, 1, 0])
    a, b = centre + rng.standard_normal((2, 500, 9))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.8
    assert abs(estimated(a, b)) < 5 * ERROR


@given(st.integers(1, 40), st.floats(1e-6, 1e6), st.booleans())
def test_scale_and_sign(seed, factor, negative):
    a = np.random.default_rng(seed).standard_normal((30, 9)).astype(np.float32)
    sketch = weight_sketch(a)
    assert sketch.norm == pytest.approx(np.linalg.norm(centred(a)), rel=1e-6)
    assert np.abs(sketch.numbers).max() == SKETCH_LEVELS
    other = weight_sketch((a * factor * (-1 if negative else 1)).astype(np.float32))
    assert sketch_cosine(sketch.numbers, other.numbers) == pytest.approx(-1 if negative else 1, abs=1e-5)


@pytest.mark.parametrize("kernels", [np.zeros((0, 9)), np.zeros((4, 9)), np.full((4, 9), 0.1), np.ones((1, 9))])
def test_kernels_that_are_all_the_same_have_no_direction(kernels):
    found = weight_sketch(kernels.astype(np.float32))
    assert found.norm == 0
    assert not found.numbers.any()


def test_sketches_never_change():
    """Stored ones are compared with new ones: by another version, and on another machine."""
    weight = (np.arange(20_000) * 7919 % 1009).astype(np.float32).reshape(-1, 8)
    numbers = weight_sketch(weight).numbers.astype("<i2")
    assert hashlib.sha256(numbers.tobytes()).hexdigest()[:16] == "e23d9e71fa54a2a9"

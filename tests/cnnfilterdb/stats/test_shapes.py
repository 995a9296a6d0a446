"""Named shapes: known kernels get their names, whatever their scale, sign and mean; random ones rarely do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.stats import SHAPE_COSINE, SHAPES, by_chance, named_shapes, shape_bank


def name(kernel):
    height, width = np.shape(kernel)
    found = named_shapes(np.float32(kernel).reshape(1, -1), height, width)
    return "other" if found.shape[0] < 0 else SHAPES[found.shape[0]]


def of_scipy(size, sigma, order):
    """A derivative of a Gaussian as SciPy samples it."""
    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    return ndimage.gaussian_filter(impulse, sigma, order=order, mode="constant")


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("sign", [1, -1])
def test_derivatives_of_gaussians_have_their_names(size, sign):
    sigma = {3: 0.8, 5: 1.0, 7: 1.4}[size]
    for order, expected in {(0, 1): "edge_x", (1, 0): "edge_y", (0, 2): "bar_x", (2, 0): "bar_y",
                            (1, 1): "cross"}.items():  # fmt: skip
        assert name(sign * of_scipy(size, sigma, order)) == expected
    assert name(sign * of_scipy(size, sigma, (0, 0))) == ("on" if sign > 0 else "off")
    if size > 3:  # a 3x3 kernel has no room for a surround of its own
        surround = of_scipy(size, 0.8, (0, 0)) - of_scipy(size, 1.3, (0, 0))
        assert name(sign * surround) == ("on_surround" if sign > 0 else "off_surround")


KNOWN = {
    "sobel": ([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], {"edge_x"}),
    "prewitt": ([[-1, -1, -1], [0, 0, 0], [1, 1, 1]], {"edge_y"}),
    "scharr": ([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]], {"edge_x"}),
    "second difference": ([[1, -2, 1], [2, -4, 2], [1, -2, 1]], {"bar_x"}),
    "mixed difference": ([[1, 0, -1], [0, 0, 0], [-1, 0, 1]], {"cross"}),
    "laplacian": ([[0, 1, 0], [1, -4, 1], [0, 1, 0]], {"off", "off_surround"}),
    "sharpen": ([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], {"on", "on_surround"}),
    "binomial": (np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]), {"on"}),
    "mean": (np.ones((3, 3)), {"other"}),
    "zeros": (np.zeros((5, 5)), {"other"}),
    "checkerboard": ([[1, -1, 1], [-1, 1, -1], [1, -1, 1]], {"other"}),
}


@pytest.mark.parametrize("known", KNOWN)
def test_kernels_of_image_processing_have_their_names(known):
    kernel, expected = KNOWN[known]
    assert name(kernel) in expected


@given(st.integers(0, 2**32), st.floats(1e-4, 1e4), st.floats(-3, 3))
def test_scale_and_mean_do_not_matter_and_a_sign_only_to_blobs(seed, scale, mean):
    kernels = np.random.default_rng(seed).standard_normal((40, 9)).astype(np.float32)
    found = named_shapes(kernels, 3, 3)
    moved = named_shapes((scale * (kernels + mean)).astype(np.float32), 3, 3)
    clear = np.abs(found.cosine - SHAPE_COSINE) > 0.001
    np.testing.assert_array_equal(found.shape[clear], moved.shape[clear])
    turned = named_shapes(-kernels, 3, 3)
    pairs = {0: 1, 1: 0, 2: 3, 3: 2}
    for one, other in zip(found.shape, turned.shape, strict=True):
        if one in pairs:
            assert other in (pairs[one], *range(4, 9))
    assert ((found.cosine >= -1) & (found.cosine <= 1)).all()
    assert ((found.shape >= 0) == (found.cosine >= SHAPE_COSINE)).all()


def test_the_share_by_chance_is_that_of_other_random_kernels():
    kernels = np.random.default_rng(99).standard_normal((40_000, 9)).astype(np.float32)
    shape = named_shapes(kernels, 3, 3).shape
    found = np.bincount(shape[shape >= 0], minlength=len(SHAPES)) / len(shape)
    np.testing.assert_allclose(found, by_chance(3, 3), atol=0.004)
    assert by_chance(5, 5).sum() < 0.001


def test_templates():
    for size in ((3, 3), (5, 5), (3, 5), (7, 7)):
        bank, number = shape_bank(*size)
        np.testing.assert_allclose(bank.sum(axis=1), 0, atol=1e-12)
        np.testing.assert_allclose((bank**2).sum(axis=1), 1)
        assert set(number.tolist()) == set(range(len(SHAPES)))
    with pytest.raises(SelectionError, match="1x7: shapes have names from 3x3 on"):
        shape_bank(1, 7)

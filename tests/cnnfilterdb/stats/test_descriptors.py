"""Descriptors of kernels against scipy.fft, numpy.fft and numpy.gradient, one kernel at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from cnnfilterdb.core.errors import SelectionError
from cnnfilterdb.core.schema import kernel_shape
from cnnfilterdb.stats import DESCRIPTORS, DescriptorSums, binary_residual, dct_energies, descriptors, variance_map

SIZES = ["1x1", "1x2", "2x2", "1x3", "3x1", "3x3", "2x5", "4x4", "5x5", "7x7", "3x7", "11x11"]
WITH_UNIT = ("norm", "dc_gain")

seeds = st.integers(0, 2**32 - 1)


def make(seed, kernel, count=20):
    """Random kernels, smooth ones, and kernels of zeros, constants and single weights."""
    rng = np.random.default_rng(seed)
    height, width = kernel_shape(kernel)
    images = rng.normal(size=(count, height, width))
    images[count // 2 :] = np.cumsum(np.cumsum(images[count // 2 :], axis=1), axis=2)
    images *= rng.lognormal(-3, 2, size=(count, 1, 1))
    images[0] = 0
    images[1] = -0.25
    images[2] = 0
    images[2, height // 2, width // 2] = 3
    images[3] = np.arange(width)
    images[4] = np.arange(height)[:, None]
    return images.astype(np.float32).reshape(count, -1)


NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(24)


def band_energy(image):
    """Energy of the spectrum of a kernel up to 1/4 cycle per pixel, by Gauss-Legendre quadrature of |F|^2."""
    spectrum = image
    for axis, side in enumerate(image.shape):
        if side > 1:
            waves = np.exp(-2j * np.pi * np.outer(NODES / 4, np.arange(side))) * np.sqrt(NODE_WEIGHTS / 4)[:, None]
            spectrum = np.moveaxis(np.tensordot(waves, spectrum, (1, axis)), 0, axis)
    return (np.abs(spectrum) ** 2).sum()


def describe(image):
    """The descriptors of one kernel (height, width), by other ways than the package's quadratic forms."""
    f = image.astype(np.float64)
    height, width = f.shape
    energy = (f**2).sum()
    found = {"norm": np.linalg.norm(f), "dc_gain": f.sum()}
    if energy == 0:
        return found | {name: np.nan for name in DESCRIPTORS if name not in WITH_UNIT}
    for name, turned in (("symmetry", np.rot90(f, 2)), ("mirror_x", np.fliplr(f)), ("mirror_y", np.flipud(f))):
        found[name] = (((f + turned) / 2) ** 2).sum() / energy
    hat = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            y, x = (row + 0.5) / height * 6 - 3, (column + 0.5) / width * 6 - 3
            hat[row, column] = (1 - (x * x + y * y) / 2) * np.exp(-(x * x + y * y) / 2)
    hat -= hat.mean()
    flat_hat = np.abs(hat).max() < 1e-9
    found["centre_surround"] = np.nan if flat_hat else (f * hat).sum() / np.sqrt(energy * (hat**2).sum())
    bands = {"dct_dc": 0.0, "dct_low": 0.0, "dct_high": 0.0}
    for (u, v), c in np.ndenumerate(dctn(f, norm="ortho")):
        low = (u / height) ** 2 + (v / width) ** 2 <= 0.25 + 1e-12
        bands["dct_dc" if u == v == 0 else "dct_low" if low else "dct_high"] += c * c / energy
    found |= bands
    found["fft_low"] = band_energy(f) / energy
    down, across = (np.gradient(f, axis=axis) if f.shape[axis] > 1 else np.zeros_like(f) for axis in (0, 1))
    gradients = np.stack([across.ravel(), -down.ravel()])
    values, vectors = np.linalg.eigh(gradients @ gradients.T)
    total = values.sum()
    found["coherence"] = (values[1] - values[0]) / total if total > 1e-12 * energy else np.nan
    angle = np.arctan2(vectors[1, 1], vectors[0, 1]) % np.pi
    found["orientation"] = angle if found["coherence"] > 1e-12 else np.nan
    found["binary_residual"] = 1 - np.abs(f).sum() ** 2 / (f.size * energy)
    return found


def angles_apart(a, b):
    """How far two directions are from each other; pi is 0."""
    return np.abs((np.asarray(a) - b + np.pi / 2) % np.pi - np.pi / 2)


def assert_same(found, expected, tolerance=1e-9):
    for name in DESCRIPTORS:
        one, other = np.asarray(found[name], np.float64), np.asarray(expected[name], np.float64)
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other), err_msg=name)
        if name == "orientation":
            # Where a kernel hardly has a direction, neither way finds it to many digits.
            clear = np.asarray(expected["coherence"]) > 1e-4
            assert (angles_apart(one, other)[clear] <= 1e-6).all()
        else:
            np.testing.assert_allclose(one, other, rtol=1e-9 if name in WITH_UNIT else 0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("kernel", SIZES)
@given(seeds)
@settings(max_examples=8)
def test_descriptors_one_kernel_at_a_time(kernel, seed):
    filters = make(seed, kernel)
    found = descriptors(filters, kernel)
    assert list(found) == list(DESCRIPTORS)
    each = [describe(image) for image in filters.reshape(-1, *kernel_shape(kernel))]
    assert_same(found, {name: [one[name] for one in each] for name in DESCRIPTORS})
    for name, values in found.items():
        assert values.dtype == np.float64
        there = values[~np.isnan(values)]
        if name not in WITH_UNIT:
            low = -1 if name == "centre_surround" else 0
            high = np.nextafter(np.pi, 0) if name == "orientation" else 1
            assert ((low <= there) & (there <= high)).all(), name
    np.testing.assert_allclose(found["binary_residual"], binary_residual(filters), atol=1e-12)
    bands = found["dct_dc"] + found["dct_low"] + found["dct_high"]
    np.testing.assert_allclose(bands[found["norm"] > 0], 1, atol=1e-12)


@given(seeds, st.sampled_from(["2x2", "3x3", "5x5", "1x7", "3x5"]), st.integers(-100, 100))
@settings(max_examples=40)
def test_scale_and_sign(seed, kernel, octaves):
    filters = make(seed, kernel)
    found = descriptors(filters, kernel)
    scale = np.float32(2.0) ** octaves
    assert_same(descriptors(filters * scale, kernel), found | {name: found[name] * scale for name in WITH_UNIT})
    flipped = {name: -found[name] for name in ("dc_gain", "centre_surround")}
    assert_same(descriptors(-filters, kernel), found | flipped)


@given(seeds, st.sampled_from(["2x2", "3x3", "4x4", "5x5"]))
@settings(max_examples=40)
def test_turns_and_mirrors(seed, kernel):
    filters = make(seed, kernel)
    height, width = kernel_shape(kernel)
    images = filters.reshape(-1, height, width)
    found = descriptors(filters, kernel)
    turned = descriptors(np.rot90(images, axes=(1, 2)).reshape(filters.shape), kernel)
    swapped = {"mirror_x": found["mirror_y"], "mirror_y": found["mirror_x"]}
    assert_same(turned, found | swapped | {"orientation": found["orientation"] + np.pi / 2})
    mirrored = descriptors(images[:, :, ::-1].reshape(filters.shape), kernel)
    assert_same(mirrored, found | {"orientation": -found["orientation"]})


@pytest.mark.parametrize("kernel", ["3x3", "5x5", "1x7"])
def test_low_frequencies_are_numpys(kernel):
    """The same share by the transform of the kernel with zeros around it, on a grid."""
    shape = kernel_shape(kernel)
    filters = make(3, kernel, 10)[5:]
    points = 512
    for image, found in zip(filters.reshape(-1, *shape), descriptors(filters, kernel)["fft_low"], strict=True):
        grid = [points if side > 1 else 1 for side in shape]
        energy = np.abs(np.fft.fft2(image.astype(np.float64), grid)) ** 2
        inside = np.ones(grid)
        for axis, size in enumerate(grid):
            frequency = np.abs(np.fft.fftfreq(size))
            # Half of what lies on the edge of the band is in it.
            share = np.where(frequency < 0.25, 1, np.where(frequency == 0.25, 0.5, 0))
            inside *= np.expand_dims(share, 1 - axis)
        assert found == pytest.approx((energy * inside).sum() / energy.sum(), abs=1e-4)


def test_tiny_and_huge_weights_keep_their_shares():
    filters = make(0, "3x3")[5:]
    filters /= np.abs(filters).max(axis=1, keepdims=True)
    found = descriptors(filters, "3x3")
    for scale in (1e-36, 1e36):
        assert_same(
            {name: values if name not in WITH_UNIT else values / scale
             for name, values in descriptors((filters * scale).astype(np.float32), "3x3").items()},
            found, 1e-5,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        # Brightness rises to the right, upwards, and towards the upper right: 0, 90 and 45 degrees.
        ([[-1, 0, 1]] * 3, {"orientation": 0, "coherence": 1, "symmetry": 0, "mirror_x": 0, "mirror_y": 1}),
        ([[1] * 3, [0] * 3, [-1] * 3], {"orientation": np.pi / 2, "coherence": 1, "mirror_x": 1, "mirror_y": 0}),
        ([[0, 1, 2], [-1, 0, 1], [-2, -1, 0]], {"orientation": np.pi / 4, "coherence": 1, "dct_dc": 0}),
        ([[2, 1, 0], [1, 0, -1], [0, -1, -2]], {"orientation": 3 * np.pi / 4, "coherence": 1}),
        ([[1] * 3] * 3, {"dct_dc": 1, "dc_gain": 9, "norm": 3, "binary_residual": 0, "coherence": np.nan}),
        ([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], {"symmetry": 1, "orientation": np.nan, "coherence": 0,
                                                     "dc_gain": 0}),
        ([[0] * 3] * 3, {"norm": 0, "dc_gain": 0, "symmetry": np.nan, "coherence": np.nan, "fft_low": np.nan}),
    ],
)  # fmt: skip
def test_known_kernels(image, expected):
    found = descriptors(np.array(image, np.float32).reshape(1, -1), "3x3")
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_filters_must_be_of_the_size():
    for shape in ((2, 9), (25,), (2, 5, 5)):
        with pytest.raises(SelectionError, match=r"5x5 kernels are \(n, 25\)"):
            descriptors(np.zeros(shape, np.float32), "5x5")


def test_without_filters_there_are_no_rows():
    found = descriptors(np.empty((0, 9), np.float32), "3x3")
    assert {len(values) for values in found.values()} == {0}
    means = DescriptorSums.of(found).means()
    assert all(np.isnan(value) for value in means.values())


@pytest.mark.parametrize("kernel", SIZES)
def test_dct_energies_are_scipys(kernel):
    filters = make(1, kernel)
    found = dct_energies(filters, kernel)
    for image, energies in zip(filters.reshape(-1, *kernel_shape(kernel)), found, strict=True):
        expected = dctn(image.astype(np.float64), norm="ortho") ** 2
        total = (image.astype(np.float64) ** 2).sum()
        np.testing.assert_allclose(energies, expected / total if total else np.nan, atol=1e-12)


@given(seeds, st.integers(0, 20), st.sampled_from(["2x2", "3x3", "1x5"]))
@settings(max_examples=30)
def test_sums_merge(seed, cut, kernel):
    filters = make(seed, kernel)
    found = descriptors(filters, kernel)
    parts = [DescriptorSums.of(descriptors(part, kernel)) for part in (filters[:cut], filters[cut:])]
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        means = merged.means()
        assert list(means) == list(DESCRIPTORS)
        for name, values in found.items():
            there = values[~np.isnan(values)]
            if not len(there):
                assert np.isnan(means[name])
            elif name != "orientation":
                assert means[name] == pytest.approx(there.mean(), rel=1e-9, abs=1e-12)
        there = ~np.isnan(found["orientation"])
        weighted = (found["coherence"] * np.exp(2j * found["orientation"]))[there].sum()
        assert angles_apart(means["orientation"], np.angle(weighted) / 2) < 1e-6 or abs(weighted) < 1e-6
        assert 0 <= means["orientation"] < np.pi


def test_directions_on_both_sides_of_the_horizontal_average_to_it():
    filters = np.array([[-1, 0.1, 1, -1, 0, 1, -1, -0.1, 1], [-1, -0.1, 1, -1, 0, 1, -1, 0.1, 1]], np.float32)
    filters[0, :3] += 0.2
    filters[1, 6:] += 0.2
    found = descriptors(filters, "3x3")
    assert sorted(found["orientation"] > np.pi / 2) == [False, True]
    means = DescriptorSums.of(found).means()
    assert angles_apart(means["orientation"], 0) < 1e-9
    assert means["coherence"] == pytest.approx(found["coherence"].mean())


@given(seeds, st.integers(1, 5), st.sampled_from([4, 9, 49]))
@settings(max_examples=30)
def test_variance_map_is_that_of_all_kernels_put_together(seed, layers, size):
    rng = np.random.default_rng(seed)
    found = [rng.normal(rng.normal(), rng.lognormal(), size=(rng.integers(1, 50), size)) for _ in range(layers)]
    expected = np.concatenate([layer / layer.std() for layer in found]).var(axis=0)
    found.append(np.full((7, size), 0.3))
    counts = np.array([len(layer) for layer in found])
    means, variances = (np.stack([getattr(layer, name)(axis=0) for layer in found]) for name in ("mean", "var"))
    # The layer whose weights are all the same has no standard deviation to divide by.
    variances[-1], means[-1] = 0, 0.25
    np.testing.assert_allclose(variance_map(counts, means, variances), expected, atol=1e-9)


def test_variance_map_of_random_kernels_is_even_and_without_layers_nan():
    kernels = np.random.default_rng(0).normal(scale=0.01, size=(20_000, 25))
    found = variance_map(np.array([20_000]), kernels.mean(axis=0)[None], kernels.var(axis=0)[None])
    np.testing.assert_allclose(found, 1, atol=0.05)
    constant = variance_map(np.array([3]), np.full((1, 4), 0.5), np.zeros((1, 4)))
    assert np.isnan(constant).all()
    assert constant.shape == (4,)
